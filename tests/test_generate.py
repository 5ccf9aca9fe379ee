"""complete, chat, fill and score through a real worker process."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from engine.errors import GLMError
from engine.glm import blanks
from engine.glm.config import CHAT
from engine.glm.filling import Filling
from engine.glm.tokenizer import Tokenizer
from engine.serving import protocol
from engine.serving.estimate import estimate
from engine.serving.events import (
    Alternative,
    Blank,
    Cancelled,
    Delta,
    Done,
    Error,
    Event,
    Queued,
    Started,
    TokenText,
    Usage,
)
from engine.serving.generate import chat, chat_job, complete, complete_job, fill, fill_job, score
from engine.serving.pool import Pool
from engine.serving.protocol import Sampling
from engine.serving.run import Run
from engine.serving.run_job import DEFAULT_NEW_TOKENS, Job
from tests.lively import make_lively_model

pytestmark = pytest.mark.asyncio(loop_scope="module")

DEADLINE = 90.0
POSITIONS = 256
SHORT = Sampling(seed=5, max_new_tokens=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, vocabulary_file: Path) -> Path:
    return make_lively_model(tmp_path_factory.mktemp("lively"), vocabulary_file, positions=POSITIONS)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool(folder: Path) -> AsyncIterator[Pool]:
    async with Pool(folder, threads=1, slots=16, queue=100) as pool:
        yield pool


async def collect(run: Run) -> list[Event]:
    """All events, checked for what holds for every run."""
    async with asyncio.timeout(DEADLINE):
        events = [event async for event in run]
    kinds = [type(event) for event in events]
    assert [event.terminal for event in events] == [False] * (len(events) - 1) + [True]
    if kinds[-1] is Done:
        assert kinds.count(Started) == 1 and kinds.index(Started) == kinds.count(Queued)
    for blank in (event for event in events if isinstance(event, Blank)):
        assert blank.text == blank.alternatives[0].text == "".join(token.text for token in blank.tokens)
        deltas = [event for event in events if isinstance(event, Delta) and event.blank == blank.index]
        for number, alternative in enumerate(blank.alternatives):
            if alternative.finish_reason != "scored":
                assert "".join(delta.text for delta in deltas if delta.alternative == number) == alternative.text
    return events


async def done(run: Run) -> Done:
    event = (await collect(run))[-1]
    assert isinstance(event, Done), event
    return event


def blanks_of(events: list[Event]) -> list[Blank]:
    return [event for event in events if isinstance(event, Blank)]


async def test_fill_every_mask_of_every_kind(pool: Pool, tokenizer: Tokenizer) -> None:
    text = "The [MASK] of Japan, [sMASK] is [MASK]. [gMASK]"
    events = await collect(fill(pool, tokenizer, text, SHORT))
    blanks = blanks_of(events)
    assert [blank.index for blank in blanks] == [0, 1, 2, 3]
    a, b, c, d = (blank.text for blank in blanks)
    end = events[-1]
    assert isinstance(end, Done) and end.text == f"The {a} of Japan, {b} is {c}. {d}"
    assert end.seed == 5 and end.fingerprint == pool.limits.fingerprint()
    assert end.usage.new_tokens == sum(len(blank.ids) for blank in blanks)
    assert end.usage.largest_batch == 1 and end.usage.seconds > 0 and end.usage.first_token_seconds > 0
    assert len({a, b, c, d}) == 4  # each blank has a seed of its own


async def test_the_next_blank_reads_the_fills_before_it(pool: Pool, tokenizer: Tokenizer) -> None:
    """Filling two blanks is filling one, then, in the text with that fill, the other."""
    greedy, checked = Sampling(temperature=0, max_new_tokens=1, min_new_tokens=1), 0
    for start in "一二三四五六七八九十":
        first, second = blanks_of(await collect(fill(pool, tokenizer, f"{start}[MASK]大[MASK]小", greedy)))
        text = f"{start}{first.text}大"
        tokens = [*tokenizer.encode_plain(start), *first.ids, *tokenizer.encode_plain("大")]
        if tokenizer.encode_plain(text) == tokens:  # else the text has other tokens than those that were made
            checked += 1
            [again] = blanks_of(await collect(fill(pool, tokenizer, f"{text}[MASK]小", greedy)))
            assert again.ids == second.ids
            assert again.tokens[0].logprob == pytest.approx(second.tokens[0].logprob, abs=1e-4)
    assert checked >= 3


async def test_a_text_without_masks_gets_one_at_its_end(pool: Pool, tokenizer: Tokenizer) -> None:
    filled = await done(fill(pool, tokenizer, "Once upon a time", SHORT))
    completed = await done(complete(pool, tokenizer, "Once upon a time", SHORT))
    assert filled.text == "Once upon a time" + completed.text
    masked = await done(complete(pool, tokenizer, "Once upon a time[gMASK]", SHORT))
    assert masked.text == completed.text


async def test_spaces_are_neither_lost_nor_doubled(pool: Pool, tokenizer: Tokenizer) -> None:
    for text in ("The capital of [MASK] is", "The capital of[MASK] is", "[MASK] is", "床前[MASK]光"):
        for seed in range(6):
            events = await collect(fill(pool, tokenizer, text, Sampling(seed=seed, max_new_tokens=3)))
            [blank] = blanks_of(events)
            assert events[-1].text == text.replace("[MASK]", blank.text)
            assert "  " not in events[-1].text or "  " in tokenizer.decode(blank.ids, first_of_text=False)


async def test_sixteen_at_once_run_in_one_batch_and_get_what_they_get_alone(pool: Pool, tokenizer: Tokenizer) -> None:
    def start(number: int) -> Run:
        sampling = Sampling(temperature=[1.0, 0.8, 0.0][number % 3], top_p=[1.0, 0.9][number % 2], seed=number,
                            max_new_tokens=60, min_new_tokens=60)  # fmt: skip
        text = f"Number {number} says that [{'g' * (number % 2)}MASK]" + " and so on." * (number % 4)
        return fill(pool, tokenizer, text, sampling)

    together = await asyncio.gather(*(collect(start(number)) for number in range(16)))
    assert {events[-1].usage.largest_batch for events in together} == {16}
    for number, events in enumerate(together):
        alone = await collect(start(number))
        assert [blank.ids for blank in blanks_of(alone)] == [blank.ids for blank in blanks_of(events)]
        assert alone[-1].text == events[-1].text and alone[-1].usage.largest_batch == 1
    assert len({events[-1].text for events in together}) == 16


async def test_alternatives_come_from_one_reading(pool: Pool, tokenizer: Tokenizer) -> None:
    events = await collect(fill(pool, tokenizer, "A [MASK] b [MASK].", SHORT, 4))
    for blank in blanks_of(events):
        assert len({alternative.text for alternative in blank.alternatives}) == 4
        total = sum(token.logprob for token in blank.tokens)
        if blank.alternatives[0].finish_reason == "length":
            assert blank.alternatives[0].logprob == pytest.approx(total)
        else:  # the end token counts too
            assert blank.alternatives[0].logprob < total
    single = await collect(fill(pool, tokenizer, "A [MASK] b [MASK].", SHORT))
    assert [blank.ids for blank in blanks_of(single)] == [blank.ids for blank in blanks_of(events)]
    assert events[-1].text == single[-1].text and events[-1].usage.largest_batch == 4
    assert events[-1].usage.prompt_tokens == single[-1].usage.prompt_tokens


async def test_stop_strings(pool: Pool, tokenizer: Tokenizer) -> None:
    """A stop string taken from the middle of a text ends the same text before it, wherever the tokens' borders are."""
    free = Sampling(seed=11, max_new_tokens=40, min_new_tokens=40)
    whole = await collect(complete(pool, tokenizer, "Say", free))
    text, pieces = whole[-1].text, [token.text for token in blanks_of(whole)[0].tokens]
    assert len(text) > 30
    border = len("".join(pieces[:15]))
    for start, end in ((border - 1, border + 2), (border, border + 1), (3, 6)):
        stop = text[start:end]
        events = await collect(
            complete(pool, tokenizer, "Say", Sampling(seed=11, max_new_tokens=40, min_new_tokens=40, stop=(stop,)))
        )
        assert events[-1].finish_reason == "stop_string"
        assert events[-1].text == text[: text.index(stop)]
        assert events[-1].usage.new_tokens < 40
    two = await collect(
        fill(pool, tokenizer, "x [MASK] y [MASK] z", Sampling(seed=11, max_new_tokens=40, stop=(text[3:6], "e")))
    )
    assert all("e" not in blank.text for blank in blanks_of(two))


