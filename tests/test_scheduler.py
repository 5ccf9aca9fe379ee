"""The scheduler alone: admission, turns, ends, cancels; and its promises under random traffic."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from engine.errors import GLMError
from engine.glm.blanks import Prompt, parse, prompt
from engine.glm.tokenizer import Tokenizer
from engine.serving.job import Choice
from engine.serving.protocol import Failed, Finished, Limits, Request, Sampling, Step, check, derive_seed, uniform
from engine.serving.scheduler import Outcome, Plan, Scheduler
from engine.serving.slicing import Slicer
from engine.serving.text import TextStream, never_generated

POSITIONS = 128


@pytest.fixture(scope="module")
def tokenizer(vocabulary_file: Path) -> Tokenizer:
    return Tokenizer.load(vocabulary_file)


@pytest.fixture
def limits(tokenizer: Tokenizer) -> Limits:
    return Limits("test", "hash", "fp32", "cpu", "0", POSITIONS, 4, tokenizer.vocabulary_size, 1)


def make_prompt(tokenizer: Tokenizer, text: str = "The capital of [MASK] is Tokyo.") -> Prompt:
    document = parse(text, tokenizer)
    return prompt(document.ids, document.masks[0].index, tokenizer)


def make_request(
    tokenizer: Tokenizer, name: str, text: str = "a [gMASK]", alternatives: int = 1, **sampling
) -> Request:
    values = {"seed": 1, "max_new_tokens": 4} | sampling
    return Request(name, make_prompt(tokenizer, text), Sampling(**values), alternatives)


def token(number: int) -> Choice:
    return Choice(number, -1.0, True, ())


def book_all(scheduler: Scheduler, plan: Plan, number: int) -> Step:
    return scheduler.book(plan, Outcome([token(number)] * len(plan.sampled_rows()), [], []))


def words(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode_plain(text)


def test_reads_then_decodes_until_the_budget(tokenizer: Tokenizer, limits: Limits) -> None:
    scheduler = Scheduler(limits, tokenizer)
    scheduler.add(make_request(tokenizer, "a"))
    plan = scheduler.plan()
    assert plan and [job.request.id for job in plan.prompts] == ["a"] and not plan.rows
    word = words(tokenizer, "and")[0]
    step = book_all(scheduler, plan, word)
    assert [(made.request, made.token) for made in step.tokens] == [("a", word)] and not step.ends
    for number in range(2, 5):
        plan = scheduler.plan()
        assert plan and len(plan.rows) == 1
        row = plan.rows[0]
        length = len(row.job.request.prompt.ids)
        assert row.column == length + number - 2
        assert row.position == length + number - 2  # under [gMASK] positions run on
        step = book_all(scheduler, plan, word)
    [end] = step.ends
    assert isinstance(end, Finished) and end.results[0].reason == "length" and end.results[0].ids == (word,) * 4
    assert end.results[0].logprob == -4.0
    assert scheduler.idle and scheduler.plan() is None and scheduler.free_slots == 4


def test_under_mask_the_position_stays_and_the_column_moves(tokenizer: Tokenizer, limits: Limits) -> None:
    scheduler = Scheduler(limits, tokenizer)
    request = make_request(tokenizer, "a", "The capital of [MASK] is Tokyo.")
    scheduler.add(request)
    book_all(scheduler, scheduler.plan(), 300)
    seen = []
    for _ in range(3):
        plan = scheduler.plan()
        seen.append((plan.rows[0].column, plan.rows[0].position))
        book_all(scheduler, plan, 300)
    length, mask = len(request.prompt.ids), request.prompt.positions[-1]
    assert seen == [(length, mask), (length + 1, mask), (length + 2, mask)]


def test_end_tokens_end_and_are_no_text(tokenizer: Tokenizer, limits: Limits) -> None:
    for end_id in tokenizer.end_ids:
        scheduler = Scheduler(limits, tokenizer)
        scheduler.add(make_request(tokenizer, "a"))
        word = words(tokenizer, "and")[0]
        book_all(scheduler, scheduler.plan(), word)
        step = scheduler.book(scheduler.plan(), Outcome([Choice(end_id, -0.5, True, ())], [], []))
        [end] = step.ends
        assert isinstance(end, Finished)
        assert end.results[0].reason == "stop" and end.results[0].ids == (word,)
        assert end.results[0].end_logprob == -0.5 and end.results[0].logprob == -1.5
        assert not step.tokens


def test_alternatives_are_admitted_together_and_leave_one_by_one(tokenizer: Tokenizer, limits: Limits) -> None:
    scheduler = Scheduler(limits, tokenizer)
    scheduler.add(make_request(tokenizer, "one"))
    scheduler.add(make_request(tokenizer, "four", alternatives=4))
    scheduler.add(make_request(tokenizer, "late"))
    plan = scheduler.plan()
    assert [job.request.id for job in plan.prompts] == ["one"]  # four rows don't fit beside it
    book_all(scheduler, plan, 300)
    plan = scheduler.plan()
    assert plan.rows  # and the later, smaller one doesn't overtake
    scheduler.book(plan, Outcome([token(tokenizer.eop)], [], []))
    plan = scheduler.plan()
    assert [job.request.id for job in plan.prompts] == ["four"] and len(plan.sampled_rows()) == 4
    choices = [token(300), token(tokenizer.eop), token(301), token(302)]
    step = scheduler.book(plan, Outcome(choices, [], []))
    assert not step.ends and scheduler.free_slots == 1
    plan = scheduler.plan()
    while not plan.prompts:
        book_all(scheduler, plan, tokenizer.eop)
        plan = scheduler.plan()
    assert [job.request.id for job in plan.prompts] == ["late"]


def test_prompts_and_decoding_take_turns(tokenizer: Tokenizer, limits: Limits) -> None:
    scheduler = Scheduler(limits, tokenizer, prefill_tokens=1)
    for name in "abc":
        scheduler.add(make_request(tokenizer, name, max_new_tokens=9))
    kinds = []
    for _ in range(6):
        plan = scheduler.plan()
        kinds.append("read" if plan.prompts else f"step {len(plan.rows)}")
        book_all(scheduler, plan, 300)
    assert kinds == ["read", "step 1", "read", "step 2", "read", "step 3"]


def test_short_prompts_are_read_together(tokenizer: Tokenizer, limits: Limits) -> None:
    scheduler = Scheduler(limits, tokenizer, prefill_tokens=512)
    for name in "abcde":
        scheduler.add(make_request(tokenizer, name))
    assert [job.request.id for job in scheduler.plan().prompts] == ["a", "b", "c", "d"]  # four slots


def test_full_queue(tokenizer: Tokenizer, limits: Limits) -> None:
    scheduler = Scheduler(limits, tokenizer, queue=2)
    for name in "ab":
        scheduler.add(make_request(tokenizer, name))
    with pytest.raises(GLMError) as caught:
        scheduler.add(make_request(tokenizer, "c"))
    assert caught.value.kind == "queue_full" and caught.value.retry_after_s


def test_cancel_frees_slots_at_once(tokenizer: Tokenizer, limits: Limits) -> None:
    scheduler = Scheduler(limits, tokenizer)
    scheduler.add(make_request(tokenizer, "a", alternatives=3))
    scheduler.add(make_request(tokenizer, "b", alternatives=2))
    book_all(scheduler, scheduler.plan(), 300)
    assert scheduler.free_slots == 1
    assert scheduler.cancel("a") is not None
    assert scheduler.free_slots == 4
    plan = scheduler.plan()
    assert [job.request.id for job in plan.prompts] == ["b"]  # in the very next step
    assert scheduler.cancel("b") is not None and scheduler.cancel("b") is None and scheduler.cancel("nobody") is None
    assert scheduler.idle


def test_non_finite_logits_fail_only_their_request(tokenizer: Tokenizer, limits: Limits) -> None:
    scheduler = Scheduler(limits, tokenizer)
    scheduler.add(make_request(tokenizer, "bad", alternatives=2))
    scheduler.add(make_request(tokenizer, "good"))
    plan = scheduler.plan()
    step = scheduler.book(plan, Outcome([token(300), Choice(0, float("nan"), False, ()), token(300)], [], []))
    [end] = step.ends
    assert isinstance(end, Failed) and end.id == "bad" and end.error.kind == "non_finite_logits"
    assert scheduler.free_slots == 3
    assert [row.job.request.id for row in scheduler.plan().rows] == ["good"]


def test_scores_take_no_slot(tokenizer: Tokenizer, limits: Limits) -> None:
    scheduler = Scheduler(limits, tokenizer)
    scheduler.add(make_request(tokenizer, "running", alternatives=4, max_new_tokens=9))
    book_all(scheduler, scheduler.plan(), 300)
    japan = tuple(words(tokenizer, " Japan"))
    choices = ((*japan, tokenizer.eop), japan)
    scheduler.add(Request("score", make_prompt(tokenizer), choices=choices))
    book_all(scheduler, scheduler.plan(), 300)
    plan = scheduler.plan()
    assert [job.request.id for job in plan.prompts] == ["score"] and not plan.sampled_rows()
    scores = [[-1.0] * len(choice) for choice in choices]
    [end] = scheduler.book(plan, Outcome([], [scores], [])).ends
    assert isinstance(end, Finished)
    assert end.results[0].ids == japan and end.results[0].end_logprob == -1.0
    assert end.results[0].logprob == -len(japan) - 1
    assert end.results[1].end_logprob is None and end.results[1].text == " Japan"
    assert scheduler.free_slots == 0 and len(scheduler.plan().rows) == 4


def test_minimum_and_ngram_bans(tokenizer: Tokenizer, limits: Limits) -> None:
    scheduler = Scheduler(limits, tokenizer)
    request = make_request(tokenizer, "a", "x y [gMASK]", max_new_tokens=9, min_new_tokens=2, no_repeat_ngram=2)
    scheduler.add(request)
    ends = set(tokenizer.end_ids)
    plan = scheduler.plan()
    row = plan.sampled_rows()[0]
    assert ends <= set(row.ask(tokenizer.end_ids).banned)
    a, b = 300, 301
    expected = [({a: ()}, a), ({a: ()}, b), ({b: ()}, a), ({a: (b,)}, a), ({a: (a, b)}, b)]
    for number, (_, made) in enumerate(expected):
        banned = set(row.ask(tokenizer.end_ids).banned)
        assert (ends <= banned) == (number < 2)
        last = row.tokens[-1] if row.tokens else None
        followers = {row.tokens[i + 1] for i in range(len(row.tokens) - 1) if row.tokens[i] == last}
        assert banned - ends == followers
        scheduler.book(plan, Outcome([token(made)], [], []))
        plan = scheduler.plan()


def test_an_ngram_that_begins_in_the_prompt_and_ends_in_the_answer_counts(tokenizer: Tokenizer, limits: Limits) -> None:
    scheduler = Scheduler(limits, tokenizer)
    request = make_request(tokenizer, "a", max_new_tokens=9, no_repeat_ngram=2)
    scheduler.add(request)
    plan = scheduler.plan()
    scheduler.book(plan, Outcome([token(300)], [], []))
    row = scheduler.plan().rows[0]
    assert row._ngrams == {(tokenizer.sop,): [300]}


# Text


def test_a_stop_string_over_several_tokens_never_shows(tokenizer: Tokenizer) -> None:
    text = "one two STOP three"
    for stop in ("STOP", "o S", "two STOP th", " STOP"):
        stream, shown = TextStream(tokenizer, (stop, "never")), ""
        for number in words(tokenizer, text):
            if stream.stopped:
                break
            shown += stream.push(number)
            assert shown == text[: len(shown)] and stop not in shown
            assert len(shown) <= text.index(stop)
        assert stream.stopped and shown + stream.finish() == text[: text.index(stop)]
        assert "".join(stream.pieces) == shown


def test_text_that_only_began_like_a_stop_string_comes_out(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer, ("two STORE",))
    shown = "".join(stream.push(number) for number in words(tokenizer, "one two STO"))
    assert "two" not in shown
    assert shown + stream.finish() == "one two STO" == "".join(stream.pieces)


def test_characters_of_several_bytes_come_whole(tokenizer: Tokenizer) -> None:
    text = "a🙂b鿯"
    stream = TextStream(tokenizer)
    parts = [stream.push(number) for number in words(tokenizer, text)]
    assert "".join(parts) == text and not any("\ufffd" in part for part in parts)
    assert stream.pieces == parts
    cut = TextStream(tokenizer)
    shown = "".join(cut.push(number) for number in words(tokenizer, "🙂")[:-1])
    assert shown == "" and set(cut.finish()) == {"\ufffd"}


def test_never_generated(tokenizer: Tokenizer) -> None:
    banned = set(never_generated(tokenizer, tokenizer.vocabulary_size + 5))
    assert {tokenizer.mask, tokenizer.gmask, tokenizer.smask, tokenizer.sop, tokenizer.eod} <= banned
    assert set(range(tokenizer.vocabulary_size, tokenizer.vocabulary_size + 5)) <= banned
    assert not banned & set(tokenizer.end_ids)
    assert {"<unk>", "<s>"} <= {tokenizer.piece(number) for number in banned if number < tokenizer.vocabulary_size}
    assert not banned & set(words(tokenizer, "Plain text, 你好。\n"))


# Limits


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1), ("temperature", float("nan")), ("temperature", "hot"), ("top_k", -1), ("top_k", 1.5),
        ("top_k", 10**9), ("top_p", 0.0), ("top_p", 1.1), ("repetition_penalty", 0.0), ("no_repeat_ngram", -1),
        ("min_new_tokens", -1), ("min_new_tokens", 5), ("max_new_tokens", 0), ("max_new_tokens", 10**6), ("seed", -1),
        ("seed", 2**63), ("stop", ("",)), ("stop", ("x" * 1000,)), ("banned_ids", (-1,)), ("logprobs", 1000),
        ("temperature", True),
    ],
)  # fmt: skip
def test_values_that_are_refused(tokenizer: Tokenizer, limits: Limits, field: str, value) -> None:
    request = make_request(tokenizer, "a")
    with pytest.raises(GLMError) as caught:
        check(replace(request, sampling=replace(request.sampling, **{field: value})), limits)
    assert caught.value.kind == "bad_request" and caught.value.field == field


def test_what_must_fit(tokenizer: Tokenizer, limits: Limits) -> None:
    full = Prompt(tuple([300] * POSITIONS), tuple(range(POSITIONS)), POSITIONS - 1, POSITIONS, 1)
    check(Request("a", full, Sampling(seed=1, max_new_tokens=1)), limits)
    with pytest.raises(GLMError) as caught:
        check(Request("a", full, Sampling(seed=1, max_new_tokens=2)), limits)
    assert caught.value.field == "max_new_tokens" and caught.value.limit == 1
    longer = Prompt(tuple([300] * (POSITIONS + 1)), tuple(range(POSITIONS + 1)), POSITIONS, POSITIONS + 1, 1)
    with pytest.raises(GLMError) as caught:
        check(Request("a", longer, Sampling(seed=1, max_new_tokens=1)), limits)
    assert (caught.value.kind, caught.value.field, caught.value.limit) == ("prompt_too_long", "text", POSITIONS - 1)
    with pytest.raises(GLMError) as caught:
        check(make_request(tokenizer, "a", alternatives=5), limits)
    assert caught.value.field == "alternatives" and caught.value.limit == 4
    with pytest.raises(GLMError) as caught:
        check(Request("a", make_prompt(tokenizer), choices=((300,), ())), limits)
    assert caught.value.field == "answers"


def test_uniform_numbers_depend_on_nothing_else() -> None:
    numbers = {uniform(seed, alternative, step) for seed in range(20) for alternative in range(5) for step in range(20)}
    assert len(numbers) == 2000 and all(0 <= number < 1 for number in numbers)
    assert abs(sum(numbers) / 2000 - 0.5) < 0.03
    assert uniform(1, 2, 3) == uniform(1, 2, 3) == 0.022057785001024288
    assert derive_seed(5, 0) == 5 and len({derive_seed(5, part) for part in range(100)}) == 100


# Prompts in slices of layers


def test_the_first_slice_is_a_layer_then_as_many_as_fit() -> None:
    slicer = Slicer(layers=24, gap=0.1)
    slicer.begin(1000)
    assert slicer.until(0) == 1
    slicer.measured(1, 0.02)
    assert slicer.until(1) == 6  # five layers in 0.1 s
    slicer.stepped(0.05)
    assert slicer.until(6) == 8  # the step before it counts
    slicer.measured(2, 0.06)
    assert slicer.until(8) == 9  # it got slower
    slicer.stepped(0.3)
    assert slicer.until(9) == 19  # a step alone is above the gap: as long as that
    slicer.measured(10, 4.0)
    assert slicer.until(19) == 20  # a layer at least
    slicer.measured(1, 0.03)
    slicer.stepped(0.0)
    slicer.begin(100)  # known by now: a tenth of the tokens
    assert slicer.until(0) == 24 and slicer.until(23) == 24


def sliced(limits: Limits, tokenizer: Tokenizer) -> Scheduler:
    """Of a model with 4 layers, each longer than running rows may wait."""
    return Scheduler(limits, tokenizer, slicer=Slicer(layers=4, gap=0.0))


def go(scheduler: Scheduler, number: int = 300) -> tuple[Plan, Step]:
    plan = scheduler.plan()
    assert plan is not None
    scheduler.measured(plan, 1.0 if plan.prompts else 0.1)
    return plan, book_all(scheduler, plan, number)


def test_running_rows_get_a_token_between_slices(tokenizer: Tokenizer, limits: Limits) -> None:
    scheduler = sliced(limits, tokenizer)
    scheduler.add(make_request(tokenizer, "a", max_new_tokens=20))
    plan, _ = go(scheduler)
    assert (plan.first, plan.last) == (0, None)  # nobody waits: whole
    scheduler.add(make_request(tokenizer, "b", max_new_tokens=20))
    seen = []
    for _ in range(8):
        plan, step = go(scheduler)
        seen.append((plan.first, plan.last) if plan.prompts else len(plan.rows))
        assert bool(step.tokens) == (not plan.prompts or plan.last is None)
    assert seen == [1, (0, 1), 1, (1, 2), 1, (2, 3), 1, (3, None)]
    assert len(go(scheduler)[0].rows) == 2


def test_a_reading_goes_on_whole_when_nobody_waits_any_more(tokenizer: Tokenizer, limits: Limits) -> None:
    scheduler = sliced(limits, tokenizer)
    scheduler.add(make_request(tokenizer, "a", max_new_tokens=2))
    go(scheduler)
    scheduler.add(make_request(tokenizer, "b"))
    go(scheduler, 300)  # its last token
    plan, _ = go(scheduler)
    assert plan.prompts and (plan.first, plan.last) == (0, None)


def test_a_reading_that_is_cancelled_is_given_up(tokenizer: Tokenizer, limits: Limits) -> None:
    scheduler = sliced(limits, tokenizer)
    scheduler.add(make_request(tokenizer, "a", max_new_tokens=20))
    go(scheduler)
    scheduler.add(make_request(tokenizer, "b", alternatives=2))
    scheduler.add(make_request(tokenizer, "c"))
    go(scheduler)
    plan, _ = go(scheduler)
    assert [job.request.id for job in plan.prompts] == ["b", "c"] and plan.last == 1
    slots = {row.slot for job in plan.prompts for row in job.rows}
    assert scheduler.cancel("c") and scheduler.free_slots == 1
    go(scheduler)
    plan, _ = go(scheduler)
    assert plan.first == 1  # the other one's goes on
    assert scheduler.cancel("b") and scheduler.free_slots == 3
    plan, _ = go(scheduler)
    assert plan.rows and set(plan.clears) == slots
    scheduler.add(make_request(tokenizer, "d"))
    plan, _ = go(scheduler)
    assert plan.first == 0 and [job.request.id for job in plan.prompts] == ["d"] and not plan.clears


def test_one_of_several_prompts_cancelled_while_they_are_read(tokenizer: Tokenizer, limits: Limits) -> None:
    scheduler = sliced(limits, tokenizer)
    scheduler.add(make_request(tokenizer, "a", max_new_tokens=20))
    go(scheduler)
    scheduler.add(make_request(tokenizer, "b"))
    scheduler.add(make_request(tokenizer, "c"))
    go(scheduler)
    go(scheduler)
    scheduler.cancel("b")
    made = [step.tokens for plan, step in (go(scheduler) for _ in range(6)) if plan.prompts and plan.last is None]
    assert [[token.request for token in tokens] for tokens in made] == [["c"]]
    assert scheduler.free_slots == 2


# Promises under random traffic


@dataclass
class Traffic:
    """Random arrivals and cancels, random tokens; checks every promise in every step."""

    tokenizer: Tokenizer
    limits: Limits
    random: random.Random
    arrived: list[str] = field(default_factory=list)
    admitted: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    cancelled_waiting: set[str] = field(default_factory=set)
    waits: dict[str, int] = field(default_factory=dict)
    cache: dict[int, Prompt] = field(default_factory=dict)  # what each slot holds
    retain: bool = False
    unread: int = 0  # jobs that found their prompt there

    def run(self, steps: int) -> None:
        self.retain = self.random.random() < 0.7
        slicer = self.random.choice([None, Slicer(4, 0.0), Slicer(4, 2.0)])
        scheduler = Scheduler(
            self.limits,
            self.tokenizer,
            queue=10,
            prefill_tokens=self.random.choice([1, 40, 512]),
            slicer=slicer,
            retain=self.retain,
        )
        while steps > 0 or not scheduler.idle:
            steps -= 1
            if steps > 0:
                self.arrive(scheduler)
                self.cancel(scheduler)
            plan = scheduler.plan()
            if plan is None:
                assert scheduler.idle
                continue
            self.check_plan(scheduler, plan)
            outcome = Outcome([self.choice(row) for row in plan.sampled_rows()], self.scores(plan), [])
            scheduler.measured(plan, self.random.random())
            step = scheduler.book(plan, outcome)
            self.ended += [end.id for end in step.ends]
            for made in step.tokens:
                assert made.request not in self.ended or made.request in {end.id for end in step.ends}
        assert sorted(self.ended) == sorted(self.arrived)  # exactly one end each
        assert self.admitted == [
            name for name in self.arrived if name not in self.cancelled_waiting
        ]  # first in, first out
        assert scheduler.free_slots == self.limits.slots

    def arrive(self, scheduler: Scheduler) -> None:
        for _ in range(self.random.choice([0, 0, 0, 1, 1, 3])):
            name = f"request {len(self.arrived)}"
            if self.random.random() < 0.15:
                request = Request(name, make_prompt(self.tokenizer), choices=((300, 301),) * self.random.randint(1, 3))
            else:
                request = make_request(
                    self.tokenizer,
                    name,
                    self.random.choice(["a [gMASK]", "and [MASK] the", "the [sMASK] of"]),
                    alternatives=self.random.randint(1, 4),
                    max_new_tokens=self.random.randint(1, 12),
                )
            try:
                scheduler.add(request)
            except GLMError as error:
                assert error.kind == "queue_full" and scheduler.waiting == 10
            else:
                self.arrived.append(name)

    def cancel(self, scheduler: Scheduler) -> None:
        if self.arrived and self.random.random() < 0.1:
            name = self.random.choice(self.arrived[-15:])
            before = scheduler.free_slots
            job = scheduler._jobs.get(name)
            holds = job is not None and bool(job.held_slots())  # one that only scores has none
            cancelled = scheduler.cancel(name)
            assert (cancelled is None) == (name in self.ended)
            if cancelled is not None:
                self.ended.append(name)
                if name not in self.admitted:
                    self.cancelled_waiting.add(name)
                else:
                    assert (scheduler.free_slots > before) == holds

    def check_plan(self, scheduler: Scheduler, plan: Plan) -> None:
        assert bool(plan.prompts) != bool(plan.rows)
        self.admitted += [job.request.id for job in plan.begun]
        self.unread += len(set(plan.begun) - set(plan.prompts))
        self.move(plan)
        slots = [row.slot for row in plan.sampled_rows()]
        if plan.rows:
            assert slots == sorted(slots)
        reading = [row for job in scheduler._reading for row in job.rows if job.request.id not in self.ended]
        running = {row.slot: row for row in scheduler._running} | {row.slot: row for row in reading}
        assert len(slots) == len(set(slots)) and len(running) + scheduler.free_slots == self.limits.slots
        assert not {*scheduler._free._empty, *scheduler._free._held} & set(running)
        for row in plan.rows:
            assert row.column < POSITIONS and row.job.request.id not in self.ended
            assert self.cache[row.slot] == row.job.request.prompt
        for row in scheduler._running:  # nobody starves: every other step at the latest is everybody's
            key = f"{row.job.request.id} {row.alternative}"
            self.waits[key] = 0 if row in plan.sampled_rows() else self.waits.get(key, 0) + 1
            assert self.waits[key] <= 1

    def move(self, plan: Plan) -> None:
        """What the plan does to the cache."""
        for slot in plan.clears:
            self.cache.pop(slot, None)
        for source, target, columns in plan.copies:
            assert columns == len(self.cache[source].ids)
            self.cache[target] = self.cache[source]
        for job in plan.read_jobs():
            self.cache |= {row.slot: job.request.prompt for row in job.rows}
        for job in plan.prompts if plan.last is not None else ():  # written over, from the first slice on
            self.cache.pop(job.slot, None)

    def choice(self, row) -> Choice:
        chance = self.random.random()
        if chance < 0.01:
            return Choice(0, float("nan"), False, ())
        return token(self.tokenizer.eop if chance < 0.1 else self.random.randint(270, 400))

    def scores(self, plan: Plan) -> list[list[list[float]]]:
        return [
            [[-1.0] * len(choice) for choice in job.request.choices] for job in plan.read_jobs() if job.request.choices
        ]


@pytest.mark.parametrize("seed", range(25))
def test_promises_under_random_traffic(tokenizer: Tokenizer, limits: Limits, seed: int) -> None:
    traffic = Traffic(tokenizer, limits, random.Random(seed))
    traffic.run(300)
    assert len(traffic.ended) > 50
    assert (traffic.unread > 0) == traffic.retain
