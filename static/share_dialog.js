// The dialog that publishes a conversation or a filled text under a link: what is hidden, for how long, and the link itself. What
// it shows as the preview is what the server would publish with these choices, so nothing is public that wasn't seen here.

import { button, copyButton, errorBox } from "./answer.js";
import { element } from "./dom.js";
import { bind, text } from "./language.js";
import { view } from "./shared_view.js";

const PAUSE = 350; // ms without typing before the preview is asked for again
const TITLE_CHARACTERS = 200; // as the server allows
const DAY = 24 * 3600; // s
const EXPIRIES = { never: null, day: DAY, week: 7 * DAY, month: 30 * DAY };

/** Opens it. subject: {kind: "chat"|"blanks"|"complete", runs: [run id, ...] in order, text: the filled text as the visitor has it
 *  or null, title}. Resolves when it is closed. */
export async function openShare(subject) {
  const before = document.activeElement;
  const share = new ShareDialog(subject);
  document.body.append(share.dialog);
  share.dialog.showModal();
  share.begin();
  await share.closed;
  before?.focus({ preventScroll: true });
}

class ShareDialog {
  constructor(subject) {
    this.subject = subject;
    this.asked = 0; // number of the newest question for a preview, so that a late answer doesn't replace a newer one
    this.timer = null;
    const close = button("close", "close", () => this.dialog.close());
    this.body = element("div", { class: "glm-share-body" });
    this.dialog = element(
      "dialog",
      { class: "glm-share", id: "glm-share", "aria-labelledby": "glm-share-title" },
      element("div", { class: "glm-share-head" }, bind(element("h2", { id: "glm-share-title" }), "share.title"), close),
      this.body,
    );
    // A click beside the dialog closes it: there the dialog itself is the target, inside one of its children is. A press that began
    // inside, as one that selects text, doesn't.
    let pressed = null;
    this.dialog.addEventListener("pointerdown", (event) => (pressed = event.target));
    this.dialog.addEventListener("click", (event) => {
      if (event.target === this.dialog && pressed === this.dialog) this.dialog.close();
    });
    this.closed = new Promise((resolve) => this.dialog.addEventListener("close", resolve, { once: true }));
    this.closed.then(() => {
      clearTimeout(this.timer);
      this.dialog.remove();
    });
  }

  /** Asks what there is to publish and to hide, then shows the form. */
  async begin() {
    this.body.replaceChildren(bind(element("p", { class: "glm-share-detail", role: "status" }), "share.preview.loading"));
    const { runs, text: words, title } = this.subject;
    const found = await ask("api/shares/preview", { runs, text: words, ...(title?.trim() ? { title: title.slice(0, TITLE_CHARACTERS) } : {}) });
    if (!this.dialog.isConnected) return;
    if (found.error) return this.body.replaceChildren(errorBox({ error: found.error }, () => this.begin()));
    this.build(found);
    this.update();
  }