async def test_ends_and_lengths(pool: Pool, tokenizer: Tokenizer) -> None:
    reasons = {}
    for seed in range(40):
        events = await collect(complete(pool, tokenizer, "Hm", Sampling(seed=seed, max_new_tokens=150)))
        reasons.setdefault(events[-1].finish_reason, []).append(len(blanks_of(events)[0].ids))
        if set(reasons) == {"stop", "length"}:
            break
    assert set(reasons["length"]) == {150} and max(reasons["stop"]) < 150
    assert not set(tokenizer.special.values()) & {token for blank in blanks_of(events) for token in blank.ids}


async def test_default_lengths_follow_the_kind_and_the_room(pool: Pool, tokenizer: Tokenizer) -> None:
    never_ends = Sampling(seed=1, min_new_tokens=200)
    for mask in ("[MASK]", "[sMASK]"):
        [blank] = blanks_of(await collect(fill(pool, tokenizer, f"a {mask} b", never_ends)))
        assert len(blank.ids) == DEFAULT_NEW_TOKENS[mask]
    [blank] = blanks_of(await collect(complete(pool, tokenizer, "a b", never_ends)))
    context = len(tokenizer.encode_plain("a b")) + 1
    assert len(blank.ids) == POSITIONS - context
    [blank] = blanks_of(await collect(complete(pool, tokenizer, "a b", never_ends, total_length=context + 1 + 7)))
    assert len(blank.ids) == 7
    with pytest.raises(GLMError) as caught:
        complete(pool, tokenizer, "a b", never_ends, total_length=context + 1)
    assert (caught.value.kind, caught.value.field) == ("prompt_too_long", "total_length")


