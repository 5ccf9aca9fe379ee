// A tab of /admin that looks again by itself: its parts are drawn anew when what they show has changed.
// What derives from it has `load()`, which ends in `this.later(wait)`, and says how long to wait for a server that is away.

import { element } from "../dom.js";
import { errorBox } from "./parts.js";

export class PolledTab {
  /** name: begins the parts' ids; parts: their names, the first of which must be "said", for errors. */
  constructor(root, context, name, parts, away) {
    Object.assign(this, { root, context, api: context.api, t: context.texts, say: context.say, away, timer: null, left: false });
    this.parts = Object.fromEntries(parts.map((part) => [part, element("div", { class: "glm-stack", id: `glm-${name}-${part}` })]));
  }

  leave() {
    this.left = true;
    clearTimeout(this.timer);
  }

  later(wait) {
    this.timer = setTimeout(() => this.again(), wait);
  }

  /** The server may be restarting just now: the page waits for it. */
  async again() {
    try {
      await this.load();
    } catch (problem) {
      if (!problem.kind) throw problem;
      if (!this.left) this.later(this.away);
    }
  }

  /** Draws a part if what it shows has changed, and gives the focus back to what has the same id. */
  draw(name, shown, make) {
    const key = JSON.stringify(shown);
    const part = this.parts[name];
    if (part.dataset.key === key) return;
    const focused = part.contains(document.activeElement) ? document.activeElement.id : null;
    part.replaceChildren(...make());
    part.dataset.key = key;
    if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
  }

  /** Does `work`, then shows what has become of it, or its error; whether it went well. */
  async act(work, said = null) {
    this.parts.said.replaceChildren();
    try {
      await work();
      if (said) this.say(said);
      await this.load();
      return true;
    } catch (problem) {
      this.parts.said.replaceChildren(errorBox(problem));
      this.parts.said.scrollIntoView({ block: "nearest" });
      return false;
    }
  }
}
