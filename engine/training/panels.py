"""The panels that show a run: which curves, over what, on which scale. No torch, no matplotlib."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

from engine.training.curves import SMOOTH, Curves, Event, Values, smoothed


@dataclass(frozen=True, slots=True)
class Line:
    """A curve. smooth: its mean over the steps around, drawn over it; None for one that is smooth by itself."""

    name: str
    values: Values
    smooth: Values | None = None


@dataclass(frozen=True, slots=True)
class Panel:
    """x: of each step, "step" or "million tokens read". points: loose (x, y) beside the lines."""

    title: str
    unit: str
    x_name: str
    x: list[float]
    lines: list[Line]
    log: bool = False
    points: tuple[tuple[float, float], ...] = ()

    @property
    def has_values(self) -> bool:
        return any(value is not None for line in self.lines for value in line.values)

    def limits(self) -> tuple[float, float]:
        """Of the vertical axis: all values, but for single ones that are so far above that the rest would be a flat line."""
        shown = [value for line in self.lines for value in line.values if value is not None]
        if self.log:
            positive = [value for value in shown if value > 0] or [1.0]
            low, high = math.log10(min(positive)), math.log10(max(positive))
            margin = max(0.05 * (high - low), 0.1)
            return 10 ** (low - margin), 10 ** (high + margin)
        if not shown:
            return 0.0, 1.0
        shown.sort()
        low, high, most = shown[0], shown[-1], shown[int(0.99 * (len(shown) - 1))]
        if high - low > 3 * (most - low) > 0:
            high = most + 0.2 * (most - low)
        margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        return low - margin, high + margin


def panels(curves: Curves) -> list[Panel]:
    """What is drawn of a run: six panels or so, without those that it has no numbers for."""
    window = smoothing_window(len(curves.steps))
    steps = [float(step) for step in curves.steps]
    millions = [tokens / 1e6 for tokens in curves.tokens]

    def rough(name: str, values: Values) -> Line:
        return Line(name, values, smoothed(values, window, after=window // 2))

    loss = rough("loss", curves.get("loss"))
    unit = "cross-entropy per target token"
    share = curves.get("peak_share")
    norms = [("all", "gradient_norm"), ("embedding", "embedding_gradient_norm")]
    made = [
        Panel("Loss over steps", unit, "step", steps, [loss], points=tuple((float(a), b) for a, b in curves.given_up)),
        Panel("Loss over tokens", unit, "million tokens read", millions, [loss]),
        Panel("Learning rate", "share of its peak", "step", steps, [Line("share", curves.get("learning_rate_share"))]),
        Panel("Gradient norm", "before clipping", "step", steps,
              [rough(name, curves.get(key)) for name, key in norms if key in curves.values], log=True),
        Panel("Speed", "tokens a second", "step", steps, [rough("tokens/s", curves.speed)]),
        Panel("Share of the matmul peak", "percent", "step", steps,
              [rough("%", [None if value is None else 100 * value for value in share])]),
        Panel("Loss scale", "of fp16", "step", steps, [Line("scale", curves.get("loss_scale"))], log=True),
    ]  # fmt: skip
    always = 5
    return [panel for number, panel in enumerate(made) if number < always or panel.has_values]


def smoothing_window(steps: int) -> int:
    """Steps of the mean that is drawn: more for longer runs, of which a step is less than a pixel."""
    return min(max(SMOOTH, steps // 100), 1000)


def mark_places(curves: Curves, panel: Panel) -> list[tuple[Event, float]]:
    """Events and where they are on a panel's x; none for a run without steps."""
    if not curves.steps:
        return []
    last = len(curves.steps) - 1
    return [(event, panel.x[min(bisect_left(curves.steps, event.step), last)]) for event in curves.events]


def summary(curves: Curves) -> str:
    """A run in a line."""
    totals = curves.totals()
    kinds: dict[str, int] = {}
    for event in curves.events:
        kinds[event.kind] = kinds.get(event.kind, 0) + 1
    parts = [
        f"{totals['steps']:,} steps",
        f"{totals['tokens'] / 1e6:,.2f} million tokens",
        f"{totals['hours']:g} hours",
    ]
    if totals["last_loss"] is not None:
        parts.append(f"loss {totals['last_loss']:g} (mean of the last {SMOOTH} steps)")
    parts += [f"{count} × {kind}" for kind, count in kinds.items()]
    parts += [f"lines that can't be read: {curves.unreadable}"] if curves.unreadable else []
    return ", ".join(parts)
