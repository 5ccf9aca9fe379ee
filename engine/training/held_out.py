"""Questions kept away from training, to ask them afterwards."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from pathlib import Path
from random import Random

from engine.training.recipe import HeldOut
from engine.training.sources import read_rows


def held_out_rows(folder: Path, held: HeldOut, seed: int) -> list[dict]:
    """{"question", "answer", "lang"} rows: paraphrases whose answer at least two other training questions also give.

    Half of them in each language, chosen by the seed alone; at most one of each group of paraphrases.
    """
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in read_rows(folder, held.source):
        messages = row["messages"]
        if len(messages) == 2 and "[MASK]" not in messages[0]["content"]:
            groups[row["lang"], messages[1]["content"]].append(messages[0]["content"])
    random = Random(seed)
    chosen = []
    for language in ("en", "zh"):
        fitting = [key for key in sorted(groups) if key[0] == language and len(set(groups[key])) >= 3]
        random.shuffle(fitting)
        for key in fitting:
            questions = sorted(set(groups[key]) - set(held.keep))
            if questions and sum(row["lang"] == language for row in chosen) < held.count // 2:
                chosen.append({"question": random.choice(questions), "answer": key[1], "lang": language})
    return chosen


def digest(rows: list[dict]) -> str:
    """SHA-256 of the questions and answers, to show later that the split did not change."""
    text = "\n".join(f"{row['lang']}\t{row['question']}\t{row['answer']}" for row in rows)
    return hashlib.sha256(text.encode()).hexdigest()
