"""The report of an ablation: report.md and report.html (the same text), report.png (loss, gradient norms, spikes). No torch.

Without matplotlib the text is written all the same, and says that the picture is missing.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from html import escape
from io import BytesIO
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from engine.training.ablation_rules import RULES, Cell, cells, embedding_ratio, growth, verdicts
from engine.training.curves import smoothed
from engine.training.whole_file import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TEXT, PAGE, PICTURE = "report.md", "report.html", "report.png"
_COLOURS = {
    "glm-130b": "tab:blue",
    "no-shrink": "tab:orange",
    "pre-ln": "tab:green",
    "post-ln": "tab:red",
    "fp16-softmax": "tab:purple",
}
_VARIANTS = (
    "glm-130b: the recipe. Post-LN with DeepNorm, a tenth of the gradient for the looked-up embeddings, softmax in fp32.",
    "no-shrink: the recipe with the embedding's whole gradient.",
    "pre-ln: the recipe with pre-LN and GPT-2's initialisation.",
    "post-ln: the recipe with plain post-LN: no scaled residual, Xavier's initialisation.",
    "fp16-softmax: the recipe with attention scores and softmax rounded to fp16, forward and backward, and a loss scale.",
)
_LIMITS = (
    "What this can't tell: all variants get the same learning rates, and the best one differs between norms; everything but that "
    "softmax is fp32, so overflow elsewhere, the main trouble of 130 billion parameters in fp16, has no place here; a run is "
    "minutes, not months, and rare spikes need many steps; AdamW divides a gradient's scale out, so that the shrink acts "
    "through the mix of the looked-up and the tied output's gradient and through clipping; a softmax's fp16 is emulated "
    "operation by operation on the CPU, not by a GPU's fused kernel."
)

# ("heading", text), ("text", text), ("list", lines), ("table", rows with the header first), ("picture", alternative)
Block = tuple[str, "str | list[str] | list[list[str]]"]


def write(results: list[dict], out: Path) -> list[Path]:
    """Write the report of at least one result into a folder; returns the files."""
    picture = _draw(results)
    blocks = _blocks(results, picture is not None)
    files = {TEXT: _markdown(blocks).encode(), PAGE: _html(blocks, picture).encode()}
    if picture is not None:
        files[PICTURE] = picture
    for name, data in files.items():
        write_bytes(out / name, data)
    return [out / name for name in files]


def _blocks(results: list[dict], pictured: bool) -> list[Block]:
    settings = results[0]["settings"]
    tokens = settings["rows"] * settings["length"]
    table = cells(results)
    sizes = {row["depth"]: row["parameters"] for row in results}
    counts = ", ".join(f"{size:,} ({depth} layers)" for depth, size in sorted(sizes.items()))
    seconds = sum(row["seconds"] for row in results)
    about = (
        f"{len(results)} runs of {settings['steps']} steps of {settings['rows']} x {settings['length']} = {tokens:,} tokens, "
        f"width {settings['hidden']}, {settings['heads']} heads, fp32, AdamW, {seconds / 60:.1f} minutes of training. "
        f"Parameters, the same in all variants: {counts}. Data: {settings['data']}."
    )
    found = verdicts(results)
    return [
        ("heading", "GLM-130B's choices for stability, at small scale"),
        ("text", about),
        ("list", list(_VARIANTS)),
        ("heading", "Which claim shows here"),
        ("table", [["claim (arXiv 2210.02414)", "here", "numbers"], *([each.claim, each.verdict, each.why] for each in found)]),
        ("text", "* marks a difference that counts by the rules below."),
        ("heading", "Runs"),
        ("table", _run_table(table)),
        ("text", "final loss: mean +- standard deviation over the seeds. embedding / layers: gradient norms, early, mean over "
                 "seeds; of a shrunk gradient after the shrink. last / first: root mean squares of the hidden states."),
        ("picture", "Loss, gradient norms and spikes"
         if pictured else "The picture was not drawn: matplotlib is not installed."),
        ("heading", "Rules"),
        ("list", list(RULES)),
        ("heading", "Limits"),
        ("text", _LIMITS),
    ]  # fmt: skip


def _run_table(table: dict[tuple[int, float], dict[str, Cell]]) -> list[list[str]]:
    rows = [
        ["layers", "rate", "variant", "seeds", "final loss", "spikes", "diverged", "stuck", "updates left out",
         "embedding / layers", "last / first", "largest score"]
    ]  # fmt: skip
    for (depth, rate), variants in table.items():
        for name, cell in variants.items():
            losses = cell.losses
            spread = f" +- {stdev(losses):.4f}" if len(losses) > 1 else ""
            rows.append([
                str(depth), f"{rate:g}", name, str(len(cell.runs)), f"{fmean(losses):.4f}{spread}" if losses else "none",
                str(cell.spikes), str(cell.diverged), str(cell.stuck), str(sum(run["skipped"] for run in cell.runs)),
                f"{fmean(map(embedding_ratio, cell.runs)):.3g}", f"{fmean(map(growth, cell.runs)):.3g}",
                f"{max(run['largest_score'] or float('inf') for run in cell.runs):.4g}",
            ])  # fmt: skip
    return rows


def _markdown(blocks: list[Block]) -> str:
    parts, level = [], "#"
    for kind, value in blocks:
        if kind == "heading":
            parts.append(f"{level} {value}")
            level = "##"
        elif kind == "list":
            parts.append("\n".join(f"- {line}" for line in value))
        elif kind == "table":
            head, *rows = value
            lines = [head, ["---"] * len(head), *rows]
            parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
        elif kind == "picture" and "not drawn" not in value:
            parts.append(f"![{value}]({PICTURE})")
        else:
            parts.append(str(value))
    return "\n\n".join(parts) + "\n"


def _html(blocks: list[Block], picture: bytes | None) -> str:
    parts, level = [], 1
    for kind, value in blocks:
        if kind == "heading":
            parts.append(f"<h{level}>{escape(str(value))}</h{level}>")
            level = 2
        elif kind == "list":
            parts.append("<ul>" + "".join(f"<li>{escape(line)}</li>" for line in value) + "</ul>")
        elif kind == "table":
            head, *rows = value
            cells_of = [f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows]
            top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
            parts.append(f"<div><table><tr>{top}</tr>\n{chr(10).join(cells_of)}</table></div>")
        elif kind == "picture" and picture is not None:
            data = base64.b64encode(picture).decode()
            parts.append(f'<img src="data:image/png;base64,{data}" alt="{escape(str(value))}">')
        else:
            parts.append(f"<p>{escape(str(value))}</p>")
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(str(blocks[0][1]))}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }}
div {{ overflow-x: auto; }}
table {{ border-collapse: collapse; }}
td, th {{ border: 1px solid #8886; padding: .2rem .5rem; text-align: left; vertical-align: top; }}
img {{ max-width: 100%; background: white; }}
</style>
{chr(10).join(parts)}
</html>
"""


