"""Runs a model over prompts and decode steps with a key/value cache. One runner is one rank of one replica.

A pass is begun with `read` (prompts) or `step` (one token for running rows), goes on with `advance`, some layers at a time
or all, and ends with `logits`. Between two `advance` calls other passes may run: they touch other slots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.glm.model import GLM, Attention, Rotary
from engine.glm.offload import OffloadedGLM
from engine.glm.prepacked import keeps_rows_apart
from engine.serving.beam import Candidate
from engine.serving.cache import (
    KeyValueCache,
    MixedAttention,
    PromptAttention,
    Segment,
    StepAttention,
    TreeAttention,
    kept_dtype,
)
from engine.serving.graphs import DecodeGraphs
from engine.serving.job import Ask, Choice, Job
from engine.serving.sampling import Sampler
from engine.serving.scheduler import Outcome, Plan
from engine.serving.work import Reading, Tree, Work

_Token = tuple[int, int, int, int]  # of a step: its slot, itself, its column and its position


@dataclass(slots=True)
class Part:
    """Tokens that go through the layers together. hidden: (1, tokens, hidden) for prompts, (rows, 1, hidden) for a step; wanted:
    tokens whose logits are asked for, None for all; behind the last layer there are no others."""

    hidden: Tensor
    rotary: Rotary
    attention: Attention
    wanted: Tensor | None = None


@dataclass(slots=True)
class Pass:
    """A forward pass between layers. order: where each row of logits is among those of the parts, one behind the other.
    found: the logits of a pass that was done at once."""

    parts: list[Part]
    layer: int = 0
    order: Tensor | None = None
    found: Tensor | None = None


class Runner:
    """slots sequences of up to `columns` tokens each. announce: gets each Work before it is done, for the other ranks.

    batch_invariant: a sequence's numbers are the same, to the bit, whatever runs beside it. Each prompt is then read by itself; so
    is each token of a step, unless the model's matrices are of a form that keeps rows apart (prepacked.py).
    kv_cache: in what precision keys and values are kept (cache_precision.py).
    graphs: steps without trees are replayed (graphs.py), where the model allows it; None: on accelerators they are.
    """

    def __init__(
        self,
        model: GLM,
        slots: int,
        columns: int,
        announce: Callable[[Work], None] | None = None,
        *,
        batch_invariant: bool = False,
        kv_cache: str = "auto",
        graphs: bool | None = None,
    ) -> None:
        self._model, self._announce, self.batch_invariant = model, announce, batch_invariant
        self._one_by_one = batch_invariant and not keeps_rows_apart(model)
        # Rows that go through whole layers in one call do so whether others, which can't, run beside them or not.
        self._whole_layers = any(layer.whole is not None for layer in model.layers)
        self._clears: list[int] = []  # of the cache, with the next work
        self._copies: list[tuple[int, int, int]] = []
        self._reading: Pass | None = None  # prompts that are read through some of the layers
        replayed = model.device.type != "cpu" if graphs is None else graphs
        # Rows that fill a step up are rows beside others; and graphs read each layer where it was when they were captured.
        replayed &= not (batch_invariant or self._whole_layers or isinstance(model, OffloadedGLM))
        first = model.layers[0].attention
        # Of the column more, trees make a place as of any other. They may: while there is one, no step is replayed, and what
        # replayed steps have left there is written over before it is read.
        self.cache = KeyValueCache(
            len(model.layers),
            slots,
            first.heads,
            columns + replayed,
            first.head_dim,
            kept_dtype(model, kv_cache),
            model.device,
        )
        self.graphs = DecodeGraphs(model, self.cache) if replayed else None

    @torch.inference_mode()
    def read(self, readings: Sequence[Reading]) -> Pass:
        """Begin to read prompts, packed one after the other. Logits: one row for each prompt read into a slot (its `sop`),
        one row for each token of each choice; in order."""
        groups = [[reading] for reading in readings] if self.batch_invariant else [readings]
        return Pass([self._read_together(group) for group in groups])

    def _read_together(self, readings: Sequence[Reading]) -> Part:
        ids: list[int] = []
        positions: list[int] = []
        wanted: list[int] = []
        segments = []
        for prompt, slot, choices in readings:
            context = prompt.context_length
            assert context > 0
            ids += prompt.ids[:context]
            positions += prompt.positions[:context]
            tail = prompt.ids[context:]  # `sop`; with text behind it where a prompt is read from left to right
            branches = [[*tail, *choice[:-1]] for choice in choices] or [[*tail]]
            for branch in branches:
                wanted += range(len(ids) + len(tail) - 1, len(ids) + len(branch))
                ids += branch
                positions += [*prompt.positions[context:], *map(prompt.position, range(len(branch) - len(tail)))]
            segments.append(Segment(context, tuple(map(len, branches)), slot))
        hidden = self._model.embed(self._indices(ids)[None])
        rotary = self._model.rotary(self._indices(positions)[None])
        return Part(hidden, rotary, PromptAttention(self.cache, segments), self._indices(wanted))

    @torch.inference_mode()
    def step(
        self,
        slots: Sequence[int],
        tokens: Sequence[int],
        columns: Sequence[int],
        positions: Sequence[int],
        trees: Sequence[Tree] = (),
        again: Sequence[int] = (),
    ) -> Pass:
        """Begin a decode step: token i goes to columns[i] of slots[i] (ascending), read at positions[i]; then the trees'.

        again: rows whose token ends a prompt that is in its slot already: it is computed to the bit as when the prompt was read.
        Logits: (rows, vocabulary), the trees' behind the others. A step that is replayed is done when this returns.
        """
        if self.graphs is not None and not trees:
            found = self.graphs.step(slots, tokens, columns, positions)
            return Pass([], len(self._model.layers), found=found)
        rows: list[_Token] = list(zip(slots, tokens, columns, positions, strict=True))
        if self._one_by_one:
            single = [self._step_together([row], ()) for row in rows]
            return Pass(single + [self._step_together((), [tree]) for tree in trees])
        if not self._whole_layers:
            return Pass([self._step_together(rows, trees)])
        usual = [row for row in range(len(rows)) if row not in again]
        parts = []
        if usual:
            parts.append(self._step_together([rows[row] for row in usual], ()))
        if again:
            parts.append(self._step_together([rows[row] for row in again], (), whole=False))
        if trees:
            parts.append(self._step_together((), trees))
        if not (usual and again):
            return Pass(parts)
        order = [*usual, *again, *range(len(rows), len(rows) + sum(len(tree.tokens) for tree in trees))]
        return Pass(parts, order=self._indices(order).argsort())

    def _step_together(self, rows: Sequence[_Token], trees: Sequence[Tree], *, whole: bool = True) -> Part:
        slots, tokens, columns, positions = zip(*rows, strict=True) if rows else ((), (), (), ())
        ids, places = [*tokens], [*positions]
        attentions: list[tuple[int, StepAttention | TreeAttention]] = []
        if rows:
            attention = StepAttention(self.cache, slots, columns, together=not self.batch_invariant, whole=whole)
            attentions.append((len(rows), attention))
        for tree in trees:
            ids += tree.tokens
            places += [tree.position] * len(tree.tokens)
            attentions.append((len(tree.tokens), TreeAttention(self.cache, tree)))
        hidden = self._model.embed(self._indices(ids)[:, None])
        rotary = self._model.rotary(self._indices(places)[:, None])
        return Part(hidden, rotary, MixedAttention(attentions) if trees else attentions[0][1])

    @torch.inference_mode()
    def advance(self, state: Pass, layers: int | None = None) -> bool:
        """Run the next `layers` layers, or all that are left. True when the last one is done."""
        total = len(self._model.layers)
        last = total if layers is None else min(total, state.layer + layers)
        for part in state.parts:
            part.hidden = self._model.run(part.hidden, part.rotary, part.attention, state.layer, last, part.wanted)
        state.layer = last
        return last == total

    @torch.inference_mode()
    def logits(self, state: Pass) -> Tensor:
        """(rows, vocabulary) of a pass whose layers are done."""
        assert state.layer == len(self._model.layers)
        if state.found is not None:
            return state.found
        found = [self._model.logits(part.hidden.flatten(0, 1)) for part in state.parts]
        logits = found[0] if len(found) == 1 else torch.cat(found)
        return logits if state.order is None else logits[state.order]

    @torch.inference_mode()
    def follow(self, work: Work) -> Tensor | None:
        """A pass, or a part of one, as every rank does it. The logits are the same in all ranks; None before the last layer."""
        for slot in work.clears:
            self.cache.clear(slot)
        for source, target, length in work.copies:
            self.cache.copy(source, target, length)
        if work.resume:
            assert self._reading is not None
            state = self._reading
        elif work.readings:
            state = self.read(work.readings)
        else:
            state = self.step(work.slots, work.tokens, work.columns, work.positions, work.trees, work.again)
        whole = self.advance(state, work.layers)
        if work.resume or work.readings:
            self._reading = None if whole else state
        return self.logits(state) if whole else None

    def _lead(self, plan: Plan, **pass_: Any) -> Tensor | None:
        """What a plan needs, with what is to be done in the cache before it, in all ranks."""
        work = Work(clears=(*self._clears, *plan.clears), copies=(*self._copies, *plan.copies), **pass_)
        self._clears, self._copies = [], []
        if self._announce is not None:
            self._announce(work)
        return self.follow(work)

    def run(self, plan: Plan, sampler: Sampler, end_ids: tuple[int, ...]) -> Outcome:
        """A scheduler's plan, whole: what `Scheduler.book` wants to know."""
        return self._run_prompts(plan, sampler, end_ids) if plan.prompts else self._run_rows(plan, sampler, end_ids)

    @torch.inference_mode()
    def _run_prompts(self, plan: Plan, sampler: Sampler, end_ids: tuple[int, ...]) -> Outcome:
        jobs = plan.prompts
        layers = None if plan.last is None else plan.last - plan.first
        readings = tuple(Reading(job.request.prompt, job.slot, job.request.choices) for job in jobs)
        resume = plan.first > 0
        logits = self._lead(plan, readings=() if resume else readings, resume=resume, layers=layers)
        if logits is None:
            if self._model.device.type != "cpu":
                torch.accelerator.synchronize()  # the scheduler wants to know how long it took
            return Outcome([], [], [])
        sources: list[int] = []  # for each row that gets a token, the row of logits it comes from
        scores: list[list[list[float]]] = []
        candidates: list[list[Candidate]] = []
        start = 0
        for job in jobs:
            if job.request.choices:
                logprobs = []
                for choice in job.request.choices:
                    block = logits[start : start + len(choice)].float().log_softmax(dim=-1)
                    logprobs.append(block.gather(1, self._indices(choice)[:, None])[:, 0].tolist())
                    start += len(choice)
                scores.append(logprobs)
                continue
            if job.search is not None:
                candidates.append(sampler.expand(logits[start : start + 1], job.search.ask()))
            sources += [start] * len(job.rows)
            start += 1
            for row in job.rows[1:]:
                self._copies.append((job.rows[0].slot, row.slot, len(job.request.prompt.ids)))
        rows = plan.sampled_rows()
        choices = self._chosen(sampler, logits[self._indices(sources)], [row.ask(end_ids) for row in rows])
        self._clean(plan, choices, candidates)
        return Outcome(choices, scores, candidates)

    @torch.inference_mode()
    def _run_rows(self, plan: Plan, sampler: Sampler, end_ids: tuple[int, ...]) -> Outcome:
        rows = plan.rows
        logits = self._lead(
            plan,
            slots=tuple(row.slot for row in rows),
            tokens=tuple(row.last_token for row in rows),
            columns=tuple(row.column for row in rows),
            positions=tuple(row.position for row in rows),
            trees=tuple(search.tree() for search in plan.searches),
            again=tuple(number for number, row in enumerate(rows) if not row.tokens),
        )
        assert logits is not None
        choices = self._chosen(sampler, logits[: len(rows)], [row.ask(end_ids) for row in rows])
        blocks = logits[len(rows) :].split([search.rows for search in plan.searches])
        candidates = [sampler.expand(block, search.ask()) for block, search in zip(blocks, plan.searches, strict=True)]
        self._clean(plan, choices, candidates)
        return Outcome(choices, [], candidates)

    def _chosen(self, sampler: Sampler, logits: Tensor, asks: Sequence[Ask]) -> list[Choice]:
        if self.batch_invariant:
            return [sampler(row[None], [ask])[0] for row, ask in zip(logits, asks, strict=True)]
        return sampler(logits, asks) if asks else []

    def _clean(self, plan: Plan, choices: list[Choice], candidates: list[list[Candidate]]) -> None:
        """What has inf or nan is about to leave, with all rows of its request: the slots must not hand them on."""
        jobs: list[Job] = [
            row.job for row, choice in zip(plan.sampled_rows(), choices, strict=True) if not choice.finite
        ]
        jobs += [
            job
            for job, found in zip(plan.searching_jobs(), candidates, strict=True)
            if not all(candidate.finite for candidate in found)
        ]
        for job in jobs:
            self._clears += job.held_slots()

    def _indices(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._model.device)
