"""What the server measures of its own speed, without a model."""

from __future__ import annotations

import pytest

from engine.glm.blanks import Prompt
from engine.serving.pace import Average, Length, Line, Pace
from engine.serving.protocol import Finished, Request, Result, Sampling
from engine.serving.stream import Stream


def test_nothing_measured_is_none_and_no_guess() -> None:
    pace = Pace()
    assert pace.reading_seconds(10) is None and pace.decoding_seconds(10) is None and pace.held_seconds is None
    assert pace.length("chat", 256) == 256
    pace.note(prompt_tokens=10, reading=0.1, steps=0, decoding=0.0)  # one token: nothing is known of the steps
    assert pace.reading_seconds(10) == pytest.approx(0.1) and pace.decoding_seconds(10) is None


def test_reading_is_a_start_and_so_much_for_each_token() -> None:
    line = Line()
    for amount in (10, 500, 40, 2000, 100):
        line.add(amount, 0.02 + 0.001 * amount)
    for amount in (0, 10, 300, 4000):
        assert line.at(amount) == pytest.approx(0.02 + 0.001 * amount)


def test_prompts_of_one_length_say_how_long_others_take_in_proportion() -> None:
    line = Line()
    for _ in range(20):
        line.add(50, 0.5)
    assert line.at(50) == pytest.approx(0.5) and line.at(100) == pytest.approx(1.0)


def test_no_estimate_is_negative() -> None:
    falling, late = Line(), Line()
    for amount, seconds in ((10, 1.0), (1000, 0.1)):
        falling.add(amount, seconds)
    for amount, seconds in ((100, 0.001), (200, 1.0)):
        late.add(amount, seconds)
    for amount in (0, 1, 10, 1000, 10**6):
        assert falling.at(amount) > 0 and late.at(amount) >= 0
    assert falling.at(10) == falling.at(1000)  # more to read is never less work
    assert late.at(400) > late.at(200)


def test_the_last_values_count_most() -> None:
    average, line = Average(), Line()
    for seconds in [1.0] * 100 + [2.0] * 100:
        average.add(seconds)
        line.add(10, seconds)
    assert average.value == pytest.approx(2.0, abs=0.01) and line.at(10) == pytest.approx(2.0, abs=0.02)


def test_an_answer_that_was_cut_off_would_have_been_longer() -> None:
    length = Length()
    length.add(5, ended=False)
    assert length.mean is None
    for _ in range(400):
        length.add(30, ended=True)
    assert length.mean == pytest.approx(30)
    for number in range(400):  # half of them are cut at 10
        length.add(10 if number % 2 else 30, ended=number % 2 == 0)
    assert length.mean == pytest.approx(40, rel=0.05)


def test_lengths_are_those_of_their_kind_and_never_above_what_is_allowed() -> None:
    pace = Pace()
    for _ in range(20):
        pace.note_length("chat", 40, ended=True)
        pace.note_length("[MASK]", 3, ended=True)
    assert (pace.length("chat", 256), pace.length("[MASK]", 32)) == (pytest.approx(40), pytest.approx(3))
    assert pace.length("chat", 8) == 8 and pace.length("[gMASK]", 256) == 256


def test_beams_have_a_pace_of_their_own() -> None:
    pace = Pace()
    pace.note(prompt_tokens=10, reading=0.1, steps=10, decoding=1.0)
    assert pace.decoding_seconds(21) == pytest.approx(2.0) and pace.decoding_seconds(21, beams=True) is None
    pace.note(prompt_tokens=10, reading=0.1, steps=10, decoding=8.0, beams=True)
    assert pace.decoding_seconds(21) == pytest.approx(2.0)
    assert pace.decoding_seconds(21, beams=True) == pytest.approx(16.0)


def test_a_finished_request_is_measured_by_its_longest_answer() -> None:
    prompt = Prompt(tuple(range(7)), tuple(range(7)), 6, 7, 1)
    stream = Stream(Request("a", prompt, Sampling(seed=1, max_new_tokens=9), alternatives=2))
    stream.given_at, stream.first_text_at = 100.0, 100.5
    short = Result((5,), (-1.0,), ("a",), "stop", -0.5)
    long = Result((5, 6, 7, 8), (-1.0,) * 4, ("a",) * 4, "stop", -0.5)
    pace = Pace()
    pace.note_finished(stream, Finished("a", (short, long), 2), now=102.5)
    assert pace.reading_seconds(7) == pytest.approx(0.5)
    assert pace.decoding_seconds(2) == pytest.approx(
        0.5
    )  # two seconds for the three tokens and the end behind the first
    assert pace.held_seconds == pytest.approx(2.5)
    stream.first_text_at = 99.0  # of a try before this one
    again = Pace()
    again.note_finished(stream, Finished("a", (short, long), 2), now=102.5)
    assert again.reading_seconds(7) == pytest.approx(0.0)
