// The people tab: members with their roles and keys, invitations, links to a new password. For administrators.

import { element } from "../dom.js";
import { badge, button, confirmed, copyable, dialog, empty, errorBox, field, moment, select, table } from "./parts.js";

export async function show(root, context) {
  await new People(root, context).load();
}

class People {
  constructor(root, context) {
    Object.assign(this, { root, api: context.api, t: context.texts, self: context.staff, say: context.say, context });
  }

  async load() {
    const { people, invitations } = await this.api("people");
    this.root.replaceChildren(
      this.head(),
      table(this.t("people.members"), ["name", "role", "state", "since", "keys", "actions"].map((key) => this.t(`people.${key}`)), people.map((one) => this.row(one)), {
        id: "glm-people",
      }),
      element("h2", {}, this.t("people.invitations")),
      invitations.length ? this.invitations(invitations) : empty(this.t("people.invitations.none")),
    );
  }

  /** Does something, says so, shows what is there now; a refusal is shown above the lists. */
  async act(work, said = null) {
    this.root.querySelector(".glm-error")?.remove();
    try {
      const found = await work();
      if (said) this.say(said);
      await this.load();
      return found;
    } catch (problem) {
      this.root.prepend(errorBox(problem));
      return null;
    }
  }

  head() {
    const invite = button(this.t("people.invite"), () => this.invite(), { kind: "primary", drawing: "plus", id: "glm-invite" });
    const program = button(this.t("people.program"), () => this.addProgram(), { drawing: "plus", id: "glm-add-program" });
    return element("div", { class: "glm-bar" }, element("h1", {}, this.t("people.members")), element("span", { class: "glm-end" }), program, invite);
  }

  row(one) {
    const own = one.id === this.self.id;
    const name = element("span", { class: "glm-bar" }, element("strong", { dir: "auto" }, one.name), own ? badge(this.t("people.you")) : null);
    const role = select(`glm-role-${one.id}`, this.roles(), one.role, { "aria-label": this.t("people.role.of", { name: one.name }), disabled: Boolean(one.disabled) });
    role.addEventListener("change", () => this.act(() => this.api(`people/${one.id}`, { method: "PATCH", body: { role: role.value } }), this.t("people.role.changed", { name: one.name })));
    const state = one.disabled ? badge(this.t("people.disabled"), "bad") : one.has_password ? badge(this.t("people.active"), "good") : badge(this.t("people.keys.only"));
    const keys = button(this.t("people.keys.count", { count: one.keys.length }), () => this.keys(one), { disabled: Boolean(one.disabled), "data-keys": one.name });
    return [name, role, state, moment(one.created), keys, this.actions(one)];
  }

  actions(one) {
    const change = (disabled) => this.act(() => this.api(`people/${one.id}`, { method: "PATCH", body: { disabled } }), this.t(disabled ? "people.disable.done" : "people.enable.done", { name: one.name }));
    const disable = async () => {
      if (await confirmed(this.t("people.disable.of", { name: one.name }), this.t("people.disable.help"), this.t("people.disable"))) await change(true);
    };
    const label = (key) => ({ "aria-label": this.t(`${key}.of`, { name: one.name }) });
    const reset = button(this.t("people.reset"), () => this.reset(one), { disabled: Boolean(one.disabled), ...label("people.reset") });
    const other = one.disabled
      ? button(this.t("people.enable"), () => change(false), label("people.enable"))
      : button(this.t("people.disable"), disable, { kind: "danger", ...label("people.disable") });
    return element("div", { class: "glm-bar glm-people-actions" }, reset, other);
  }

  roles() {
    return ["reviewer", "admin"].map((role) => [role, this.t(`shell.role.${role}`)]);
  }

  invitations(rows) {
    const withdraw = (one) => button(this.t("people.withdraw"), () => this.act(() => this.api(`invitations/${one.id}`, { method: "DELETE" }), this.t("people.withdraw.done")));
    const what = (one) => (one.for ? this.t("people.invitation.reset", { name: one.for }) : this.t("people.invitation.new", { role: this.t(`shell.role.${one.role}`) }));
    const cells = rows.map((one) => [what(one), one.by ?? this.t("people.command"), moment(one.expires), withdraw(one)]);
    return table(this.t("people.invitations"), ["for", "by", "expires", "actions"].map((key) => this.t(`people.${key}`)), cells, { id: "glm-invitations" });
  }