async def test_logprobs_of_other_tokens(pool: Pool, tokenizer: Tokenizer) -> None:
    [blank] = blanks_of(
        await collect(fill(pool, tokenizer, "a [MASK] b", Sampling(temperature=0, max_new_tokens=5, logprobs=3)))
    )
    for token in blank.tokens:
        values = [value for _, value in token.top]
        assert len(values) == 3 and values == sorted(values, reverse=True) and token.logprob <= values[0] + 1e-6
    assert blank.as_dict()["tokens"][0].keys() == {"text", "logprob", "top"}


async def test_seeds(pool: Pool, tokenizer: Tokenizer) -> None:
    free = Sampling(max_new_tokens=20, min_new_tokens=20)
    run = complete(pool, tokenizer, "Say", free)
    first = await done(run)
    assert first.seed == run.seed
    other = await done(complete(pool, tokenizer, "Say", free))
    assert other.seed != first.seed and other.text != first.text
    again = await done(
        complete(pool, tokenizer, "Say", Sampling(max_new_tokens=20, min_new_tokens=20, seed=first.seed))
    )
    assert again.text == first.text


async def test_score_is_what_generation_reports(pool: Pool, tokenizer: Tokenizer) -> None:
    """Scoring the very text that was generated gives its logprobs, where its tokens are those of its text."""
    checked = 0
    for seed in range(20):
        text = "床前[MASK]光疑[sMASK]上"
        events = await collect(fill(pool, tokenizer, text, Sampling(seed=seed, max_new_tokens=2)))
        made = blanks_of(events)
        scored = await collect(score(pool, tokenizer, text, [blank.text for blank in made]))
        told = blanks_of(scored)
        assert scored[-1].text == events[-1].text and scored[-1].finish_reason == "scored"
        if [blank.ids for blank in told] == [blank.ids for blank in made]:
            checked += 1
            for one, other in zip(made, told, strict=True):
                assert [token.logprob for token in one.tokens] == pytest.approx(
                    [token.logprob for token in other.tokens], abs=1e-3
                )
                if one.alternatives[0].finish_reason == "stop":
                    assert one.alternatives[0].logprob == pytest.approx(other.alternatives[0].logprob, abs=1e-3)
    assert checked >= 3
    for answers in (["one"], ["one", "two", "three"]):
        with pytest.raises(GLMError) as caught:
            score(pool, tokenizer, "The [MASK] is [MASK].", answers)
        assert (caught.value.field, caught.value.limit) == ("answers", 2)
    empty = blanks_of(await collect(score(pool, tokenizer, "The [MASK].", [""])))[0]
    assert empty.text == "" and empty.tokens == () and empty.alternatives[0].logprob < 0


