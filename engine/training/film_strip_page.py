"""A film strip as a page and as Markdown: a row a prompt, a column a checkpoint, what changed from one to the next visible."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from html import escape
from pathlib import Path

from engine.training.film_strip import Cell, Column, Prompt, Strip, is_right
from engine.training.whole_file import write_bytes

_MASK = re.compile(r"\[[sg]?MASK\]")
# What is compared: a word, or a single sign, as Chinese characters are.
_WORDS = re.compile(r"[A-Za-z0-9'’]+|.", re.DOTALL)
_LONGEST = 160  # characters of an answer in the Markdown table


def write(strip: Strip, run: Path) -> list[Path]:
    """Write film_strip.html and film_strip.md into a folder."""
    page, table = Path(run) / "film_strip.html", Path(run) / "film_strip.md"
    name = Path(run).resolve().name
    write_bytes(page, html(strip, name).encode())
    write_bytes(table, markdown(strip, name).encode())
    return [page, table]


def html(strip: Strip, name: str) -> str:
    """One file without a network. name: of the run."""
    head = "".join(f"<th>{_head(column, strip)}" for column in strip.columns)
    rows = []
    for number, prompt in enumerate(strip.prompts):
        cells = [column.cells[number] for column in strip.columns]
        before = [None, *cells]
        shown = "".join(_cell(prompt, cell, old) for cell, old in zip(cells, before, strict=False))
        wanted = "" if prompt.wanted is None else f"<br><small>wanted: {escape(prompt.wanted)}</small>"
        rows.append(f"<tr><th><small>{prompt.mode}</small> {escape(prompt.text)}{wanted}{shown}\n")
    left_out = "".join(f"<p>{escape(sentence)}</p>" for sentence in strip.left_out)
    title = escape(name)
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}: film strip</title>
<style>{_STYLE}</style>
<h1>{title}: the same prompts at {len(strip.columns)} checkpoints</h1>
<p>Temperature 0. <u>Underlined</u>: what the model filled in. <mark>Marked</mark>: new since the checkpoint before; an answer that
stayed the same is pale. ✓: has the wanted words.</p>{left_out}
<div class="strip"><table>
<thead><tr><th>prompt{head}</thead>
<tbody>
{"".join(rows)}</tbody>
</table></div>
</html>
"""


def markdown(strip: Strip, name: str) -> str:
    """A table; 〃 is the same answer as at the checkpoint before."""
    lines = [f"# {name}: the same prompts at {len(strip.columns)} checkpoints", ""]
    lines += ["Temperature 0. 〃: as at the checkpoint before. ✓: has the wanted words.", ""]
    lines += [f"| prompt | {' | '.join(_plain_head(column, strip) for column in strip.columns)} |"]
    lines += ["|---|" + "---|" * len(strip.columns)]
    for number, prompt in enumerate(strip.prompts):
        row, before = [f"{prompt.mode}: {_escaped(prompt.text)}"], None
        for column in strip.columns:
            cell = column.cells[number]
            tick = " ✓" if is_right(prompt, cell) else ""
            row.append(
                "〃"
                if cell == before
                else _escaped(cell.answer if cell.problem is None else f"({cell.problem})") + tick
            )
            before = cell
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join([*lines, "", *strip.left_out]).rstrip() + "\n"


def parts(prompt: Prompt, cell: Cell) -> list[tuple[str, bool]]:
    """The answer as (text, the model's own), in order; as one part where the fills are not found in their places."""
    if prompt.mode == "chat":
        return [(cell.answer, False)]
    literals = _MASK.split(prompt.text if _MASK.search(prompt.text) else prompt.text + "[gMASK]")
    found: list[tuple[str, bool]] = []
    rest = cell.answer
    for literal, fill in zip(literals, (*cell.fills, ""), strict=False):
        for text, own in ((literal, False), (fill, True)):
            if not rest.startswith(text):
                text = text.removeprefix(" ")  # it was there before the blank already
            if not rest.startswith(text):
                return [(cell.answer, False)]
            found += [(text, own)] if text else []
            rest = rest[len(text) :]
    return found if not rest else [(cell.answer, False)]


