"""What travels between the web process and a replica's process, and the limits it is checked against.

Everything is a plain dataclass of plain values: it pickles fast, and this file needs no torch. The web side sends Options to
every rank of a replica, then Request, Cancel and Stop to rank 0, which answers with one Ready, then with Steps; the other ranks
say Loaded and no more. LoadFailed may come from any. A request ends in exactly one of Finished, Cancelled, Failed.
`Ready.limits` is the only source of limits: `check` compares a request with them, on both sides of the pipe.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass, field
from typing import NamedTuple

from engine.errors import GLMError
from engine.glm.blanks import Prompt

# The rule that turns probabilities and a seed into tokens. A new rule is a new name: shared runs compare it.
SAMPLER = "inverse-cdf-2"
PRECISIONS = ("fp32", "bf16", "fp16")
OFFLOADS = ("none", "host", "disk")
MAX_ALTERNATIVES = 8
MAX_BEAMS = 16
MAX_CHOICES = 16
MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 200  # characters
MAX_BANNED = 4096
MAX_LOGPROBS = 20
MAX_PADDING = 32
MAX_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Limits:
    """What a replica that is ready can do, and what it runs. Lengths in tokens."""

    model: str
    weights_hash: str
    precision: str  # of the activations, and how the weights are quantised: "fp32", "fp16, int4"
    device: str
    version: str  # of the program and of torch
    positions: int  # prompt and answer together
    slots: int  # sequences that can run at the same time
    vocabulary: int  # ids below this may be in a prompt
    parameters: int
    tensor_parallel: int = 1  # ranks: their partial sums are added in an order of their own

    @property
    def max_new_tokens(self) -> int:
        """The most that any prompt leaves room for: a prompt has at least one token before `sop`."""
        return self.positions - 1

    @property
    def max_alternatives(self) -> int:
        return min(MAX_ALTERNATIVES, self.slots)

    def fingerprint(self) -> dict[str, str]:
        """With equal fingerprints, the same request and seed give the same tokens."""
        said = {
            "model": self.model,
            "weights_hash": self.weights_hash,
            "precision": self.precision,
            "device": self.device,
            "version": self.version,
            "sampler": SAMPLER,
        }
        return said if self.tensor_parallel == 1 else said | {"tensor_parallel": str(self.tensor_parallel)}


@dataclass(frozen=True, slots=True)
class Options:
    """How a replica's rank is to run: the first message on its pipe."""

    folder: str
    precision: str
    slots: int
    threads: int
    device: int | None  # number of the accelerator; None: the CPU
    prefill_tokens: int
    gap_seconds: (
        float  # that running rows wait for a token while prompts are read, see slicing.py; 0: as long as it takes
    )
    log_level: int
    rank: int = 0  # among `tensor_parallel` ranks, each with its part of the weights
    tensor_parallel: int = 1
    rendezvous: str | None = None  # a file of their own, where several ranks find each other
    quantize: str | None = None  # of config.SERVED_QUANTIZATIONS; None: as the folder has it
    offload: str = "none"  # where layers beyond weights_budget wait: "none" (all are loaded), "host", "disk"
    weights_budget: int | None = None  # bytes of one rank's weights that may be loaded at a time
    batch_invariant: bool = False  # the same numbers for a request, to the bit, whatever runs beside it
    kv_cache: str = "auto"  # of cache_precision.KV_CACHES
    eager: bool = False  # on accelerators, too, steps run operation by operation, see graphs.py


