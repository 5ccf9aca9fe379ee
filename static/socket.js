// One websocket a page, shared by all panes. It reconnects by itself with growing pauses and then takes up every
// unfinished run with resume{run, after}; events come once and in order (`seq` decides), whatever the network does.

const FIRST_PAUSE = 400; // ms before the first new try
const LONGEST_PAUSE = 10000; // ms
const LONG_SLEEP = 20000; // ms hidden after which an open socket is not trusted (a phone that slept)
const TERMINAL = new Set(["done", "cancelled", "error"]);

/** One generation on the server, seen from the page. */
export class Run {
  /** request: the message that starts it, with its own id; listener(event) gets each event once. */
  constructor(connection, request, listener) {
    this.connection = connection;
    this.request = request;
    this.listener = listener;
    this.run = null; // the server's id, known after `accepted`
    this.seq = 0; // of the last event that was handled
    this.finished = false;
    this.cancelled = false; // the visitor pressed stop
  }

  cancel() {
    this.cancelled = true;
    if (this.run && !this.finished) this.connection.send({ type: "cancel", run: this.run });
  }

  handle(event) {
    if (this.finished || (event.seq > 0 && event.seq <= this.seq)) return;
    this.seq = Math.max(this.seq, event.seq ?? 0);
    if (event.type === "accepted") {
      this.run = event.run;
      if (this.cancelled) this.cancel();
    }
    if (TERMINAL.has(event.type)) {
      this.finished = true;
      this.connection.forget(this);
    }
    this.listener(event);
  }
}

export class Connection {
  /** address: ws:// or wss:// address. */
  constructor(address) {
    this.address = address;
    this.state = "connecting"; // connecting | open | reconnecting
    this.runs = new Set();
    this.tries = 0;
    this.socket = null;
    this.timer = null;
    this.stateListeners = new Set();
    this.errorListeners = new Set();
    let hiddenSince = null;
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) {
        hiddenSince = Date.now();
        return;
      }
      const slept = hiddenSince !== null && Date.now() - hiddenSince > LONG_SLEEP;
      hiddenSince = null;
      if (this.state !== "open" || slept) this.connect();
    });
    window.addEventListener("online", () => this.connect());
    this.connect();
  }

  onState(listener) {
    this.stateListeners.add(listener);
    listener(this.state);
  }

  /** listener(event) is called for every error event. */
  onError(listener) {
    this.errorListeners.add(listener);
  }

  /** Starts a run: message is {type, id, ...} with an id of its own (dom.newId). */
  start(message, listener) {
    const run = new Run(this, message, listener);
    this.runs.add(run);
    this.send(message);
    return run;
  }

  /** Takes up a run after a reload of the page. With the server's id all its events come again from the first; a
   *  request that was not answered is sent again under its own id, by which the server knows it if it had accepted. */
  take(request, id, listener) {
    const run = new Run(this, request, listener);
    run.run = id;
    this.runs.add(run);
    this.pickUp(run);
    return run;
  }

  forget(run) {
    this.runs.delete(run);
  }

  send(message) {
    if (this.socket?.readyState !== WebSocket.OPEN) return; // pickUp sends it when the connection is back
    this.socket.send(JSON.stringify(message));
  }

  pickUp(run) {
    if (!run.run) return this.send(run.request);
    this.send({ type: "resume", run: run.run, after: run.seq });
    if (run.cancelled) run.cancel();
  }

  connect() {
    clearTimeout(this.timer);
    if (this.socket) {
      this.socket.onopen = this.socket.onmessage = this.socket.onclose = null;
      this.socket.close();
    }
    this.change(this.tries || this.state !== "connecting" ? "reconnecting" : "connecting");
    const socket = new WebSocket(this.address);
    this.socket = socket;
    socket.onopen = () => {
      this.tries = 0;
      this.change("open");
      this.runs.forEach((run) => this.pickUp(run));
    };
    socket.onmessage = (message) => this.receive(JSON.parse(message.data));
    socket.onclose = () => {
      this.change("reconnecting");
      const pause = Math.min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** this.tries) * (0.75 + Math.random() / 2);
      this.tries += 1;
      this.timer = setTimeout(() => this.connect(), pause);
    };
  }

  change(state) {
    if (state === this.state) return;
    this.state = state;
    this.stateListeners.forEach((listener) => listener(state));
  }

  receive(event) {
    for (const run of [...this.runs]) {
      // A run of this page is known by the server's id, and before it is accepted by its own. What the server can't
      // resume any more it answers from its records, with one terminal event, or with an error of that run.
      const mine = run.run ? run.run === event.run : event.id !== undefined && event.id === run.request.id;
      if (mine) run.handle(event);
    }
    if (event.type === "error") this.errorListeners.forEach((listener) => listener(event));
  }
}
