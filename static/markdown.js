// A small, safe Markdown renderer for text that streams in. It makes nodes, never HTML strings; links and images stay
// plain text, so that nothing a model writes can make the browser ask another host.

import { bind } from "./language.js";
import { copy, element, icon } from "./dom.js";

/** Renders `source` into `container`. Blocks whose source did not change since the last call are kept, and a list or a code
 *  block that only grew keeps what it has, so that a long answer costs only what is new at each step. */
export function render(container, source) {
  const blocks = split(source);
  const kept = container.glmBlocks ?? [];
  let same = 0;
  while (same < blocks.length && same < kept.length && key(kept[same]) === key(blocks[same])) same += 1;
  if (same < blocks.length && same < kept.length && grow(container.childNodes[same], kept[same], blocks[same])) same += 1;
  while (container.childNodes.length > same) container.lastChild.remove();
  for (const block of blocks.slice(same)) container.append(draw(block));
  container.glmBlocks = blocks;
}

const key = (block) => JSON.stringify(block);

/** Changes the node of a list or a code block into that of `block`; false where it has to be drawn anew. */
function grow(node, old, block) {
  if (old.kind !== block.kind) return false;
  if (block.kind === "code" && old.language === block.language) {
    node.querySelector("code").textContent = block.text;
    return true;
  }
  if (block.kind !== "list" || old.ordered !== block.ordered || old.start !== block.start) return false;
  let same = 0;
  while (same < block.items.length && old.items[same] === block.items[same]) same += 1;
  while (node.childNodes.length > same) node.lastChild.remove();
  node.append(...block.items.slice(same).map(listItem));
  return true;
}

/** Cuts the source into blocks: {kind: "code"|"heading"|"list"|"quote"|"rule"|"paragraph", ...}. */
export function split(source) {
  const lines = source.replace(/\r\n?/g, "\n").split("\n");
  const blocks = [];
  let paragraph = [];
  const flush = () => {
    if (paragraph.length) blocks.push({ kind: "paragraph", text: paragraph.join("\n") });
    paragraph = [];
  };
  for (let at = 0; at < lines.length; at += 1) {
    const line = lines[at];
    const fence = line.match(/^\s*(```+|~~~+)\s*([\w+#.-]*)/);
    const heading = line.match(/^(#{1,6})\s+(.*)$/);
    if (fence) {
      flush();
      const body = [];
      at += 1;
      while (at < lines.length && !lines[at].trim().startsWith(fence[1])) {
        body.push(lines[at]);
        at += 1;
      }
      blocks.push({ kind: "code", language: fence[2], text: body.join("\n") });
    } else if (heading) {
      flush();
      blocks.push({ kind: "heading", level: heading[1].length, text: heading[2] });
    } else if (/^\s*([-*_])(\s*\1){2,}\s*$/.test(line)) {
      flush();
      blocks.push({ kind: "rule" });
    } else if (item(line)) {
      flush();
      const list = { kind: "list", ordered: item(line).ordered, start: item(line).number, items: [] };
      for (; at < lines.length; at += 1) {
        const next = item(lines[at]);
        if (next && next.ordered === list.ordered) list.items.push(next.text);
        else if (list.items.length && /^\s+\S/.test(lines[at])) list.items.push(list.items.pop() + "\n" + lines[at].trim());
        else break;
      }
      at -= 1;
      blocks.push(list);
    } else if (/^\s*>/.test(line)) {
      flush();
      const quoted = [];
      for (; at < lines.length && /^\s*>/.test(lines[at]); at += 1) quoted.push(lines[at].replace(/^\s*> ?/, ""));
      at -= 1;
      blocks.push({ kind: "quote", text: quoted.join("\n") });
    } else if (line.trim() === "") flush();
    else paragraph.push(line);
  }
  flush();
  return blocks;
}

function item(line) {
  const found = line.match(/^\s*(?:[-*+•]|(\d{1,9})[.)])\s+(.*)$/);
  return found && { ordered: found[1] !== undefined, number: Number(found[1] ?? 1), text: found[2] };
}

function draw(block) {
  if (block.kind === "code") return code(block);
  if (block.kind === "rule") return element("hr");
  if (block.kind === "quote") return element("blockquote", {}, ...inline(block.text));
  // The page has its own headings: those of an answer begin below them.
  if (block.kind === "heading") return element(`h${Math.min(6, block.level + 2)}`, {}, ...inline(block.text));
  if (block.kind === "list") {
    const list = element(block.ordered ? "ol" : "ul", block.ordered && block.start !== 1 ? { start: block.start } : {});
    list.append(...block.items.map(listItem));
    return list;
  }
  return element("p", {}, ...inline(block.text));
}

const listItem = (text) => element("li", {}, ...inline(text));

function code(block) {
  const words = element("code", {}, block.text); // its text may grow
  const button = element("button", { type: "button", class: "glm-quiet glm-code-copy" }, icon("copy"));
  bind(button, "copy.code", {}, "label");
  bind(button, "copy.code", {}, "title");
  button.addEventListener("click", async () => {
    if (await copy(words.textContent)) {
      button.replaceChildren(icon("check"));
      setTimeout(() => button.replaceChildren(icon("copy")), 1500);
    }
  });
  return element(
    "div",
    { class: "glm-code" },
    element("div", { class: "glm-code-head" }, element("span", {}, block.language), button),
    element("pre", { tabindex: "0" }, words),
  );
}

const MARKS = /(`+)([^`]+?)\1|\*\*([^\s*](?:[^]*?[^\s*])?)\*\*|(?<![\w*])\*([^\s*](?:[^*]*?[^\s*])?)\*(?![\w*])/g;

/** Text with `code`, **bold** and *italic* as nodes; line breaks are kept. Marks that are still open stay text. */
function inline(source) {
  const nodes = [];
  let last = 0;
  for (const found of source.matchAll(MARKS)) {
    if (found.index > last) nodes.push(source.slice(last, found.index));
    if (found[2] !== undefined) nodes.push(element("code", {}, found[2]));
    else if (found[3] !== undefined) nodes.push(element("strong", {}, ...inline(found[3])));
    else nodes.push(element("em", {}, ...inline(found[4])));
    last = found.index + found[0].length;
  }
  if (last < source.length) nodes.push(source.slice(last));
  return nodes;
}