@dataclass(frozen=True, slots=True)
class Beams:
    """Beam search instead of choosing token by token (see beam.py): `count` answers are searched for at the same time.

    A finished answer's score is its log-probability / ((5 + length) / 6) ** length_penalty, where length counts the prompt, too,
    as GLM-130B's code does. sampled: candidates are drawn by their probability instead of taken from the top. consider_end:
    ended answers are the result, filled up with unfinished ones; without it the unfinished ones are.
    """

    count: int = 4
    length_penalty: float = 1.0
    sampled: bool = False
    consider_end: bool = True
    padding: int = (
        0  # tokens of padding behind the prompt that lengths and n-grams count, too: GLM-130B's evaluation has it
    )


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. The defaults sample from the model's own distribution.

    Applied in this order: repetition_penalty, bans, temperature, top_k, top_p. temperature 0 is greedy, and so is top_k 1;
    top_k 0 and top_p 1 cut nothing off. With `beams`, of these only the bans and lengths apply: see `check_sampling`.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0  # of tokens that are in the prompt or were made (CTRL, arXiv 1909.05858)
    no_repeat_ngram: int = 0  # no n-gram that ends in a generated token comes twice; 0 is off
    min_new_tokens: int = 0
    max_new_tokens: int | None = None  # None: as many as `generate` gives the kind of mask; never None in a Request
    stop: tuple[str, ...] = ()
    seed: int | None = None  # None: drawn when the request is accepted; never None in a Request
    banned_ids: tuple[int, ...] = ()
    banned_starts: tuple[tuple[int, ...], ...] = ()  # no answer begins with one of these
    logprobs: int = 0  # how many of the most likely tokens to report beside the chosen one
    beams: Beams | None = None

    def banned_next(self, made: tuple[int, ...]) -> tuple[int, ...]:
        """Tokens that would complete one of the banned starts behind those that were made."""
        return tuple(start[-1] for start in self.banned_starts if start[:-1] == made)


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to go on from (`choices` empty), or some answers to score behind it (`choices` given).

    All alternatives and choices share one reading of the prompt. `first_of_text`: the answer begins a text, so a space that
    the vocabulary puts in front of every text is dropped.
    """

    id: str
    prompt: Prompt
    sampling: Sampling = Sampling()
    alternatives: int = 1
    choices: tuple[tuple[int, ...], ...] = ()
    first_of_text: bool = False

    def slots(self, columns: int) -> int:
        """Cache slots of so many columns that it takes. Scoring keeps nothing; beams have the prompt once, then their own
        tokens side by side."""
        if self.choices:
            return 0
        return -(-self.tokens // columns) if self.sampling.beams is not None else self.alternatives

    @property
    def tokens(self) -> int:
        """Tokens that it may have in flight: the measure of load."""
        if self.choices:
            return len(self.prompt.ids) + sum(map(len, self.choices))
        answers = self.alternatives if self.sampling.beams is None else self.sampling.beams.count
        return len(self.prompt.ids) + answers * (self.sampling.max_new_tokens or 0)


@dataclass(frozen=True, slots=True)
class Cancel:
    id: str


@dataclass(frozen=True, slots=True)
class Stop:
    """The replica leaves at once."""


@dataclass(frozen=True, slots=True)
class Ready:
    limits: Limits


@dataclass(frozen=True, slots=True)
class Loaded:
    """A rank other than 0 has its part of the weights and waits for rank 0."""


@dataclass(frozen=True, slots=True)
class LoadFailed:
    error: GLMError


class Token(NamedTuple):
    """Text that became certain, with the token that made it so; `token` is None for text held back that is let go at the end."""

    request: str
    alternative: int
    text: str
    token: int | None
    logprob: float | None


class Beam(NamedTuple):
    """One answer of a beam search; text as far as it makes whole characters. score: see Beams, as if it ended here."""

    text: str
    logprob: float
    score: float
    ended: bool


class Search(NamedTuple):
    """How far a beam search is: its answers, best first. They may all change until the request has ended."""

    request: str
    beams: tuple[Beam, ...]


@dataclass(frozen=True, slots=True)
class Result:
    """One alternative, scored choice or beam (best first). `pieces` are the tokens' texts: joined they are the whole text."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    pieces: tuple[str, ...]
    reason: str  # "stop" (the model ended), "length", "stop_string"; "scored"
    end_logprob: float | None = None  # of the end token, if there was one
    top: tuple[tuple[tuple[int, float], ...], ...] = ()  # per token, (id, logprob) of the most likely ones
    score: float | None = None  # of a beam

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def logprob(self) -> float:
        """Of the whole answer, its end token included."""
        return math.fsum(self.logprobs) + (self.end_logprob or 0.0)


