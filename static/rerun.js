// "Run again" below an answer of a shared page: sends the same request with the same seed to this server's model, streams the new
// answer beside the shared one, and says whether they are the same; if not, what differs in the fingerprints.

import { book, button, errorBox, newAnswer, waitingText } from "./answer.js";
import { element, newId, onceAFrame } from "./dom.js";
import { bind } from "./language.js";
import { answer as drawShared, body, colour } from "./shared_view.js";
import { render as markdown } from "./markdown.js";

const MODES = new Set(["chat", "fill", "generate"]);
const FIELDS = new Set(["model", "weights_hash", "precision", "device", "version", "sampler", "tensor_parallel"]);
const HASH = 16; // characters of a hash that are shown

/** The message that does a shared run again. parameters: names of what stands in a request's `parameters`; what else was stored
 *  beside them is a field of the message itself. */
export function request(item, parameters) {
  const message = { type: item.mode, id: newId(), parameters: { seed: item.seed } };
  message[item.mode === "chat" ? "messages" : "text"] = item.prompt;
  for (const [name, value] of Object.entries(item.parameters)) (parameters.includes(name) ? message.parameters : message)[name] = value;
  return message;
}

/** What differs between two fingerprints: [{name, old, now}], null for what one of them lacks. */
export function differences(old, now) {
  const names = new Set([...Object.keys(old), ...Object.keys(now)]);
  return [...names].filter((name) => old[name] !== now[name]).map((name) => ({ name, old: old[name] ?? null, now: now[name] ?? null }));
}

/** As storage writes it: what no database can hold is replaced, see storage/columns.py. */
const asStored = (words) => [...words.replaceAll("\0", "\u2400")].map((sign) => (/^[\ud800-\udfff]$/.test(sign) ? "\ufffd" : sign)).join("");

/** How a new answer compares with the shared one: {same, fields}. made: {text, ids: Map(index -> token ids), fingerprint}. */
export function compare(item, made) {
  const tokens = item.blanks.every(({ index, ids }) => !ids || !made.ids.has(index) || String(ids) === String(made.ids.get(index)));
  return { same: tokens && asStored(made.text) === item.output, fields: differences(item.fingerprint ?? {}, made.fingerprint ?? {}) };
}

/** The part below one answer: a button, or why there is none. connect(): the page's connection. */
export function rerun(item, connect, parameters) {
  const node = element("div", { class: "glm-rerun" });
  const why = item.redacted ? "shared.redacted" : !MODES.has(item.mode) ? null : !item.fingerprint ? "shared.stopped" : undefined;
  if (why === null) return null;
  if (why) {
    node.append(bind(element("p", { class: "glm-shared-detail" }), why));
    return node;
  }
  const start = button("again", "shared.run", () => new Rerun(node, item, connect(), parameters).begin(), { class: "glm-button glm-rerun-start" }, true);
  node.append(element("div", { class: "glm-rerun-bar" }, start, bind(element("span", { class: "glm-shared-detail" }), "shared.run.help", { seed: item.seed })));
  return node;
}

/** One try; it lives in `node`, below the bar with the button. */
class Rerun {
  constructor(node, item, connection, parameters) {
    Object.assign(this, { node, item, connection, parameters });
    this.request = request(item, parameters);
    this.answer = newAnswer(this.request);
    this.fills = new Map();
    this.ids = new Map();
    this.paint = onceAFrame(() => this.draw());
  }

