// One run's review as this page has it: what the server knows, what is on its way there, and what to do when somebody else was
// faster. Every change is sent at once, one after the other, with the version that it was made on. Nothing here draws.

const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);

export class Draft {
  /** found: the server's {run, review, spans}. changed(): called after every change of what is shown. */
  constructor(api, found, changed) {
    this.api = api;
    this.id = found.run.id;
    this.output = found.run.output ?? "";
    this.review = found.review;
    this.spans = found.spans;
    this.changed = changed;
    this.waiting = {}; // changed fields that aren't sent yet
    this.sent = {}; // those that are on their way
    this.state = "saved"; // saved | saving | failed | conflict
    this.problem = null; // Refusal of the last try
    this.conflict = null; // {theirs: {review, spans}, mine: {field: value}, decide("mine" | "theirs")}
    this.merged = null; // who changed other things meanwhile
    this.queue = Promise.resolve();
  }

  /** The review as it will be. */
  get value() {
    return { ...this.review, ...this.sent, ...this.waiting };
  }

  get unsaved() {
    return this.state !== "saved" || Object.keys(this.waiting).length > 0;
  }

  /** Change fields of the review: rating, flagged, status, note, tags, corrected. */
  set(fields) {
    Object.assign(this.waiting, fields);
    this.send();
  }

  /** Send what waits; called again after a failure. */
  send() {
    this.state = this.state === "conflict" ? "conflict" : "saving";
    this.changed();
    this.queue = this.queue.then(() => this.flush());
    return this.queue;
  }

  async flush() {
    if (!Object.keys(this.waiting).length) return this.settle();
    this.sent = this.waiting;
    this.waiting = {};
    const request = (version) => this.api(`runs/${this.id}/review`, { method: "PUT", body: { version, ...this.sent } });
    try {
      await this.perform(this.sent, request);
      this.sent = {};
      this.settle();
    } catch (problem) {
      if (!problem.kind) throw problem;
      this.waiting = { ...this.sent, ...this.waiting };
      this.sent = {};
      this.problem = problem;
      this.state = "failed";
      this.changed();
    }
  }

  settle() {
    this.problem = null;
    this.state = Object.keys(this.waiting).length ? "saving" : "saved";
    this.changed();
  }

  /** Correct a span of the output (code points): {start, end, chosen, source, alternatives, logprob, replace}. Throws Refusal. */
  correct(span) {
    return this.inTurn({ spans: [span] }, (version) => this.api(`runs/${this.id}/spans`, { body: { version, ...span } }));
  }

  /** Take the correction of a span back. Throws Refusal. */
  undo(id) {
    const spans = this.spans.filter((span) => span.id !== id);
    return this.inTurn({ spans }, (version) => this.api(`runs/${this.id}/spans/${id}?version=${version}`, { method: "DELETE" }));
  }

  async inTurn(mine, request) {
    const before = this.queue;
    const work = (async () => {
      await before;
      this.state = "saving";
      this.changed();
      try {
        await this.perform(mine, request);
      } finally {
        this.settle();
      }
    })();
    this.queue = work.catch(() => null); // who asked for it is told; the next in the queue goes on
    return work;
  }

  /** Do it on the newest version. Where somebody else changed the same, a person decides; where they changed something else,
   *  both are kept. */
  async perform(mine, request) {
    for (;;) {
      const base = { ...this.review, spans: [this.spans, this.review.corrected] };
      try {
        return this.take(await request(this.review.version));
      } catch (problem) {
        if (problem.kind !== "conflict" || !problem.body?.review) throw problem;
        const theirs = problem.body;
        const now = { ...theirs.review, spans: [theirs.spans, theirs.review.corrected] };
        // A whole new answer replaces the spans, too.
        const fields = Object.keys(mine).flatMap((name) => (name === "corrected" ? ["corrected", "spans"] : [name]));
        const disputed = fields.some((name) => !same(now[name], base[name]) && !same(now[name], mine[name]));
        if (!disputed) this.merged = theirs.review.reviewer?.name ?? "?";
        else if ((await this.decided(theirs, mine)) === "theirs") return this.take(theirs);
        this.take(theirs);
      }
    }
  }

  async decided(theirs, mine) {
    this.state = "conflict";
    const choice = await new Promise((decide) => {
      this.conflict = { theirs, mine, decide };
      this.changed();
    });
    this.conflict = null;
    this.state = "saving";
    return choice;
  }

  take({ review, spans }) {
    this.review = review;
    this.spans = spans;
    this.changed();
  }
}