def _cell(prompt: Prompt, cell: Cell, before: Cell | None) -> str:
    if cell.problem is not None:
        return f'<td class="problem">{escape(cell.problem)}'
    words = [(word, own) for text, own in parts(prompt, cell) for word in _WORDS.findall(text)]
    new: set[int] = set()
    if before is not None and before != cell:
        old = _WORDS.findall(before.answer)
        compared = SequenceMatcher(None, old, [word for word, _ in words], autojunk=False).get_opcodes()
        new = {place for kind, _, _, first, last in compared if kind != "equal" for place in range(first, last)}
    shown = ""
    for place, (word, own) in enumerate(words):
        text = f"<u>{escape(word)}</u>" if own else escape(word)
        shown += f"<mark>{text}</mark>" if place in new else text
    # One mark or line over neighbours, not one a word.
    shown = shown.replace("</u></mark><mark><u>", "").replace("</u><u>", "").replace("</mark><mark>", "")
    tick = ' <b title="has the wanted words">✓</b>' if is_right(prompt, cell) else ""
    return f'<td{" class=same" if before == cell else ""}><div class="answer">{shown}{tick}</div>'


def _head(column: Column, strip: Strip) -> str:
    step = "" if column.step is None else f"step {column.step:,}"
    lines = [step if column.name != "model" else f"model<br>{step}" if step else "model"]
    lines += [] if column.loss is None else [f"loss {column.loss:.3f}"]
    wanted = sum(prompt.wanted is not None for prompt in strip.prompts)
    lines += [f"{column.right(strip.prompts)} of {wanted} ✓"] if wanted else []
    return f'{lines[0]}<br><small title="weights {column.weights_sha256}">{"<br>".join(lines[1:])}</small>'


def _plain_head(column: Column, strip: Strip) -> str:
    words = [column.name if column.name == "model" else ""] + ([] if column.step is None else [f"step {column.step:,}"])
    words += [] if column.loss is None else [f"loss {column.loss:.3f}"]
    wanted = sum(prompt.wanted is not None for prompt in strip.prompts)
    words += [f"{column.right(strip.prompts)} of {wanted} ✓"] if wanted else []
    return ", ".join(word for word in words if word)


def _escaped(text: str) -> str:
    """For a cell of a table: one line, and nothing that Markdown would read as its own."""
    text = " / ".join(line for line in text.splitlines() if line.strip())
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", text)


_STYLE = """
:root { color-scheme: light dark; --text: #1c2430; --dim: #68707c; --back: #fff; --line: #dfe3e8; --head: #f1f3f6;
  --new: #ffe9a8; --right: #218a3c; --wrong: #b04a4a }
@media (prefers-color-scheme: dark) { :root { --text: #e4e7ec; --dim: #98a1ad; --back: #14171c; --line: #303640;
  --head: #1f242c; --new: #5c4a12; --right: #57c776; --wrong: #e08a8a } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--text); background: var(--back); margin: 1.5rem }
h1 { font-size: 1.3rem; margin: 0 } p { color: var(--dim); max-width: 60rem }
.strip { overflow: auto; max-height: 88vh; border: 1px solid var(--line); border-radius: 8px }
table { border-collapse: separate; border-spacing: 0 }
th, td { padding: .45rem .6rem; border: solid var(--line); border-width: 0 1px 1px 0; vertical-align: top; text-align: left;
  min-width: 9rem; max-width: 20rem; overflow-wrap: anywhere }
.answer { white-space: pre-wrap; max-height: 9.5em; overflow: auto } small { color: var(--dim); font-weight: normal }
th { background: var(--head); font-weight: 600; position: sticky; z-index: 1 }
thead th { top: 0 } tbody th { left: 0; font-weight: normal; min-width: 13rem; max-width: 16rem }
thead th:first-child { left: 0; z-index: 2 }
mark { background: var(--new); color: inherit; border-radius: 3px } .same { color: var(--dim) } .problem { color: var(--wrong) }
u { text-decoration-thickness: 1px; text-underline-offset: 3px } td b { color: var(--right) }
"""
