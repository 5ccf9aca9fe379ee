"""Where every request enters, from the browser, REST, the command line: complete, chat, fill, score. Torch-free.

    run = fill(pool, tokenizer, "The capital of [MASK] is Tokyo.", Sampling(temperature=0))     # accepted, or GLMError
    async for event in run: ...                          # see events.py; the last one is Done, Cancelled or Error
    run.cancel()                                         # at any moment; or: await pool.cancel(run.id)

Calling one of the four parses, checks and queues at once: what can be refused is refused by a GLMError of the call, with
nothing left behind. From then on a failure is an Error event. A run is not cancelled by leaving the iteration.

A text's blanks are filled left to right, each by a prompt of its own that has the fills before it in their places; or with
`order` "confident" in rounds that each place the surest of the fills of all open blanks (see run.py).
`complete` and `chat` fill one [gMASK], the last one, as blank 0. `alternatives` fills are made of every blank, from one
reading of its prompt; the first is the one that is shown and goes into the text. Without `max_new_tokens` a blank gets
run_job.DEFAULT_NEW_TOKENS; either is cut to what the model's positions leave, and so that prompt and answer of a blank are not
longer than `total_length`, if that is given. `run` is the run's id, if it has one.

The functions with `_job` in their names do the same up to what a run would be given; estimate.py tells what that would take.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence

from engine.errors import GLMError
from engine.glm import blanks
from engine.glm.blanks import Document
from engine.glm.config import ChatFormat
from engine.glm.tokenizer import Tokenizer
from engine.serving import protocol
from engine.serving.pinned import Pinned
from engine.serving.pool import Pool
from engine.serving.protocol import Limits, Sampling
from engine.serving.run import Run
from engine.serving.run_job import Job, check_order, kept_for_answer

# No text has this many characters for each of its tokens: longer ones are refused before they are tokenised.
_CHARACTERS_A_TOKEN = 64
_DEFAULT = Sampling()

Message = Mapping[str, str] | tuple[str, str]  # {"role", "content"}, or (role, content)


def fill(
    pool: Pool | Pinned,
    tokenizer: Tokenizer,
    text: str,
    sampling: Sampling = _DEFAULT,
    alternatives: int = 1,
    *,
    order: str = "left",
    total_length: int | None = None,
    run: str | None = None,
) -> Run:
    """Fill every mask of a text, of any kind; a text without one gets a [gMASK] at its end. The run's text is the whole text.

    GLMError: unknown_mask, prompt_too_long, bad_request (with the field), queue_full, overloaded.
    """
    limits = pool.require_limits()
    job = fill_job(limits, tokenizer, text, sampling, alternatives, order=order, total_length=total_length)
    return Run(pool, tokenizer, job, run)


def fill_job(
    limits: Limits,
    tokenizer: Tokenizer,
    text: str,
    sampling: Sampling = _DEFAULT,
    alternatives: int = 1,
    *,
    order: str = "left",
    total_length: int | None = None,
) -> Job:
    """What `fill` gives its run."""
    document = _parse(limits, tokenizer, text)
    check_order(order, len(document.masks), sampling)
    return Job(document, document.masks, sampling, alternatives, total_length=total_length, order=order)


def complete(
    pool: Pool | Pinned,
    tokenizer: Tokenizer,
    text: str,
    sampling: Sampling = _DEFAULT,
    alternatives: int = 1,
    *,
    total_length: int | None = None,
    run: str | None = None,
) -> Run:
    """Go on from a text. The run's text is what was added. Masks inside the text stay masks. GLMError as in `fill`."""
    job = complete_job(pool.require_limits(), tokenizer, text, sampling, alternatives, total_length=total_length)
    return Run(pool, tokenizer, job, run)


def complete_job(
    limits: Limits,
    tokenizer: Tokenizer,
    text: str,
    sampling: Sampling = _DEFAULT,
    alternatives: int = 1,
    *,
    total_length: int | None = None,
) -> Job:
    """What `complete` gives its run."""
    document = _parse(limits, tokenizer, text if text.endswith("[gMASK]") else text + "[gMASK]")
    return Job(document, document.masks[-1:], sampling, alternatives, whole_text=False, total_length=total_length)


