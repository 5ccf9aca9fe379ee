// Export: filters, a format, personal data hidden or not, the first rows as they will be written, the download; former exports.

import { element } from "../dom.js";
import { badge, button, empty, errorBox, loading, moment, number, table } from "./parts.js";
import { lively, refused, selection, shownRow } from "./data_selection.js";

export async function showExport(root, context) {
  const { api, t, signal } = context;
  const { formats } = await api("formats", { signal });
  const choice = ({ name, extension }, at) =>
    element(
      "label",
      { class: "glm-check glm-data-format" },
      element("input", { type: "radio", name: "format", value: name, checked: at === 0 }),
      element("span", {}, element("strong", {}, t(`data.format.${name}`)), " ", element("span", { class: "glm-detail" }, extension), element("br"), t(`data.format.${name}.help`)),
    );
  const radios = element("fieldset", { class: "glm-boxes glm-data-formats" }, element("legend", {}, t("data.format")), ...formats.map(choice));
  const redact = element("input", { type: "checkbox", id: "glm-data-redact", checked: true, "aria-describedby": "glm-data-redact-help" });
  const warning = element("p", { class: "glm-detail", id: "glm-data-redact-help" }, t("data.redact.help"));
  const count = element("p", { role: "status", id: "glm-data-count" });
  const rows = element("div", { class: "glm-stack", id: "glm-data-preview" });
  const download = element("a", { class: "glm-primary", id: "glm-data-download", download: "" }, t("data.download"));
  const former = element("div", { class: "glm-stack", id: "glm-data-former" });

  const query = () => {
    const asked = chosen.filters();
    asked.set("format", radios.querySelector(":checked").value);
    asked.set("redact", String(redact.checked));
    return asked;
  };
  const look = lively(async (asking) => {
    const asked = query();
    count.textContent = t("shell.loading");
    root.dataset.looking = "true";
    try {
      const found = await api(`export/preview?${asked}`, { signal: asking });
      count.textContent = t("data.selected", { runs: number(found.runs) });
      const shown = found.rows.map((row, at) => shownRow(row, t("data.row", { number: at + 1 })));
      rows.replaceChildren(...(shown.length ? shown : [empty(t(found.runs ? "data.none_of_format" : "data.none", { runs: number(found.looked_at) }))]));
    } catch (problem) {
      count.textContent = "";
      refused(problem, rows);
    }
    if (!asking.aborted) delete root.dataset.looking;
  });
  const changed = () => {
    download.href = `api/admin/export?${query()}`;
    warning.textContent = t(redact.checked ? "data.redact.help" : "data.redact.off");
    warning.classList.toggle("glm-data-warning", !redact.checked);
    look();
  };
  const chosen = selection(context, "export", changed);
  radios.addEventListener("change", changed);
  redact.addEventListener("change", changed);

  async function list() {
    try {
      const { exports } = await api("exports", { signal });
      const heads = ["when", "by", "format", "rows", "hash", "manifest"].map((key) => t(`data.former.${key}`));
      const cells = exports.map(({ id, by, moment: when, manifest }) => [
        moment(when),
        by,
        element("span", { class: "glm-bar" }, t(`data.format.${manifest.format}`), manifest.redaction ? null : badge(t("data.unredacted"), "busy")),
        number(manifest.rows),
        element("code", { title: manifest.sha256 }, manifest.sha256.slice(0, 12)),
        element("a", { href: `api/admin/exports/${id}/manifest`, download: "", "aria-label": t("data.manifest.of", { file: manifest.file }) }, t("data.manifest")),
      ]);
      former.replaceChildren(cells.length ? table(t("data.former"), heads, cells) : empty(t("data.former.none")));
    } catch (problem) {
      if (problem.name !== "AbortError") former.replaceChildren(errorBox(problem, list));
    }
  }

  root.replaceChildren(
    element("h1", {}, t("data.export")),
    element("p", { class: "glm-detail" }, t("data.export.help")),
    chosen.node,
    element("div", { class: "glm-data-sides" }, element("div", { class: "glm-stack" }, radios, element("label", { class: "glm-check" }, redact, element("span", {}, t("data.redact"))), warning, element("div", { class: "glm-bar" }, download)), element("div", { class: "glm-stack" }, element("h2", {}, t("data.preview")), count, rows)),
    element("div", { class: "glm-bar" }, element("h2", {}, t("data.former")), button(t("data.reload"), list, { drawing: "again", id: "glm-data-reload" })),
    former,
  );
  former.replaceChildren(loading());
  changed();
  await list();
}