def say(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


async def test_chat_is_the_completion_of_its_format(pool: Pool, tokenizer: Tokenizer) -> None:
    answer = await done(chat(pool, tokenizer, say("Hello", "Hi!", "How are you? {really}"), SHORT, CHAT))
    pairs = [(message["role"], message["content"]) for message in say("Hello", "Hi!", "How are you? {really}")]
    assert (await done(chat(pool, tokenizer, pairs, SHORT, CHAT))).text == answer.text
    text = "问：Hello\n答：Hi!\n问：How are you? {really}\n答："
    assert answer.text == (await done(complete(pool, tokenizer, text, SHORT))).text


async def test_chat_drops_the_oldest_rounds_whole(pool: Pool, tokenizer: Tokenizer) -> None:
    long = "word " * 30
    messages = say(*(f"{number} {long}" for number in range(7)))
    run = chat(pool, tokenizer, messages, SHORT, CHAT)
    events = await collect(run)
    [started] = [event for event in events if isinstance(event, Started)]
    assert started.dropped_messages in (2, 4, 6) and started.prompt_tokens <= POSITIONS - SHORT.max_new_tokens
    kept = messages[started.dropped_messages :]
    assert (await done(chat(pool, tokenizer, kept, SHORT, CHAT))).text == events[-1].text
    more = messages[started.dropped_messages - 2 :]
    [again] = [event for event in await collect(chat(pool, tokenizer, more, SHORT, CHAT)) if isinstance(event, Started)]
    assert again.dropped_messages == 2  # no more than had to be
    with pytest.raises(GLMError) as caught:
        chat(pool, tokenizer, say("word " * 500), SHORT, CHAT)
    assert (caught.value.kind, caught.value.field, caught.value.limit) == ("prompt_too_long", "text", POSITIONS - 1)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        say("a", "b"),
        say(" "),
        [{"role": "system", "content": "x"}],
        [{"role": "user"}],
        [{"role": "user", "content": 5}],
    ],
)
async def test_conversations_that_are_refused(pool: Pool, tokenizer: Tokenizer, messages) -> None:
    with pytest.raises(GLMError) as caught:
        chat(pool, tokenizer, messages, SHORT, CHAT)
    assert (caught.value.kind, caught.value.field) == ("bad_request", "messages")


async def test_what_is_refused_leaves_nothing_behind(pool: Pool, tokenizer: Tokenizer) -> None:
    for text, sampling, kind in (
        ("The [XMASK] is", SHORT, "unknown_mask"),
        ("word " * 300, SHORT, "prompt_too_long"),
        ("x" * 10_000_000, SHORT, "prompt_too_long"),
        ("fine", Sampling(temperature=-1), "bad_request"),
        ("fine", Sampling(max_new_tokens=10**6), "bad_request"),
    ):
        with pytest.raises(GLMError) as caught:
            fill(pool, tokenizer, text, sampling)
        assert caught.value.kind == kind
    with pytest.raises(GLMError) as caught:
        chat(pool, tokenizer, say("hi"), SHORT, None)
    assert caught.value.kind == "unsupported"
    with pytest.raises(GLMError) as caught:
        fill(pool, tokenizer, "a [MASK]", SHORT, 9)
    assert caught.value.field == "alternatives"
    assert pool.status()["in_flight"] == pool.status()["waiting"] == 0 and not len(pool._runs)


