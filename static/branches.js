// A conversation as a tree, without the page: {messages: [{parent, role, content, ...}], leaf}. Messages stand in the order in
// which they came and never move, so that an index names one for good; `parent` is the index of the message before, -1 for the
// first. An edited question or a regenerated answer is one more child of the same parent: nothing is overwritten. `leaf` is the
// last message of the branch that is shown.

export const ROOT = -1;

/** An empty conversation. */
export const emptyTree = () => ({ messages: [], leaf: ROOT });

/** Adds a message behind `parent` and shows its branch; returns its index. */
export function add(tree, parent, message) {
  tree.messages.push({ parent, ...message });
  tree.leaf = tree.messages.length - 1;
  return tree.leaf;
}

/** The indices of a branch from its first message to `end`. */
export function branch(tree, end = tree.leaf) {
  const indices = [];
  for (let at = end; at !== ROOT; at = tree.messages[at].parent) indices.unshift(at);
  return indices;
}

/** The indices of the messages that stand at the same place, in order of time; `at` is one of them. */
export function siblings(tree, at) {
  const { parent } = tree.messages[at];
  return tree.messages.flatMap((message, other) => (message.parent === parent ? [other] : []));
}

/** Shows the branch that goes through `at`, and behind it always the latest message. */
export function choose(tree, at) {
  tree.leaf = at;
  for (let next = latestChild(tree, at); next !== null; next = latestChild(tree, next)) tree.leaf = next;
}

function latestChild(tree, at) {
  const next = tree.messages.findLastIndex((message) => message.parent === at);
  return next < 0 ? null : next;
}

/** The messages to send for an answer behind `end`: rounds whose answer failed or is empty are left out, the last question
 *  stays. */
export function history(tree, end) {
  const messages = branch(tree, end).map((at) => tree.messages[at]);
  const sent = [];
  messages.forEach((message, at) => {
    const { role, content } = message;
    const next = messages[at + 1];
    if (role === "user" && (!next || (next.role === "assistant" && next.content))) sent.push({ role, content });
    if (role === "assistant" && content && sent.at(-1)?.role === "user") sent.push({ role, content });
  });
  return sent;
}

/** The tree of a conversation from the server's record. runs: those of GET /api/conversations/ID, in order of time; answerOf(run)
 *  gives the answer's own fields. Two runs with the same messages before them are two answers to one question. */
export function fromRuns(runs, answerOf) {
  const tree = emptyTree();
  for (const run of runs) {
    if (run.mode !== "chat" || !Array.isArray(run.prompt)) continue;
    let at = ROOT;
    for (const { role, content } of run.prompt) {
      const known = tree.messages.findIndex((one) => one.parent === at && one.role === role && one.content === content);
      at = known < 0 ? add(tree, at, { role, content }) : known;
    }
    add(tree, at, { role: "assistant", content: run.output ?? "", ...answerOf(run) });
  }
  return tree;
}