@dataclass(frozen=True, slots=True)
class Finished:
    id: str
    results: tuple[Result, ...]
    largest_batch: int  # rows of the largest step that it took part in


@dataclass(frozen=True, slots=True)
class Cancelled:
    id: str


@dataclass(frozen=True, slots=True)
class Failed:
    id: str
    error: GLMError


End = Finished | Cancelled | Failed


@dataclass(slots=True)
class Step:
    """What one step of a replica brought, for all its requests."""

    started: list[str] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    searches: list[Search] = field(default_factory=list)
    ends: list[End] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.started or self.tokens or self.searches or self.ends)


def uniform(seed: int, alternative: int, step: int) -> float:
    """A number in [0, 1) that depends on these three only: never on neighbours, device or history."""
    digest = hashlib.blake2b(struct.pack("<QIQ", seed, alternative, step), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53


def derive_seed(seed: int, part: int) -> int:
    """The seed of one part (a later blank) of a run; part 0 has the run's own."""
    if part == 0:
        return seed
    digest = hashlib.blake2b(struct.pack("<QQ", seed, part), digest_size=8).digest()
    return int.from_bytes(digest, "little") & MAX_SEED


def room(prompt_tokens: int, limits: Limits) -> int:
    """How many tokens can follow a prompt of so many, `sop` included: the context and the answer share the positions."""
    return limits.positions - (prompt_tokens - 1)


def beam_room(prompt_tokens: int, beams: int, limits: Limits) -> int:
    """How many tokens each of so many beams can get from all slots together."""
    return (limits.slots * limits.positions - prompt_tokens) // beams


def check_sampling(sampling: Sampling, limits: Limits) -> None:
    """GLMError bad_request, with the field and its limit, for a value that can't be used."""
    _within("temperature", sampling.temperature, 0.0, 100.0)
    _within("top_k", sampling.top_k, 0, limits.vocabulary)
    _within("top_p", sampling.top_p, 0.0, 1.0)
    if sampling.top_p <= 0:
        raise GLMError("bad_request", "top_p must be above 0.", field="top_p", limit=0)
    _within("repetition_penalty", sampling.repetition_penalty, 0.01, 100.0)
    _within("no_repeat_ngram", sampling.no_repeat_ngram, 0, limits.positions)
    _within("min_new_tokens", sampling.min_new_tokens, 0, limits.max_new_tokens)
    if sampling.max_new_tokens is not None:
        _within("max_new_tokens", sampling.max_new_tokens, 1, limits.max_new_tokens)
        if sampling.min_new_tokens > sampling.max_new_tokens:
            raise GLMError(
                "bad_request",
                "min_new_tokens can't be above max_new_tokens.",
                field="min_new_tokens",
                limit=sampling.max_new_tokens,
            )
    if sampling.seed is not None:
        _within("seed", sampling.seed, 0, MAX_SEED)
    _within("logprobs", sampling.logprobs, 0, min(MAX_LOGPROBS, limits.vocabulary))
    if len(sampling.stop) > MAX_STOP_STRINGS or any(not 0 < len(text) <= MAX_STOP_LENGTH for text in sampling.stop):
        raise GLMError(
            "bad_request",
            f"stop takes up to {MAX_STOP_STRINGS} strings of 1 to {MAX_STOP_LENGTH} characters.",
            field="stop",
            limit=MAX_STOP_STRINGS,
        )
    if len(sampling.banned_ids) > MAX_BANNED:
        raise GLMError(
            "bad_request", f"At most {MAX_BANNED} tokens can be banned.", field="banned_ids", limit=MAX_BANNED
        )
    if not all(0 <= token < limits.vocabulary for token in sampling.banned_ids):
        raise GLMError(
            "bad_request", "A banned token is not in the vocabulary.", field="banned_ids", limit=limits.vocabulary
        )
    if len(sampling.banned_starts) > MAX_BANNED or not all(sampling.banned_starts):
        message = f"At most {MAX_BANNED} starts of answers can be banned, of a token or more each."
        raise GLMError("bad_request", message, field="banned_starts", limit=MAX_BANNED)
    if sampling.beams is not None:
        _check_beams(sampling)


def _check_beams(sampling: Sampling) -> None:
    """Nothing is ignored silently: what beam search doesn't use is refused."""
    assert sampling.beams is not None
    _within("num_beams", sampling.beams.count, 1, MAX_BEAMS)
    _within("length_penalty", sampling.beams.length_penalty, -10.0, 10.0)
    _within("padding", sampling.beams.padding, 0, MAX_PADDING)
    plain = Sampling()
    for name in ("temperature", "top_k", "top_p", "repetition_penalty", "stop", "logprobs"):
        if getattr(sampling, name) != getattr(plain, name):
            raise GLMError("bad_request", f"Beam search does not use {name}: leave it out.", field=name)


def check(request: Request, limits: Limits) -> None:
    """GLMError prompt_too_long or bad_request for a request that these limits don't allow."""
    prompt, sampling = request.prompt, request.sampling
    check_sampling(sampling, limits)
    _within("alternatives", request.alternatives, 1, limits.max_alternatives)
    free = room(len(prompt.ids), limits)
    if free < 1:
        raise prompt_too_long(prompt.context_length, limits.positions)
    if not all(0 <= token < limits.vocabulary for token in prompt.ids):
        raise GLMError("bad_request", "The prompt has a token that the model doesn't know.", field="text")
    if request.choices:
        _within("answers", len(request.choices), 1, MAX_CHOICES)
        if any(not choice for choice in request.choices):
            raise GLMError("bad_request", "An answer to score is empty.", field="answers")
        if max(map(len, request.choices)) > free:
            raise GLMError(
                "prompt_too_long",
                f"Text and answer are longer than {limits.positions} tokens.",
                field="answers",
                limit=free,
            )
        if not all(0 <= token < limits.vocabulary for choice in request.choices for token in choice):
            raise GLMError("bad_request", "An answer has a token that the model doesn't know.", field="answers")
        return
    if sampling.seed is None or sampling.max_new_tokens is None:
        raise GLMError("bad_request", "A request needs a seed and max_new_tokens.", field="max_new_tokens")
    if sampling.max_new_tokens > free:
        raise GLMError(
            "bad_request", f"The prompt leaves room for {free} new tokens.", field="max_new_tokens", limit=free
        )
    if sampling.beams is None:
        return
    if request.alternatives > 1:
        raise GLMError("bad_request", "The beams are the alternatives: leave the number out.", field="alternatives")
    most = beam_room(len(prompt.ids), sampling.beams.count, limits)
    if sampling.max_new_tokens > most:
        count = sampling.beams.count
        message = f"{count} beams have room for {max(0, most)} new tokens each here."
        raise GLMError("bad_request", message, field="max_new_tokens" if most > 0 else "num_beams", limit=max(0, most))


def prompt_too_long(length: int, positions: int) -> GLMError:
    """length: tokens of the prompt without `sop`."""
    return GLMError(
        "prompt_too_long",
        f"The prompt has {length} tokens; the model takes {positions - 1} and needs room for an answer.",
        field="text",
        limit=positions - 1,
    )


def _within(name: str, value: float, low: float, high: float) -> None:
    kind = int if isinstance(low, int) else (int, float)
    if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:  # nan is in no range
        limit = high if isinstance(value, (int, float)) and value > high else low
        raise GLMError(
            "bad_request", f"{name} must be from {low:g} to {high:g}, not {value!r}.", field=name, limit=limit
        )