@pytest.mark.parametrize("by_id", [False, True])
async def test_cancel_keeps_what_there_is(pool: Pool, tokenizer: Tokenizer, by_id: bool) -> None:
    endless = Sampling(seed=3, max_new_tokens=100, min_new_tokens=100)
    run = fill(pool, tokenizer, "First [MASK], then [sMASK], last [MASK].", endless, run=f"run {by_id}")
    events: list[Event] = []
    async with asyncio.timeout(DEADLINE):
        async for event in run:
            events.append(event)
            if isinstance(event, Delta) and event.blank == 1 and not run.cancelled:
                if by_id:
                    assert await pool.cancel(run.id)
                else:
                    run.cancel()
    [first] = blanks_of(events)
    partial = "".join(event.text for event in events if isinstance(event, Delta) and event.blank == 1)
    assert events[-1] == Cancelled(f"First {first.text}, then {partial}, last [MASK].")
    assert partial and not await pool.cancel(run.id)
    assert pool.status()["in_flight"] == 0


async def test_cancel_between_two_blanks_and_before_the_first(pool: Pool, tokenizer: Tokenizer) -> None:
    run = fill(pool, tokenizer, "A [MASK] b [MASK].", SHORT)
    events = []
    async for event in run:
        events.append(event)
        if isinstance(event, Blank):
            run.cancel()
    [first] = blanks_of(events)
    assert events[-1] == Cancelled(f"A {first.text} b [MASK].")
    run = complete(pool, tokenizer, "Say", Sampling(max_new_tokens=200, min_new_tokens=200))
    run.cancel()
    assert isinstance((await collect(run))[-1], Cancelled)
    run = score(pool, tokenizer, "A [MASK].", ["word"])
    run.cancel()
    end = (await collect(run))[-1]  # one step: it may be over before the cancellation arrives
    assert end == Cancelled("A [MASK].") or isinstance(end, Done)


async def test_a_failure_in_the_middle_is_an_error_event(
    tmp_path: Path, vocabulary_file: Path, tokenizer: Tokenizer
) -> None:
    async with Pool(make_lively_model(tmp_path, vocabulary_file, poison=True), threads=1) as poisoned:
        both = "A [MASK] b [MASK]."
        for run in (
            fill(poisoned, tokenizer, "A [MASK].", SHORT),
            fill(poisoned, tokenizer, both, SHORT, order="confident"),
            score(poisoned, tokenizer, "A [MASK].", ["word"]),
        ):
            end = (await collect(run))[-1]
            assert isinstance(end, Error) and end.kind == "non_finite_logits" and end.as_dict()["kind"] == end.kind


# The most confident first

SURE = Sampling(seed=5, max_new_tokens=12, temperature=0.7)


async def surest_first(
    pool: Pool, tokenizer: Tokenizer, text: str, sampling: Sampling, alternatives: int = 1
) -> tuple[str, list[tuple[int, Blank]], Usage]:
    """What `fill` with the order "confident" must give, found by runs that each fill one blank of a document, one by one."""
    masks = {tokenizer.special[kind] for kind in DEFAULT_NEW_TOKENS}
    ids = list(blanks.parse(text, tokenizer).ids)
    still_open, placed = list(range(len(blanks.parse(text, tokenizer).masks))), []
    prompt_tokens = new_tokens = 0
    while still_open:
        places = [place for place, token in enumerate(ids) if token in masks]
        found = list(re.finditer(r"\[[sg]?MASK\]", text))
        candidates = []
        for index, place, match in zip(still_open, places, found, strict=True):
            mask = blanks.Mask(match.group(), place, match.start(), match.end())
            seeded = replace(sampling, seed=protocol.derive_seed(sampling.seed, index))
            document = blanks.Document(text, tuple(ids), (mask,))
            events = await collect(Run(pool, tokenizer, Job(document, (mask,), seeded, alternatives)))
            [blank] = blanks_of(events)
            prompt_tokens += events[-1].usage.prompt_tokens
            new_tokens += events[-1].usage.new_tokens
            first = blank.alternatives[0]
            mean = first.logprob / (len(blank.ids) + (first.finish_reason == "stop"))
            candidates.append((mean, -index, blank, place, events[-1].text))
        _, index, blank, place, text = max(candidates, key=lambda candidate: candidate[:2])
        ids[place : place + 1] = blank.ids
        if ids[-1] not in masks and ids[-1] != tokenizer.eos:
            ids.append(tokenizer.eos)
        still_open.remove(-index)
        placed.append((-index, blank))
    return text, placed, Usage(prompt_tokens, new_tokens, 0.0, None, 0.0, 0)