  /** A link, shown once. */
  link(title, help, { path, expires }) {
    const address = new URL(path, document.baseURI).href;
    const until = element("p", { class: "glm-detail" }, this.t("people.link.until"), " ", moment(expires));
    const body = element("div", { class: "glm-stack" }, element("p", {}, help), copyable("glm-link", this.t("people.link"), address, this.say), until);
    dialog(title, body, { id: "glm-link-dialog" });
  }

  invite() {
    const role = select("glm-invite-role", this.roles(), "reviewer");
    const help = element("ul", { class: "glm-detail" }, ...["reviewer", "admin"].map((one) => element("li", {}, this.t(`people.role.${one}`))));
    const send = element("button", { type: "submit", class: "glm-primary" }, this.t("people.invite.make"));
    const form = element("form", { class: "glm-form" }, field(this.t("people.role"), role), help, send);
    const opened = dialog(this.t("people.invite"), form);
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      opened.close();
      const made = await this.act(() => this.api("invitations", { body: { role: role.value } }));
      if (made) this.link(this.t("people.invite"), this.t("people.invite.help"), made);
    });
  }

  async reset(one) {
    const made = await this.act(() => this.api(`people/${one.id}/reset`, { method: "POST" }));
    if (made) this.link(this.t("people.reset"), this.t("people.reset.help", { name: one.name }), made);
  }

  addProgram() {
    const name = element("input", { id: "glm-program-name", required: true, maxlength: "40", autocomplete: "off" });
    const role = select("glm-program-role", this.roles(), "reviewer");
    const send = element("button", { type: "submit", class: "glm-primary" }, this.t("people.program.make"));
    const form = element("form", { class: "glm-form" }, element("p", {}, this.t("people.program.help")), field(this.t("people.name"), name), field(this.t("people.role"), role), send);
    const opened = dialog(this.t("people.program"), form);
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      opened.close();
      const made = await this.act(() => this.api("people", { body: { name: name.value, role: role.value } }));
      if (made) this.keys(made);
    });
  }

  /** A member's keys: a list, and a form for a new one. */
  keys(one) {
    const list = element("div", { class: "glm-stack" });
    const draw = () => {
      if (!one.keys.length) return list.replaceChildren(empty(this.t("people.keys.none")));
      const cells = one.keys.map((key) => [key.label, moment(key.created), key.expires ? moment(key.expires) : this.t("people.keys.forever"), take(key)]);
      list.replaceChildren(table(this.t("people.keys"), ["label", "since", "expires", "actions"].map((name) => this.t(`people.${name}`)), cells));
    };
    const said = element("div", { class: "glm-stack" });
    const attempt = async (work) => {
      said.replaceChildren();
      try {
        await work();
        one = (await this.api("people")).people.find((member) => member.id === one.id);
        draw();
      } catch (problem) {
        said.replaceChildren(errorBox(problem));
      }
    };
    const take = (key) =>
      button(this.t("people.keys.take"), () => attempt(() => this.api(`people/${one.id}/keys/${key.id}`, { method: "DELETE" })), { kind: "danger", "aria-label": this.t("people.keys.take.of", { label: key.label }) });
    const label = element("input", { id: "glm-key-label", required: true, maxlength: "80", autocomplete: "off" });
    const days = select("glm-key-days", ["30", "90", "365", ""].map((count) => [count, count ? this.t("people.days", { count }) : this.t("people.keys.forever")]), "90");
    const send = element("button", { type: "submit", class: "glm-primary" }, this.t("people.keys.make"));
    const form = element("form", { class: "glm-form" }, field(this.t("people.label"), label, this.t("people.label.help")), field(this.t("people.keys.life"), days), send);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      attempt(async () => {
        const made = await this.api(`people/${one.id}/keys`, { body: { label: label.value, ...(days.value ? { days: Number(days.value) } : {}) } });
        label.value = "";
        said.replaceChildren(
          element("p", { class: "glm-remark" }, this.t("people.keys.once")),
          copyable("glm-key", this.t("people.keys.key"), made.key, this.say),
          element("p", { class: "glm-detail" }, this.t("people.keys.use"), " ", element("code", {}, "Authorization: Bearer …")),
        );
      });
    });
    draw();
    const body = element("div", { class: "glm-stack" }, list, said, form);
    dialog(this.t("people.keys.of", { name: one.name }), body, { id: "glm-keys", wide: true }).closed.then(() => this.act(async () => null));
  }
}
