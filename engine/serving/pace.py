"""How fast this server has been lately, measured from the requests that it finished, and what it expects by that. Torch-free.

    pace.note(prompt_tokens=40, reading=0.02, steps=17, decoding=0.3)     # a finished request
    pace.note_length("chat", 18, ended=True)                              # a finished answer
    pace.reading_seconds(400), pace.decoding_seconds(60), pace.length("chat", most=256)

All averages forget: the last requests count most, so that they follow the load and the kind of work. What was never measured
is None, not a guess.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.serving.protocol import Finished
    from engine.serving.stream import Stream

MEMORY = 0.95  # what is left of a measurement's weight when the next one comes


class Average:
    """A running mean that forgets; None before the first value."""

    __slots__ = ("value", "_memory")

    def __init__(self, memory: float = 0.9) -> None:
        self.value: float | None = None
        self._memory = memory

    def add(self, value: float) -> None:
        self.value = value if self.value is None else self._memory * self.value + (1 - self._memory) * value


class Line:
    """Seconds as a straight line over an amount, a start and so much for each: fitted by least squares to the last values.

    Neither part is ever negative: where the values would say so, the other part alone is fitted.
    """

    __slots__ = ("_n", "_x", "_y", "_xx", "_xy")

    def __init__(self) -> None:
        self._n = self._x = self._y = self._xx = self._xy = 0.0

    def add(self, amount: float, seconds: float) -> None:
        sums = (1.0, amount, seconds, amount * amount, amount * seconds)
        before = (self._n, self._x, self._y, self._xx, self._xy)
        now = (MEMORY * old + new for old, new in zip(before, sums, strict=True))
        self._n, self._x, self._y, self._xx, self._xy = now

    def at(self, amount: float) -> float | None:
        """None before the first value."""
        if not self._n:
            return None
        spread = self._n * self._xx - self._x * self._x
        if (
            spread <= 1e-6 * self._n * self._xx
        ):  # amounts nearly the same tell nothing of how the seconds grow with them
            return self._through_zero(amount)
        slope = (self._n * self._xy - self._x * self._y) / spread
        if slope < 0:
            return self._y / self._n
        start = (self._y - slope * self._x) / self._n
        return self._through_zero(amount) if start < 0 else start + slope * amount

    def _through_zero(self, amount: float) -> float:
        return self._xy / self._xx * amount if self._xx else self._y / self._n


class Length:
    """How long answers of a kind are. One that was cut off would have been longer: all tokens are shared out among the
    answers that came to their own end, which is the mean of lengths of which some are only known to be at least so long."""

    __slots__ = ("_tokens", "_ended")

    def __init__(self) -> None:
        self._tokens = self._ended = 0.0

    def add(self, tokens: int, ended: bool) -> None:
        self._tokens = MEMORY * self._tokens + tokens
        self._ended = MEMORY * self._ended + ended

    @property
    def mean(self) -> float | None:
        """None while none has come to its own end."""
        return self._tokens / self._ended if self._ended else None


class Pace:
    """What a pool has measured. Beam searches have a pace of their own: a step of theirs has many rows."""

    def __init__(self) -> None:
        self._reading = Line()
        self._steps = {False: Average(), True: Average()}  # seconds of one step, without and with beams
        self._held = Average()  # seconds that a request keeps its slots
        self._lengths: dict[str, Length] = {}

    def note(self, *, prompt_tokens: int, reading: float, steps: int, decoding: float, beams: bool = False) -> None:
        """A finished request. reading: seconds until its first token; steps: further tokens of its longest answer, which
        took `decoding` seconds."""
        self._held.add(reading + decoding)
        self._reading.add(prompt_tokens, reading)
        if steps > 0:
            self._steps[beams].add(decoding / steps)

    def note_finished(self, stream: Stream, end: Finished, now: float) -> None:
        """`note` for a request that a replica has finished, now by time.monotonic()."""
        assert stream.given_at is not None
        # A first token of an earlier try, on a replica that died, is not this try's.
        first = now if stream.first_text_at is None else max(stream.first_text_at, stream.given_at)
        self.note(
            prompt_tokens=len(stream.request.prompt.ids),
            reading=first - stream.given_at,
            steps=max(len(result.ids) + (result.end_logprob is not None) for result in end.results) - 1,
            decoding=now - first,
            beams=stream.request.sampling.beams is not None,
        )

    def note_length(self, kind: str, tokens: int, *, ended: bool) -> None:
        """A finished answer. kind: of its mask, or "chat"; ended: not cut off by a limit."""
        self._lengths.setdefault(kind, Length()).add(tokens, ended)

    @property
    def held_seconds(self) -> float | None:
        """How long a request keeps its slots."""
        return self._held.value

    def reading_seconds(self, prompt_tokens: int) -> float | None:
        """From the beginning of a prompt to its first token."""
        return self._reading.at(prompt_tokens)

    def decoding_seconds(self, tokens: float, *, beams: bool = False) -> float | None:
        """From the first token of an answer of so many to its last."""
        step = self._steps[beams].value
        return None if step is None else step * max(0.0, tokens - 1)

    def length(self, kind: str, most: int) -> float:
        """How many tokens an answer is likely to get of those that it may: all of them while nothing is known."""
        known = self._lengths.get(kind)
        mean = known.mean if known is not None else None
        return float(most) if mean is None else min(mean, float(most))