@pytest.mark.parametrize("alternatives", [1, 3])
async def test_the_most_confident_first_is_what_single_fills_give(
    pool: Pool, tokenizer: Tokenizer, alternatives: int
) -> None:
    orders = []
    for number, text in enumerate(
        ("The [MASK] of Japan, [sMASK] is [MASK].", "床前[MASK]光疑[MASK]地[MASK]", "[MASK] a [MASK][MASK] b [gMASK]")
    ):
        sampling = replace(SURE, seed=number)
        text_wanted, wanted, usage = await surest_first(pool, tokenizer, text, sampling, alternatives)
        events = await collect(fill(pool, tokenizer, text, sampling, alternatives, order="confident"))
        made = blanks_of(events)
        assert [blank.index for blank in made] == [index for index, _ in wanted]
        assert [blank.ids for blank in made] == [blank.ids for _, blank in wanted]
        for blank, (_, other) in zip(made, wanted, strict=True):
            assert [each.text for each in blank.alternatives] == [each.text for each in other.alternatives]
            for one, two in zip(blank.alternatives, other.alternatives, strict=True):
                assert one.logprob == pytest.approx(two.logprob, abs=1e-3)
        end = events[-1]
        assert end.text == text_wanted and end.finish_reason == made[-1].alternatives[0].finish_reason
        assert (end.usage.prompt_tokens, end.usage.new_tokens) == (usage.prompt_tokens, usage.new_tokens)
        assert end.usage.largest_batch >= alternatives * len(made)  # all of the first round ran side by side
        orders.append([blank.index for blank in made])
    assert any(order != sorted(order) for order in orders)


async def test_the_most_confident_of_one_blank_is_that_blank(pool: Pool, tokenizer: Tokenizer) -> None:
    for text in ("The [MASK] of Japan", "床前[sMASK]光", "Once upon a time"):
        for alternatives in (1, 2):
            left = await collect(fill(pool, tokenizer, text, SHORT, alternatives))
            sure = await collect(fill(pool, tokenizer, text, SHORT, alternatives, order="confident"))
            assert blanks_of(sure) == blanks_of(left)
            assert sure[-1].text == left[-1].text and sure[-1].usage.new_tokens == left[-1].usage.new_tokens


async def test_the_most_confident_first_is_the_same_beside_others(pool: Pool, tokenizer: Tokenizer) -> None:
    texts = ["One [MASK] two [MASK] three [MASK].", "床前[MASK]光疑[sMASK]霜", "[MASK], [MASK] and [MASK]"]

    def start(number: int) -> Run:
        return fill(pool, tokenizer, texts[number % 3], replace(SURE, seed=number), order="confident")

    together = await asyncio.gather(*(collect(start(number)) for number in range(6)))
    for number, events in enumerate(together):
        alone = await collect(start(number))
        assert [(blank.index, blank.ids) for blank in blanks_of(alone)] == [
            (blank.index, blank.ids) for blank in blanks_of(events)
        ]
        assert alone[-1].text == events[-1].text


@pytest.mark.parametrize("placed", [0, 1])
async def test_cancel_in_the_middle_of_a_round(pool: Pool, tokenizer: Tokenizer, placed: int) -> None:
    endless = Sampling(seed=3, max_new_tokens=60, min_new_tokens=60)
    run = fill(pool, tokenizer, "First [MASK], then [MASK], last [MASK].", endless, order="confident")

    async def cancel_soon() -> None:
        # What began before this has made as many tokens by the time this ends.
        await done(complete(pool, tokenizer, "Say", Sampling(max_new_tokens=5, min_new_tokens=5)))
        run.cancel()

    events: list[Event] = []
    async with asyncio.timeout(DEADLINE), asyncio.TaskGroup() as group:
        async for event in run:
            events.append(event)
            if isinstance(event, (Started, Blank)) and len(blanks_of(events)) == placed and not run.cancelled:
                group.create_task(cancel_soon())
    assert len(blanks_of(events)) == placed and pool.status()["in_flight"] == pool.status()["waiting"] == 0
    text = "First [MASK], then [MASK], last [MASK]."
    for blank in blanks_of(events):
        found = list(re.finditer(r"\[MASK\]", text))[blank.index]
        text = text[: found.start()] + blank.text + text[found.end() :]
    assert events[-1] == Cancelled(text)
    assert run.unfinished is None
    assert placed * 180 + (3 - placed) * 4 <= run.usage.new_tokens < placed * 180 + (3 - placed) * 60


