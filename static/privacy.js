// What the page says of the visitor's data: the line below the header with the switch, and the dialog that shows how much is kept,
// how long, and deletes all of it, with a receipt to take along.

import { button, copyButton, notice } from "./answer.js";
import { element } from "./dom.js";
import { ask } from "./history.js";
import { forgetPanes, privacy, setUnkept, unkept } from "./keeping.js";
import { bind, currentLanguage, onLanguage, text } from "./language.js";

const DELETED = {
  runs: "privacy.erased.runs",
  conversations: "privacy.erased.conversations",
  comments: "privacy.erased.comments",
  shared_pages: "privacy.erased.shared_pages",
  dataset_rows: "privacy.erased.dataset_rows",
};

/** The line: the notice, how long texts are kept, the switch where it is allowed, and the button that opens the dialog. */
export function privacyLine() {
  const dialog = new Privacy();
  const words = bind(element("p", { id: "glm-review-notice" }), "notice");
  const age = element("p", { id: "glm-kept" });
  const place = element("span", { class: "glm-keeping" });
  const open = button("lock", "privacy", () => dialog.show(), { class: "glm-button", id: "glm-privacy-open" }, true);
  const draw = () => {
    const told = privacy();
    age.textContent = unkept() ? text("privacy.off") : told ? kept(told.kept_seconds) : "";
    place.replaceChildren(...(told?.log_optional ? [toggle("glm-unlogged")] : []));
  };
  const node = element("div", { class: "glm-review" }, element("div", { class: "glm-review-words" }, words, age), place, open);
  document.addEventListener("glm-keeping", () => {
    const focused = document.activeElement?.id === "glm-unlogged";
    draw();
    if (focused) document.getElementById("glm-unlogged")?.focus();
  });
  onLanguage(draw);
  draw();
  return node;
}

/** The switch, as a checkbox. */
function toggle(id) {
  const box = element("input", { type: "checkbox", id });
  box.checked = unkept();
  box.addEventListener("change", () => setUnkept(box.checked));
  return element("label", { class: "glm-check", for: id }, box, element("span", {}, text("privacy.switch")));
}

function kept(seconds) {
  return seconds === null ? text("privacy.forever") : text("privacy.age", { age: ageWords(seconds) });
}

function ageWords(seconds) {
  const [value, unit] = seconds % 86400 === 0 ? [seconds / 86400, "day"] : [seconds / 3600, "hour"];
  return new Intl.NumberFormat(currentLanguage(), { style: "unit", unit, unitDisplay: "long", maximumFractionDigits: 1 }).format(value);
}

class Privacy {
  constructor() {
    this.body = element("div", { class: "glm-privacy-body" });
    this.receipt = null; // of a deletion, while the dialog is open
    const close = button("close", "close", () => this.dialog.close());
    const head = element("div", { class: "glm-history-head" }, bind(element("h2", { id: "glm-privacy-title" }), "privacy"), close);
    this.dialog = element("dialog", { class: "glm-history", id: "glm-privacy", "aria-labelledby": "glm-privacy-title" }, head, this.body);
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
    this.dialog.addEventListener("close", () => {
      if (!this.receipt) return;
      // Everything that the panes show is deleted.
      forgetPanes();
      location.reload();
    });
    onLanguage(() => this.dialog.open && this.draw());
    document.addEventListener("glm-keeping", () => this.dialog.open && this.draw());
  }

  async show() {
    if (!this.dialog.isConnected) document.body.append(this.dialog);
    if (!this.dialog.open) this.dialog.showModal();
    this.draw();
    this.counts = await ask(new URL("api/visitor", document.baseURI));
    if (this.dialog.open) this.draw();
  }

  draw() {
    const focused = document.activeElement?.id;
    this.body.replaceChildren(...(this.receipt ? this.told() : this.parts()));
    if (focused && this.dialog.open) document.getElementById(focused)?.focus();
  }

  parts() {
    const told = privacy();
    const lines = [text("privacy.what"), text("privacy.who")];
    if (told) {
      lines.push(kept(told.kept_seconds));
      for (const name of ["failed", "reviewed"]) {
        const seconds = told[`${name}_seconds`];
        if (seconds === told.kept_seconds) continue;
        const age = seconds === null ? text("privacy.until") : ageWords(seconds);
        lines.push(text(name === "failed" ? "privacy.failed" : "privacy.reviewed", { age }));
      }
    }
    const nodes = [element("ul", { class: "glm-privacy-list" }, ...lines.map((line) => element("li", {}, line)))];
    if (told?.log_optional) nodes.push(toggle("glm-privacy-unlogged"), element("p", { class: "glm-detail" }, text("privacy.switch.help")));
    nodes.push(element("h3", { class: "glm-history-part" }, text("privacy.delete")));
    if (this.counts) nodes.push(element("p", { id: "glm-privacy-counts" }, text("privacy.counts", this.counts)));
    nodes.push(element("p", { class: "glm-detail" }, text("privacy.delete.help")), this.question());
    return nodes;
  }

  question() {
    const node = element("div", {});
    const begin = () => {
      const no = button("close", "cancel", leave, { class: "glm-button" }, true);
      const yes = button("remove", "privacy.delete.yes", () => this.delete(yes), { class: "glm-button glm-danger", id: "glm-privacy-yes" }, true);
      node.replaceChildren(element("div", { class: "glm-history-sure", role: "group" }, element("p", {}, text("privacy.sure")), yes, no));
      no.focus();
    };
    const leave = () => {
      const open = button("remove", "privacy.delete.all", begin, { class: "glm-button glm-danger", id: "glm-privacy-delete" }, true);
      node.replaceChildren(open);
      if (this.dialog.open && document.activeElement === document.body) open.focus();
    };
    leave();
    return node;
  }

  async delete(yes) {
    yes.disabled = true;
    const receipt = await ask(new URL("api/visitor", document.baseURI), "DELETE");
    yes.disabled = false;
    if (!receipt) return;
    this.receipt = receipt;
    forgetPanes();
    this.draw();
    this.body.querySelector("h3").focus();
  }

  /** What was deleted, and the receipt. */
  told() {
    const { receipt } = this;
    const when = new Intl.DateTimeFormat(currentLanguage(), { dateStyle: "long", timeStyle: "medium" }).format(new Date(receipt.moment));
    const rows = Object.entries(DELETED).map(([name, key]) => element("li", {}, text(key, { count: receipt.erased[name] })));
    const written = JSON.stringify({ ...receipt, check: new URL(`api/receipts/${receipt.id}`, document.baseURI).href }, null, 2);
    const save = element("a", { class: "glm-button", id: "glm-receipt-save", download: `glm-receipt-${receipt.id}.json` }, text("privacy.receipt.save"));
    save.href = URL.createObjectURL(new Blob([written], { type: "application/json" }));
    notice(text("privacy.deleted", { when }));
    return [
      element("h3", { tabindex: "-1" }, text("privacy.deleted", { when })),
      element("ul", { class: "glm-privacy-list", id: "glm-receipt" }, ...rows),
      element("p", {}, text("privacy.receipt", { id: receipt.id })),
      element("p", { class: "glm-detail glm-receipt-hash" }, receipt.hash),
      element("p", { class: "glm-detail" }, text("privacy.receipt.help")),
      element("div", { class: "glm-history-sure" }, save, copyButton("privacy.receipt.copy", () => written, { class: "glm-button" }, true)),
    ];
  }
}
