// The visitor's own conversations and shared links, as a dialog that the header opens: search, open, rename, delete, and
// for links copy and revoke. The list is the server's (GET /api/conversations); nothing is kept here.

import { button, copyButton, notice } from "./answer.js";
import { element } from "./dom.js";
import { bind, currentLanguage, errorText, onLanguage, text } from "./language.js";

const PAUSE = 250; // ms without typing before the list is asked for again
const TITLE_CHARACTERS = 200; // as the server allows

export class History {
  /** open(conversation): shows one, the answer of GET /api/conversations/ID, in its pane. */
  constructor(open) {
    this.open = open;
    this.timer = null;
    this.asked = 0; // number of the newest question for the list, so that a late answer doesn't replace a newer one
    this.search = element("input", { type: "search", id: "glm-history-search", autocomplete: "off", maxlength: "200" });
    bind(this.search, "history.search", {}, "label");
    bind(this.search, "history.search", {}, "placeholder");
    this.search.addEventListener("input", () => {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.list(), PAUSE);
    });
    this.rows = element("ul", { class: "glm-history-rows", id: "glm-history-rows" });
    this.more = button("plus", "history.more", () => this.list(this.next), { class: "glm-button", id: "glm-history-more" }, true);
    this.remark = element("p", { class: "glm-detail", id: "glm-history-remark", role: "status" });
    this.links = element("ul", { class: "glm-history-rows", id: "glm-history-links" });
    this.linksTitle = bind(element("h3", { class: "glm-history-part", hidden: true }), "history.links");
    const close = button("close", "close", () => this.dialog.close());
    this.dialog = element(
      "dialog",
      { class: "glm-history", id: "glm-history", "aria-labelledby": "glm-history-title" },
      element("div", { class: "glm-history-head" }, bind(element("h2", { id: "glm-history-title" }), "history"), close),
      bind(element("p", { class: "glm-detail" }), "history.help"),
      this.search,
      this.rows,
      this.more,
      this.remark,
      this.linksTitle,
      this.links,
    );
    // A click beside the dialog closes it: there the dialog itself is the target, inside one of its children is.
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
    onLanguage(() => this.dialog.open && this.show());
  }

  show() {
    if (!this.dialog.isConnected) document.body.append(this.dialog);
    if (!this.dialog.open) this.dialog.showModal();
    this.list();
    this.listLinks();
  }

  /** Asks for the list, or with `after` for its next part. */
  async list(after = null) {
    const number = ++this.asked;
    const address = new URL("api/conversations", document.baseURI);
    if (this.search.value.trim()) address.searchParams.set("q", this.search.value.trim());
    if (after) address.searchParams.set("after", after);
    const found = await ask(address);
    if (number !== this.asked || !found) return;
    if (!after) this.rows.replaceChildren();
    this.rows.append(...found.conversations.map((one) => this.row(one)));
    this.next = found.next;
    this.more.hidden = !found.next;
    const nothing = this.search.value.trim() ? "history.nothing" : "history.empty";
    this.remark.textContent = this.rows.childElementCount ? "" : text(nothing);
  }

  row(conversation) {
    const node = element("li", { class: "glm-history-row", "data-conversation": conversation.id });
    this.drawRow(node, conversation);
    return node;
  }

  drawRow(node, conversation) {
    const title = conversation.title || text("history.untitled");
    const words = element("span", { class: "glm-history-name", dir: "auto" }, title);
    const kind = element("span", { class: "glm-history-kind" }, kindName(conversation.kind));
    const when = element("time", { class: "glm-detail", datetime: conversation.updated }, moment(conversation.updated));
    const open = element("button", { type: "button", class: "glm-history-open", click: () => this.take(conversation) }, words, kind, when);
    const rename = button("edit", "history.rename", () => this.rename(node, conversation), { class: "glm-quiet glm-history-rename" });
    const remove = button("remove", "history.delete", () => this.askToDelete(node, conversation), { class: "glm-quiet glm-history-delete" });
    node.replaceChildren(open, rename, remove);
  }

  async take(conversation) {
    const found = await ask(new URL(`api/conversations/${encodeURIComponent(conversation.id)}`, document.baseURI));
    if (!found) return;
    this.dialog.close();
    this.open(found);
  }

  rename(node, conversation) {
    const field = element("input", { type: "text", class: "glm-history-title", maxlength: TITLE_CHARACTERS, dir: "auto" });
    field.value = conversation.title;
    bind(field, "history.title", {}, "label");
    const leave = () => {
      this.drawRow(node, conversation);
      node.querySelector(".glm-history-rename").focus();
    };
    const keep = button("check", "history.keep", () => {}, { type: "submit", class: "glm-quiet" });
    const form = element("form", { class: "glm-history-form" }, field, keep, button("close", "cancel", leave));
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const address = new URL(`api/conversations/${encodeURIComponent(conversation.id)}`, document.baseURI);
      const stored = await ask(address, "PATCH", { title: field.value });
      if (!stored) return;
      conversation.title = stored.title;
      leave();
    });
    form.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.preventDefault(); // the dialog stays
      event.stopPropagation();
      leave();
    });
    node.replaceChildren(form);
    field.select();
  }

  askToDelete(node, conversation) {
    const leave = () => {
      this.drawRow(node, conversation);
      node.querySelector(".glm-history-delete").focus();
    };
    const remove = async () => {
      const address = new URL(`api/conversations/${encodeURIComponent(conversation.id)}`, document.baseURI);
      if (!(await ask(address, "DELETE"))) return;
      const beside = node.nextElementSibling ?? node.previousElementSibling;
      node.remove();
      (beside?.querySelector("button") ?? this.search).focus();
      this.remark.textContent = text(this.rows.childElementCount ? "history.deleted" : "history.empty");
      document.dispatchEvent(new CustomEvent("glm-deleted", { detail: conversation.id }));
      this.listLinks(); // its links went with it
    };
    const yes = button("remove", "history.delete", remove, { class: "glm-button glm-danger" }, true);
    const no = button("close", "cancel", leave, { class: "glm-button" }, true);
    const question = element("p", {}, text("history.sure", { title: conversation.title || text("history.untitled") }));
    node.replaceChildren(element("div", { class: "glm-history-sure", role: "group" }, question, yes, no));
    no.focus();
  }

  async listLinks() {
    const found = await ask(new URL("api/shares", document.baseURI));
    const shares = (found?.shares ?? []).filter((share) => !share.revoked);
    this.linksTitle.hidden = !shares.length;
    this.links.replaceChildren(...shares.map((share) => this.link(share)));
  }

  link(share) {
    const address = new URL(`s/${share.token}`, document.baseURI).href;
    const name = element("a", { class: "glm-history-open", href: address, target: "_blank", rel: "noopener" });
    name.append(element("span", { class: "glm-history-name", dir: "auto" }, share.title || text("history.untitled")));
    const until = share.expires ? text("history.until", { when: moment(share.expires) }) : text("history.forever");
    name.append(element("span", { class: "glm-detail" }, until));
    const node = element("li", { class: "glm-history-row", "data-share": share.token }, name);
    const revoke = async () => {
      if (!(await ask(new URL(`api/shares/${share.token}`, document.baseURI), "DELETE"))) return;
      notice(text("history.revoked"));
      await this.listLinks();
      (this.links.querySelector("button") ?? this.search).focus();
    };
    node.append(copyButton("history.copy", () => address), button("remove", "history.revoke", revoke, { class: "glm-quiet glm-revoke" }));
    return node;
  }
}

/** An answer as JSON ({} where there is none), or null after telling the visitor why not. */
export async function ask(address, method = "GET", body = undefined) {
  let kind = "database_unavailable";
  try {
    const headers = body ? { "Content-Type": "application/json" } : {};
    const answer = await fetch(address, { method, headers, body: body && JSON.stringify(body), cache: "no-store" });
    const found = answer.status === 204 ? {} : await answer.json();
    if (answer.ok) return found;
    kind = found.error?.kind ?? "internal";
  } catch (problem) {
    console.warn("Can't reach the server:", problem.message);
    notice(text("status.reconnecting"));
    return null;
  }
  notice(errorText(kind));
  return null;
}

function kindName(kind) {
  return { chat: text("tab.chat"), blanks: text("tab.blanks"), complete: text("tab.complete") }[kind] ?? kind;
}

function moment(iso) {
  return new Intl.DateTimeFormat(currentLanguage(), { dateStyle: "medium", timeStyle: "short" }).format(new Date(iso));
}
