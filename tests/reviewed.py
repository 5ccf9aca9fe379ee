"""A small record with something of everything: chats, completions, filled texts, thumbs, votes, corrections of each kind."""

from __future__ import annotations

from typing import Any

from storage import FilledBlank, Record
from storage.models import Base
from storage.opinions import count_opinions
from storage.review_tables import Review, ReviewTag, SpanCorrection
from storage.staff_tables import Staff


async def add(record: Record, *rows: Base) -> None:
    """Write rows as they are, in this order, and what the queue shows of their runs."""

    async def work(session) -> None:
        for row in rows:
            session.add(row)
            await session.flush()
        await count_opinions(session, sorted({row.run_id for row in rows if isinstance(row, Review)}))

    await record.database.write(work)


async def finish(record: Record, id: str, prompt: Any, output: str, **changes: Any) -> None:
    """A finished run of ann's; `changes` go to its acceptance, `blanks`, `status` and `finish_reason` to its end."""
    end = {name: changes.pop(name) for name in ("blanks", "status", "finish_reason", "new_tokens") if name in changes}
    values = {"visitor": "ann", "mode": "chat" if isinstance(prompt, list) else "generate", "parameters": {}}
    await record.accept_run(id, **{**values, "prompt": prompt, **changes})
    await record.finalise_run(id, end.pop("status", "done"), output=output, **{"finish_reason": "stop", **end})


def ask(*contents: str) -> list[dict[str, str]]:
    """A conversation, the user's messages and the answers in turn."""
    return [{"role": ("user", "assistant")[place % 2], "content": content} for place, content in enumerate(contents)]


def review(record: Record, run: str, **values: Any) -> Review:
    """A review of a run, as the desk would leave it."""
    now = record.clock()
    defaults = {"version": 1, "status": "done", "flagged": False, "note": "", "created": now, "updated": now}
    return Review(run_id=run, **{**defaults, "reviewer_id": "rita", **values})


def span(
    record: Record, id: str, run: str, output: str, rejected: str, chosen: str, *, frame=("", "")
) -> SpanCorrection:
    """A corrected span of a run's output; `frame` is what stands before and behind the output in the text with the blank."""
    start = output.index(rejected)
    end = start + len(rejected)
    return SpanCorrection(
        id=id,
        run_id=run,
        start=start,
        end=end,
        rejected=rejected,
        chosen=chosen,
        source="model",
        text=f"{frame[0]}{output[:start]}[MASK]{output[end:]}{frame[1]}",
        alternatives=[{"text": chosen, "logprob": -0.5}, {"text": rejected, "logprob": -1.25}],
        logprob=-0.5,
        reviewer_id="rita",
        created=record.clock(),
    )


async def fill_record(record: Record) -> None:
    """The whole of it. Runs in order of time:

    capital   chat, a wrong span corrected: Lyon -> Paris
    second    its second round, thumb up; gives away an e-mail address and a name
    story     completion, rewritten as a whole
    filled    text with two blanks, one of them corrected
    good      chat, five stars, in Chinese
    twice     the same as good
    worse     the same question as good, thumb down
    failed    ended in an error, without an output
    """
    await add(
        record,
        Staff(id="rita", name="rita", role="reviewer", password=None, created=record.clock()),
        Staff(id="adam", name="adam", role="admin", password="scrypt$secret$hash", created=record.clock()),
    )
    model = await record.ensure_model_version("a" * 64, "embedded", {"layers": 2})
    chat = await record.create_conversation("ann", "chat", "Capitals")
    await finish(
        record,
        "capital",
        ask("What is the capital of France?"),
        "The capital is Lyon, of course.",
        conversation=chat,
        model_version=model,
        seed=7,
        new_tokens=7,
        blanks=[FilledBlank(0, "[gMASK]", "The capital is Lyon, of course.", (1, 2, 70000), (-0.1, -2.5, -0.1))],
    )
    await finish(
        record,
        "second",
        ask("What is the capital of France?", "The capital is Lyon, of course.", "My name is Zebulon, zeb@example.org"),
        "Hello Zebulon! I'll write to zeb@example.org.",
        conversation=chat,
        model_version=model,
        client="api",
    )
    await record.add_feedback("second", "ann", rating=1, comment="=SUM(A1) it knows Zebulon")
    await finish(record, "story", "Once upon a time", " there was a bad story.", model_version=model)
    filled = "Water boils at 50 degrees and freezes at 0."
    blanks = [FilledBlank(0, "[MASK]", "50 degrees", (3,), (-1.0,)), FilledBlank(1, "[MASK]", "0", (4,), (-0.5,))]
    prompt = "Water boils at [MASK] and freezes at [MASK]."
    await finish(record, "filled", prompt, filled, mode="fill", blanks=blanks, model_version=model)
    pair = await record.create_conversation("bob", "chat", "问答")
    question = ask("中国的首都是哪里？")
    for id, output in (("good", "中国的首都是北京。"), ("twice", "中国的首都是北京。"), ("worse", "我不知道。")):
        await finish(record, id, question, output, visitor="bob", conversation=pair, model_version=model)
    await record.add_feedback("worse", "bob", rating=-1)
    await record.add_feedback("good", "bob", rating=1)
    await record.vote("worse", "good", "bob", "second", blind=True)
    await record.accept_run("failed", visitor="bob", mode="generate", prompt="x", parameters={"stop": ["=1+1"]})
    await record.finalise_run("failed", "error", error_kind="overloaded", error_message="Too many.")
    await add(
        record,
        review(record, "capital", rating=2, corrected="The capital is Paris, of course.", note="-1: wrong city"),
        span(
            record,
            "s1",
            "capital",
            "The capital is Lyon, of course.",
            "Lyon",
            "Paris",
            frame=("Question: What is the capital of France?\nAnswer: ", ""),
        ),
        ReviewTag(run_id="capital", tag="fact"),
        ReviewTag(run_id="capital", tag="geography"),
        review(record, "story", corrected=" there was a good story."),
        review(record, "filled", corrected="Water boils at 100 degrees and freezes at 0."),
        span(record, "s2", "filled", filled, "50", "100"),
        review(record, "good", rating=5),
        review(record, "twice", rating=5),
    )