  build(found) {
    this.title = element("input", { type: "text", id: "glm-share-name", maxlength: TITLE_CHARACTERS, required: true, dir: "auto" });
    this.title.value = found.title;
    this.boxes = found.findings.map((finding) => this.box(finding));
    this.words = element("textarea", { id: "glm-share-words", rows: "2", dir: "auto" });
    bind(this.words, "share.more.help", {}, "placeholder");
    this.expiry = element("select", { id: "glm-share-expiry" });
    this.expiry.append(...Object.keys(EXPIRIES).map((name) => bind(element("option", { value: name }), `expiry.${name}`)));
    this.preview = element("div", { class: "glm-share-preview", id: "glm-share-preview", tabindex: "0", role: "region", "aria-labelledby": "glm-share-preview-title" });
    this.failure = element("div", { class: "glm-share-failure" });
    this.publishButton = element("button", { type: "submit", class: "glm-primary", id: "glm-share-publish" });
    bind(this.publishButton, "share.publish");
    const later = () => {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.update(), PAUSE);
    };
    for (const field of [this.title, this.words]) field.addEventListener("input", later);
    const form = element(
      "form",
      { class: "glm-share-form" },
      bind(element("p", { class: "glm-share-detail" }), "share.intro"),
      label("share.name", this.title),
      this.findings(),
      label("share.more", this.words),
      label("share.expiry", this.expiry),
      bind(element("h3", { id: "glm-share-preview-title" }), "share.preview"),
      this.preview,
      this.failure,
      element("div", { class: "glm-share-buttons" }, this.publishButton, bind(element("button", { type: "button", class: "glm-button", click: () => this.dialog.close() }), "cancel")),
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.publish();
    });
    this.body.replaceChildren(form);
    this.title.focus();
  }

  box({ text: words, kind, count }) {
    const check = element("input", { type: "checkbox", checked: true, change: () => this.update() });
    const facts = [text(`finding.${kind}`), ...(count > 1 ? [text("share.count", { count })] : [])].join(" · ");
    const shown = element("bdi", { class: "glm-share-found" }, words);
    const node = element("label", { class: "glm-share-finding" }, check, shown, element("span", { class: "glm-share-detail" }, facts));
    return { node, check, words };
  }

  findings() {
    if (!this.boxes.length) return bind(element("p", { class: "glm-share-detail", id: "glm-share-none" }), "share.find.none");
    const group = element("fieldset", { class: "glm-share-findings", id: "glm-share-findings" });
    group.append(bind(element("legend"), "share.find"), bind(element("p", { class: "glm-share-detail" }), "share.find.help"));
    group.append(...this.boxes.map((box) => box.node));
    return group;
  }

  /** What a publication would send. */
  choices() {
    const ticked = this.boxes.filter((box) => box.check.checked).map((box) => box.words);
    const own = this.words.value.split("\n").map((line) => line.trim()).filter(Boolean);
    const { runs, text: words } = this.subject;
    return { runs, text: words, title: this.title.value.trim(), hidden: [...new Set([...ticked, ...own])] };
  }

  /** Draws the preview of what these choices would publish. */
  async update() {
    clearTimeout(this.timer);
    const number = ++this.asked;
    this.preview.setAttribute("aria-busy", "true");
    const found = await ask("api/shares/preview", this.choices());
    if (number !== this.asked) return;
    this.preview.setAttribute("aria-busy", "false");
    this.fail(found.error, () => this.update());
    if (!found.error) this.preview.replaceChildren(element("h4", { dir: "auto" }, found.title), view(found.content));
  }

  fail(error, again) {
    this.failure.replaceChildren(...(error ? [errorBox({ error }, again)] : []));
  }

  async publish() {
    if (!this.title.value.trim()) return this.title.focus();
    this.publishButton.disabled = true;
    bind(this.publishButton, "share.publishing");
    const made = await ask("api/shares", { ...this.choices(), expires_seconds: EXPIRIES[this.expiry.value] });
    if (!this.dialog.isConnected) return;
    this.publishButton.disabled = false;
    bind(this.publishButton, "share.publish");
    this.fail(made.error, () => this.publish());
    if (!made.error) this.done(new URL(made.path, document.baseURI).href);
  }

  done(address) {
    const link = element("input", { type: "text", id: "glm-share-link", readonly: true, value: address });
    const open = bind(element("a", { class: "glm-button", id: "glm-share-open", href: address, target: "_blank", rel: "noopener" }), "share.open");
    const copy = copyButton("share.copy", () => address, { class: "glm-primary", id: "glm-share-copy" }, true);
    this.body.replaceChildren(
      element(
        "div",
        { class: "glm-share-form", role: "status" },
        bind(element("h3"), "share.done"),
        bind(element("p", { class: "glm-share-detail" }), "share.done.help"),
        label("share.link", link),
        element("div", { class: "glm-share-buttons" }, copy, open),
      ),
    );
    link.addEventListener("focus", () => link.select());
    copy.focus();
  }
}

const label = (key, field) => element("label", { class: "glm-share-label" }, bind(element("span"), key), field);

/** Posts JSON; the answer, or {error: {kind, message, retryAfter}}. */
async function ask(path, body) {
  try {
    const answer = await fetch(new URL(path, document.baseURI), {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
    const found = await answer.json();
    if (answer.ok) return found;
    const { kind, message, retry_after_s: retryAfter } = found.error;
    return { error: { kind, message, retryAfter } };
  } catch (problem) {
    console.warn("Can't reach the server:", problem.message);
    return { error: { kind: "internal", message: text("share.failed"), retryAfter: null } };
  }
}