async def test_cancel_between_two_rounds(pool: Pool, tokenizer: Tokenizer) -> None:
    run = fill(pool, tokenizer, "A [MASK] b [MASK].", SHORT, order="confident")
    events = []
    async for event in run:
        events.append(event)
        if isinstance(event, Blank):
            run.cancel()
    [first] = blanks_of(events)
    expected = ["A [MASK] b [MASK].".replace("[MASK]", first.text, 1), f"A [MASK] b {first.text}."][first.index]
    assert events[-1] == Cancelled(expected) and pool.status()["in_flight"] == 0


async def test_what_the_most_confident_first_refuses(pool: Pool, tokenizer: Tokenizer) -> None:
    one = Sampling(seed=1, max_new_tokens=1)
    for text, sampling, order, field, limit in (
        ("[MASK] " * 17, one, "confident", "text", 16),
        ("[MASK] [MASK]", one, "right", "order", None),
        ("[MASK] [MASK]", Sampling(beams=protocol.Beams(2)), "confident", "order", None),
    ):
        with pytest.raises(GLMError) as caught:
            fill(pool, tokenizer, text, sampling, order=order)
        assert (caught.value.kind, caught.value.field, caught.value.limit) == ("bad_request", field, limit)
    events = await collect(fill(pool, tokenizer, "[MASK] " * 16, one, order="confident"))
    assert sorted(blank.index for blank in blanks_of(events)) == list(range(16))
    endless = Sampling(seed=3, max_new_tokens=60, min_new_tokens=60)
    runs: list[Run] = []
    with pytest.raises(GLMError) as caught:  # 16 slots and 100 places to wait: the eighth sixteen have no room
        while len(runs) < 10:
            runs.append(fill(pool, tokenizer, "[MASK] " * 16, endless, order="confident"))
    assert caught.value.kind == "queue_full" and len(runs) == 7
    status = pool.status()
    assert status["in_flight"] + status["waiting"] == 7 * 16  # nothing of the refused run is left
    for run in runs:
        run.cancel()
    assert {type((await collect(run))[-1]) for run in runs} == {Cancelled}
    assert pool.status()["in_flight"] == pool.status()["waiting"] == 0


async def test_blanks_can_be_placed_in_any_order(tokenizer: Tokenizer) -> None:
    text = "[MASK] of 天, [sMASK] is[MASK]. [gMASK]"
    fills = ["The sum", " long words here", " 床前", " end"]
    document = blanks.parse(text, tokenizer)
    results = set()
    for order in itertools.permutations(range(4)):
        filling = Filling(document, tokenizer)
        for index in order:
            mask = document.masks[index]
            assert filling.ids[filling.index(mask)] == tokenizer.special[mask.kind]
            filling.place(mask, tokenizer.encode_plain(fills[index]), fills[index])
        results.add((filling.text, tuple(filling.ids)))
    [(filled, ids)] = results
    assert filled == "The sum of 天, long words here is 床前. end" and ids[-1] == tokenizer.eos


# What a run would take


async def test_an_estimate_has_the_budgets_and_the_prompt_of_the_run(pool: Pool, tokenizer: Tokenizer) -> None:
    limits = pool.require_limits()
    whole = Sampling(seed=1, min_new_tokens=250)  # every fill takes all that it may
    few = Sampling(seed=1, min_new_tokens=9, max_new_tokens=9)
    for text in (
        "A [MASK] b [sMASK].",
        "word " * 55 + "[MASK] and [MASK] and [gMASK]",
        "Once",
        "x " * 100 + "[MASK]" * 9,
    ):
        for sampling in (whole, few):
            told = estimate(fill_job(limits, tokenizer, text, sampling), pool)
            run = fill(pool, tokenizer, text, sampling)
            end = await done(run)
            assert (told.prompt_tokens, told.new_tokens) == (run.prompt_tokens, end.usage.new_tokens), text
            assert (told.positions, told.dropped_messages, told.queued) == (POSITIONS, 0, 0)
    told = estimate(complete_job(limits, tokenizer, "a b", whole), pool)
    assert told.new_tokens == (await done(complete(pool, tokenizer, "a b", whole))).usage.new_tokens
    messages = say(*(f"{number} {'word ' * 30}" for number in range(7)))
    events = await collect(chat(pool, tokenizer, messages, few, CHAT))
    [started] = [event for event in events if isinstance(event, Started)]
    told = estimate(chat_job(limits, tokenizer, messages, few, CHAT), pool)
    assert told.dropped_messages == started.dropped_messages > 0
    assert (told.prompt_tokens, told.new_tokens) == (started.prompt_tokens, 9)


