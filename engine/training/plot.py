"""Draw a run from its metrics.jsonl: a picture (PNG, by matplotlib) and a page (HTML that needs neither matplotlib nor a network).

    plot.draw(folder)        # writes training.html and training.png; at any time, also while the run goes on

Both show the panels of panels.py. Stages are shaded, events marked.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import GLMError
from engine.training.curves import METRICS, SMOOTH, Curves, read, smoothed
from engine.training.panels import Panel, mark_places, panels, smoothing_window, summary
from engine.training.plot_page import page
from engine.training.whole_file import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAGE, PICTURE = "training.html", "training.png"

_COLOURS = ("tab:blue", "tab:orange")
_EVENT_COLOURS = {"rewind": "tab:red", "spike": "tab:red", "resumed": "tab:green"}
_OTHER_EVENT = "tab:purple"


def draw(folder: Path) -> list[Path]:
    """Write the page and the picture into a run folder. GLMError bad_data without metrics.jsonl; unsupported without
    matplotlib, and then the page is there nevertheless."""
    folder = Path(folder)
    curves = read(folder / METRICS)
    name = folder.resolve().name
    return [draw_page(curves, folder / PAGE, name), draw_picture(curves, folder / PICTURE, name)]


def draw_page(curves: Curves, path: Path, name: str) -> Path:
    """Write the HTML file. name: of the run, its title."""
    write_bytes(path, page(curves, name).encode())
    return path


def draw_picture(curves: Curves, path: Path, name: str) -> Path:
    """Write the PNG. GLMError unsupported without matplotlib."""
    figure = _figure(12, 9.5)
    shown = panels(curves)
    rows = (len(shown) + 1) // 2
    for number, panel in enumerate(shown):
        _draw_panel(figure.add_subplot(rows, 2, number + 1), panel, curves, words=number < 2)
    means = f"thick: means of {smoothing_window(len(curves.steps))} steps"
    figure.suptitle(f"{name}\n{summary(curves)}\n{means}", fontsize=10, parse_math=False)
    figure.tight_layout()
    _save(figure, path)
    return path


def draw_loss(curves: Curves, path: Path) -> None:
    """Write the loss over training tokens alone, for a model card. GLMError unsupported without matplotlib."""
    figure = _figure(7, 3.5)
    axes = figure.add_subplot()
    millions = [tokens / 1e6 for tokens in curves.tokens]
    losses = curves.get("loss")
    axes.plot(millions, _gaps(losses), linewidth=0.4, alpha=0.4, color="tab:blue")
    label = f"loss (mean of {SMOOTH} steps)"
    axes.plot(millions, _gaps(smoothed(losses, SMOOTH)), linewidth=1.5, color="tab:blue", label=label)
    top = max((loss for loss in losses if loss is not None), default=1.0)
    for stage, first, _ in curves.spans[1:]:
        axes.axvline(millions[first], color="gray", linewidth=0.8, linestyle="--")
        place = (millions[first], top * 0.9)
        axes.annotate(stage, place, xytext=(4, 0), textcoords="offset points", fontsize=8, parse_math=False)
    axes.set_xlabel("million tokens read")
    axes.set_ylabel("cross-entropy per target token")
    axes.legend(fontsize=8)
    figure.tight_layout()
    _save(figure, path)


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        message = "matplotlib is not installed, which pictures (PNG) are drawn with: pip install matplotlib."
        raise GLMError("unsupported", message, field="picture") from error
    return Figure(figsize=(width, height))  # without pyplot: no window, nothing left in memory


def _save(figure: Figure, path: Path) -> None:
    from io import BytesIO

    buffer = BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    write_bytes(path, buffer.getvalue())


def _draw_panel(axes: Axes, panel: Panel, curves: Curves, words: bool) -> None:
    """words: stages and events have their names."""
    low, high = panel.limits()
    if panel.log:
        axes.set_yscale("log")
    axes.set_ylim(low, high)
    for number, (stage, first, last) in enumerate(curves.spans):
        edge = panel.x[last + 1] if last + 1 < len(panel.x) else panel.x[last]
        axes.axvspan(panel.x[first], edge, color="black", alpha=0.03 + 0.05 * (number % 2), linewidth=0)
        # An offset from the top edge, in points; many short stages would write over each other.
        if words and len(curves.spans) <= 6:
            place = (panel.x[first], 1)
            axes.annotate(stage, place, xycoords=("data", "axes fraction"), xytext=(3, -9),
                          textcoords="offset points", fontsize=7, color="gray", parse_math=False)  # fmt: skip
    for line, colour in zip(panel.lines, _COLOURS, strict=False):
        if line.smooth is not None:
            axes.plot(panel.x, _gaps(line.values), linewidth=0.5, alpha=0.4, color=colour)
        drawn = line.values if line.smooth is None else line.smooth
        axes.plot(panel.x, _gaps(drawn), linewidth=1.4, color=colour, label=line.name)
    if panel.points:
        x, y = zip(*panel.points, strict=True)
        axes.scatter(x, y, s=5, color="tab:red", alpha=0.5, linewidths=0, label="given up by a rewind")
    for event, x in mark_places(curves, panel):
        if event.kind == "skip":
            axes.plot([x, x], [0, 0.04], color="tab:gray", linewidth=0.8, transform=axes.get_xaxis_transform())
        else:
            colour = _EVENT_COLOURS.get(event.kind, _OTHER_EVENT)
            axes.axvline(x, color=colour, linewidth=0.9, linestyle="--", alpha=0.8)
            if words:
                axes.annotate(event.kind, (x, 0.85), xycoords=("data", "axes fraction"), xytext=(2, 0), rotation=90,
                              textcoords="offset points", fontsize=6.5, color=colour, va="top", parse_math=False)  # fmt: skip
    if not panel.has_values:
        axes.text(0.5, 0.5, "no values", ha="center", va="center", transform=axes.transAxes, color="gray")
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlabel(panel.x_name, fontsize=8)
    axes.set_ylabel(panel.unit, fontsize=8)
    axes.tick_params(which="both", labelsize=8)
    if panel.x:
        axes.set_xlim(panel.x[0], panel.x[-1] if panel.x[-1] > panel.x[0] else panel.x[0] + 1)
    if panel.points or len(panel.lines) > 1:
        axes.legend(fontsize=7, loc="best")


def _gaps(values: list[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]