def chat(
    pool: Pool | Pinned,
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    sampling: Sampling = _DEFAULT,
    chat_format: ChatFormat | None = None,
    alternatives: int = 1,
    *,
    total_length: int | None = None,
    run: str | None = None,
) -> Run:
    """Answer a conversation: messages in order, of role "user" or "assistant", the user's last. The run's text is the answer.

    When the conversation is too long, its oldest rounds (a user's message and what was answered) are left out whole, until
    the wanted answer, or a quarter of the positions, has room; Started says how many messages that were.
    GLMError: as in `fill`; unsupported for a model without a chat format.
    """
    limits = pool.require_limits()
    job = chat_job(limits, tokenizer, messages, sampling, chat_format, alternatives, total_length=total_length)
    return Run(pool, tokenizer, job, run)


def chat_job(
    limits: Limits,
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    sampling: Sampling = _DEFAULT,
    chat_format: ChatFormat | None = None,
    alternatives: int = 1,
    *,
    total_length: int | None = None,
) -> Job:
    """What `chat` gives its run."""
    if chat_format is None:
        raise GLMError("unsupported", "This model has no chat format.", field="messages")
    rounds = _rounds(messages)
    most = limits.positions - kept_for_answer(sampling, limits)

    def written(start: int) -> str:
        return blanks.chat_text([message for part in rounds[start:] for message in part], chat_format)

    def fits(start: int) -> bool:
        text = written(start)
        return (
            len(text) <= limits.positions * _CHARACTERS_A_TOKEN
            and len(blanks.parse(text, tokenizer, strict=False).ids) <= most
        )

    # The first round from which on all fits, found by halving: a conversation of a thousand rounds is read ten times.
    start = bisect_left(range(len(rounds) - 1), True, key=fits)
    document = _parse(limits, tokenizer, written(start), strict=False)
    return Job(
        document,
        document.masks[-1:],
        sampling,
        alternatives,
        whole_text=False,
        own_text=True,
        dropped_messages=sum(map(len, rounds[:start])),
        total_length=total_length,
    )


def score(
    pool: Pool | Pinned, tokenizer: Tokenizer, text: str, answers: Sequence[str], *, run: str | None = None
) -> Run:
    """How likely somebody's own words are: one answer for each mask of a text, in order, by teacher forcing. A Blank event
    each: `logprob` of its alternative counts the end token, its tokens' don't. The run's text has the answers in place.

    GLMError as in `fill`, and bad_request for the field answers.
    """
    document = _parse(pool.require_limits(), tokenizer, text)
    if len(answers) != len(document.masks):
        message = f"The text has {len(document.masks)} blanks, but there are {len(answers)} answers."
        raise GLMError("bad_request", message, field="answers", limit=len(document.masks))
    return Run(pool, tokenizer, Job(document, document.masks, Sampling(seed=0), answers=tuple(answers)), run)


def _parse(limits: Limits, tokenizer: Tokenizer, text: str, *, strict: bool = True) -> Document:
    positions = limits.positions
    if len(text) > positions * _CHARACTERS_A_TOKEN:
        message = f"The text has {len(text)} characters, far more than the {positions} tokens that the model takes."
        raise GLMError("prompt_too_long", message, field="text", limit=positions - 1)
    document = blanks.parse(text, tokenizer, strict=strict)
    if len(document.ids) >= positions:
        raise protocol.prompt_too_long(len(document.ids), positions)
    return document


def _rounds(messages: Sequence[Message]) -> list[list[tuple[str, str]]]:
    """The conversation as rounds that each begin with a user's message (the first may begin with the assistant's)."""
    rounds: list[list[tuple[str, str]]] = []
    for message in messages:
        role, content = message if isinstance(message, tuple) else (message.get("role"), message.get("content"))
        if role not in ("user", "assistant") or not isinstance(content, str):
            raise GLMError("bad_request", "A message needs a role, user or assistant, and a content.", field="messages")
        if role == "user" or not rounds:
            rounds.append([])
        rounds[-1].append((role, content))
    if not rounds or rounds[-1][-1][0] != "user" or not rounds[-1][-1][1].strip():
        raise GLMError("bad_request", "The last message must be the user's, and say something.", field="messages")
    return rounds