async def test_an_estimate_of_the_most_confident_first_is_no_less_than_the_run(
    pool: Pool, tokenizer: Tokenizer
) -> None:
    whole = Sampling(seed=1, min_new_tokens=250)
    for text in ("A [MASK] b [sMASK] c [MASK].", "word " * 55 + "[gMASK] a [MASK] b [sMASK]"):
        told = estimate(fill_job(pool.require_limits(), tokenizer, text, whole, order="confident"), pool)
        events = await collect(fill(pool, tokenizer, text, whole, order="confident"))
        assert told.new_tokens >= sum(len(blank.ids) for blank in blanks_of(events)) > told.new_tokens - 3
        assert told.seconds > 0


async def test_seconds_are_measured_and_grow_with_the_work(pool: Pool, tokenizer: Tokenizer) -> None:
    limits = pool.require_limits()
    await done(complete(pool, tokenizer, "Say", Sampling(max_new_tokens=100, min_new_tokens=100)))

    def seconds(text: str, sampling: Sampling, order: str = "left") -> float:
        found = estimate(fill_job(limits, tokenizer, text, sampling, order=order), pool).seconds
        assert found is not None
        return found

    short, long = Sampling(max_new_tokens=2), Sampling(max_new_tokens=200)
    assert seconds("One.", long) > seconds("One.", short)
    assert seconds("[MASK] [MASK] [MASK]", short, "confident") > seconds("[MASK] [MASK] [MASK]", short)
    endless = Sampling(seed=3, max_new_tokens=200, min_new_tokens=200)
    runs = [complete(pool, tokenizer, "Say", endless) for _ in range(20)]
    queued = estimate(fill_job(limits, tokenizer, "One.", short), pool)
    assert queued.queued == 4 and queued.seconds > seconds("One.", short) / 2
    for run in runs:
        run.cancel()
    for run in runs:
        await collect(run)
    assert estimate(fill_job(limits, tokenizer, "One.", short), pool).queued == 0


async def test_wire_format() -> None:
    usage = Usage(1, 2, 3.0, 0.5, 4.0, 5)
    blank = Blank(0, "a", (Alternative("a", -1.0, "stop"),), (TokenText("a", -0.5),), (7,))
    expected = [
        (Queued(2, None), {"type": "queued", "position": 2, "eta_s": None}),
        (Started("m", 3), {"type": "started", "model": "m", "prompt_tokens": 3, "dropped_messages": 0}),
        (Delta(1, 0, "x"), {"type": "delta", "blank": 1, "alternative": 0, "text": "x"}),
        (
            blank,
            {
                "type": "blank",
                "index": 0,
                "text": "a",
                "alternatives": [{"text": "a", "logprob": -1.0, "finish_reason": "stop"}],
                "tokens": [{"text": "a", "logprob": -0.5}],
                "ids": [7],
            },
        ),
        (Cancelled("t"), {"type": "cancelled", "text": "t"}),
    ]
    for event, dictionary in expected:
        assert event.as_dict() == dictionary
    end = Done("t", "stop", usage, 9, {"model": "m"}).as_dict()
    assert end["usage"] == {
        "prompt_tokens": 1, "new_tokens": 2, "seconds": 3.0,
        "first_token_seconds": 0.5, "tokens_per_second": 4.0, "largest_batch": 5,
    }  # fmt: skip
    assert end.keys() == {"type", "text", "finish_reason", "usage", "seed", "fingerprint"}
    assert Error.of(GLMError("queue_full", "Full.", retry_after_s=1.0)).as_dict()["retry_after_s"] == 1.0
