// The data tab: export, datasets, lineage. The address's hash says which of them is open, with which filters or of what.

import { element } from "../dom.js";
import { showDatasets } from "./data_datasets.js";
import { showExport } from "./data_export.js";
import { showLineage } from "./data_lineage.js";

const VIEWS = { export: showExport, datasets: showDatasets, lineage: showLineage };

export async function show(root, context) {
  const { staff, argument, t } = context;
  const views = Object.keys(VIEWS).filter((view) => view !== "export" || staff.role === "admin");
  const view = views.includes(argument.get("view")) ? argument.get("view") : views[0];
  const link = (one) => element("a", { class: "glm-button", href: `#data?view=${one}`, id: `glm-data-${one}`, "aria-current": one === view ? "page" : null }, t(`data.${one}`));
  const body = element("div", { class: "glm-stack" });
  root.replaceChildren(element("nav", { class: "glm-bar glm-data-views", "aria-label": t("data.views") }, ...views.map(link)), body);
  const leaving = new AbortController();
  await VIEWS[view](body, { ...context, signal: leaving.signal });
  return () => leaving.abort();
}