def _draw(results: list[dict]) -> bytes | None:
    """A row of panels for every cell, then the runs that went wrong; None without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    table = cells(results)
    rows = len(table) + 1
    figure = Figure(figsize=(13, 3.4 * rows))
    for number, ((depth, rate), variants) in enumerate(table.items()):
        where = f"{depth} layers, rate {rate:g}"
        left, right = figure.add_subplot(rows, 2, 2 * number + 1), figure.add_subplot(rows, 2, 2 * number + 2)
        _draw_losses(left, variants)
        left.set_title(f"Loss: {where} (thick: mean over seeds, smoothed)", fontsize=9)
        _draw_norms(right, variants)
        right.set_title(f"Gradient norm: {where} (median over seeds)", fontsize=9)
        for axes in (left, right):
            axes.set_xlabel("step", fontsize=8)
            axes.tick_params(which="both", labelsize=8)
            axes.legend(fontsize=6.5, loc="best", ncols=2)
    left, right = figure.add_subplot(rows, 2, 2 * rows - 1), figure.add_subplot(rows, 2, 2 * rows)
    _draw_shares(left, table, lambda cell: cell.events)
    left.set_title("Runs with a spike, or diverged", fontsize=9)
    _draw_shares(right, table, lambda cell: cell.stuck)
    right.set_title("Runs that were stuck", fontsize=9)
    figure.tight_layout()
    buffer = BytesIO()
    figure.savefig(buffer, dpi=90, format="png")
    return buffer.getvalue()


def _draw_losses(axes: Axes, variants: dict[str, Cell]) -> None:
    for name, cell in variants.items():
        for run in cell.runs:
            losses = _gaps(run["curves"]["loss"])
            axes.plot(range(1, len(losses) + 1), losses, color=_colour(name), linewidth=0.4, alpha=0.3)
        means = _over_seeds(cell, "loss", fmean)
        window = max(1, len(means) // 20)
        drawn = _gaps(smoothed(means, window, after=window // 2))
        style = "--" if name == "fp16-softmax" else "-"  # it may lie on the recipe's own curve
        axes.plot(range(1, len(drawn) + 1), drawn, style, color=_colour(name), linewidth=1.5, label=name)
    axes.set_ylabel("cross-entropy", fontsize=8)


def _draw_norms(axes: Axes, variants: dict[str, Cell]) -> None:
    axes.set_yscale("log")
    for name in [each for each in ("glm-130b", "no-shrink") if each in variants] or list(variants)[:2]:
        for key, style, label in (
            ("embedding", "-", "embedding"),
            ("lookup", ":", "its lookups"),
            ("layer_median", "--", "median layer"),
        ):
            values = _gaps(_over_seeds(variants[name], key, _middle))
            axes.plot(
                range(1, len(values) + 1), values, style, color=_colour(name), linewidth=1, label=f"{name}: {label}"
            )
    axes.set_ylabel("norm before clipping", fontsize=8)


def _draw_shares(axes: Axes, table: dict[tuple[int, float], dict[str, Cell]], bad: Callable[[Cell], int]) -> None:
    """Percent of the runs of each cell that `bad` counts at least one of."""
    names = list(dict.fromkeys(name for variants in table.values() for name in variants))
    width, highest = 0.8 / len(names), 0.0
    for number, name in enumerate(names):
        shares = [_share(variants[name], bad) if name in variants else 0.0 for variants in table.values()]
        highest = max(highest, *shares)
        places = [place + (number - (len(names) - 1) / 2) * width for place in range(len(table))]
        axes.bar(places, shares, width, color=_colour(name), label=name)
    if not highest:
        axes.text(0.5, 0.5, "none", ha="center", va="center", transform=axes.transAxes, color="gray")
    axes.set_xticks(range(len(table)), [f"{depth} layers, {rate:g}" for depth, rate in table], fontsize=7)
    axes.tick_params(axis="y", labelsize=8)
    axes.set_ylim(0, 130)  # room for the legend
    axes.set_ylabel("percent of the runs", fontsize=8)
    axes.legend(fontsize=6.5, ncols=len(names), loc="upper center")


def _share(cell: Cell, bad: Callable[[Cell], int]) -> float:
    found = [run for run in cell.runs if bad(Cell(cell.variant, cell.depth, cell.rate, [run]))]
    return 100 * len(found) / len(cell.runs)


def _over_seeds(cell: Cell, key: str, join: Callable[[list[float]], float]) -> list[float | None]:
    """A curve of the cell: what `join` makes of the seeds' values of a step."""
    curves = [run["curves"][key] for run in cell.runs]
    found: list[float | None] = []
    for step in range(max(map(len, curves))):
        values = [curve[step] for curve in curves if step < len(curve) and curve[step] is not None]
        found.append(join(values) if values else None)
    return found


def _middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _gaps(values: list[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def _colour(name: str) -> str:
    return _COLOURS.get(name, "tab:gray")
