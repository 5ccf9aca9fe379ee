"""LAMBADA: the last word of a passage, by beam search without punctuation, as GLM-130B's own task asks it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from string import punctuation

from engine.evaluation.kinds import Answer, Generation, Question
from engine.evaluation.metrics import Metric, best_of_targets
from engine.evaluation.record import Record
from engine.evaluation.rows import Row, encode
from engine.glm.blanks import Prompt
from engine.glm.tokenizer import ICETK_IMAGE_TOKENS, Tokenizer
from engine.serving.protocol import Sampling

# Ids of icetk that its code bans besides: anywhere, and as a beginning.
_ICETK_BANNED = (20068, 146010, 146337)
_ICETK_BANNED_STARTS = ((46010,), (146337,))


class Lambada(Generation):
    """The first word of the best beam whose second word is punctuation, or of the best one; right if it is the word, exactly."""

    keeps_beams = True

    def metrics(self) -> dict[str, Metric]:
        return {"Accuracy": Metric(("gen",), of_row=best_of_targets(_same))}

    def sampling(self, prompt: Prompt) -> Sampling:
        plain = super().sampling(prompt)
        if plain.beams is None:
            return plain
        banned, starts = banned_tokens(self.tokenizer)
        return replace(plain, banned_ids=banned, banned_starts=starts)

    def record(self, row: Row, question: Question, answers: Sequence[Answer]) -> Record:
        record = super().record(row, question, answers)
        texts = [self.tokenizer.decode(answer.ids).strip() for answer in answers]
        chosen = next((text for text in texts if _ends_in_punctuation(text)), texts[0])
        word = encode(self.tokenizer, chosen.split(" ")[0])
        record.text = self.tokenizer.decode(word)
        return record


def banned_tokens(tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """Tokens that no answer has, and beginnings that none has: punctuation, of one token or of several."""
    marks = [encode(tokenizer, mark) for mark in punctuation]
    banned = [ids[0] for ids in marks if len(ids) == 1]
    starts = list(marks)
    if tokenizer.num_image_tokens == ICETK_IMAGE_TOKENS:
        banned += _ICETK_BANNED
        starts += _ICETK_BANNED_STARTS
    return tuple(dict.fromkeys(banned)), tuple(dict.fromkeys(starts))


def _ends_in_punctuation(text: str) -> bool:
    words = text.split(" ")
    return len(words) >= 2 and words[1] in punctuation


def _same(prediction: str, target: str) -> float:
    return float(prediction.strip() == target.strip())