  begin() {
    this.node.querySelector(".glm-rerun-panel")?.remove();
    this.start = this.node.querySelector(".glm-rerun-start");
    this.stop = button("stop", "stop", () => this.cancel(), { class: "glm-button glm-rerun-stop" }, true);
    this.start.hidden = true;
    this.start.after(this.stop);
    this.stop.focus({ preventScroll: true });
    this.fresh = body(this.item.mode === "chat" ? "markdown" : "plain", "");
    this.fresh.setAttribute("aria-busy", "true");
    this.verdict = element("div", { class: "glm-rerun-verdict", role: "status", "aria-live": "polite" });
    const side = (key, words) => element("section", {}, bind(element("h3"), key), words);
    const sides = element("div", { class: "glm-rerun-sides" }, side("shared.old", drawShared(this.item)), side("shared.new", this.fresh));
    this.panel = element("div", { class: "glm-rerun-panel" }, sides, this.verdict);
    this.node.append(this.panel);
    this.draw();
    this.run = this.connection.start(this.request, (event) => this.handle(event));
    this.panel.scrollIntoView({ block: "nearest" });
  }

  cancel() {
    this.run.cancel();
    this.stop.disabled = true;
  }

  handle(event) {
    book(this.answer, event);
    // A worker that died before the first token was shown starts the same answer again.
    if (event.type === "started") this.fills.clear();
    else if (event.type === "delta" && !event.alternative) this.fills.set(event.blank, (this.fills.get(event.blank) ?? "") + event.text);
    else if (event.type === "blank") {
      this.fills.set(event.index, event.text);
      if (event.ids) this.ids.set(event.index, event.ids);
    } else if (event.type === "done") this.made = { text: event.text, ids: this.ids, fingerprint: event.fingerprint };
    if (this.answer.status !== "running") this.end();
    this.paint();
  }

  end() {
    const focused = document.activeElement === this.stop;
    this.stop.remove();
    this.start.hidden = false;
    if (focused) this.start.focus({ preventScroll: true });
    this.fresh.setAttribute("aria-busy", "false");
    if (this.answer.status === "error") {
      this.panel.append(errorBox(this.answer, () => new Rerun(this.node, this.item, this.connection, this.parameters).begin()));
    } else if (this.answer.status === "cancelled") this.verdict.replaceChildren(bind(element("p"), "shared.cancelled"));
    else this.verdict.replaceChildren(...this.judgement());
  }

  draw() {
    const { item } = this;
    const nothing = !this.fills.size && !this.made;
    if (this.answer.status === "running" && nothing) this.fresh.replaceChildren(element("span", { class: "glm-shared-detail" }, waitingText(this.answer)));
    else if (item.mode === "chat") markdown(this.fresh, this.made?.text ?? this.fills.get(0) ?? "");
    else {
      this.fresh.replaceChildren(...colour(item.prompt, this.fills));
      const whole = item.mode === "fill" ? this.made?.text : undefined;
      if (whole !== undefined && this.fresh.textContent !== whole) this.fresh.textContent = whole;
    }
  }

  /** The sentence that says how it came out, and the table of what differs. */
  judgement() {
    const { same, fields } = compare(this.item, this.made);
    const say = (key, kind) => bind(element("p", { class: `glm-rerun-${kind}` }), key);
    this.panel.dataset.verdict = fields.length ? "differs" : same ? "same" : "other";
    if (!fields.length) return [same ? say("shared.same", "same") : say("shared.other", "other")];
    const head = element("tr", {}, ...["shared.field", "shared.old", "shared.new"].map((key) => bind(element("th", { scope: "col" }), key)));
    const rows = fields.map(({ name, old, now }) => {
      const title = element("th", { scope: "row" }, name);
      if (FIELDS.has(name)) bind(title, `fingerprint.${name}`);
      return element("tr", { "data-field": name }, title, value(name, old), value(name, now));
    });
    const table = element("table", { class: "glm-rerun-fields" }, element("thead", {}, head), element("tbody", {}, ...rows));
    return [say("shared.differs", "differs"), element("div", { class: "glm-rerun-scroll" }, table), say(same ? "shared.differs.same" : "shared.differs.other", "differs")];
  }
}

function value(name, said) {
  if (said === null) return bind(element("td"), "shared.absent");
  const words = String(said);
  const long = name.endsWith("hash") && words.length > HASH;
  return element("td", long ? { title: words } : {}, long ? `${words.slice(0, HASH)}…` : words);
}
