"""MC-TACO: is an answer about the time of an event plausible (Zhou et al., arXiv 1909.03065)?

A row is one candidate answer, with `sentence` and `question`; all rows of a file with both the same are one question.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from engine.errors import GLMError
from engine.evaluation.kinds import Generation
from engine.evaluation.record import Record
from engine.evaluation.rows import Row


class McTaco(Generation):
    """EM by answer, as any generation has it, and EM_questions: percent of questions with all answers judged rightly."""

    def measure(self, records: Sequence[Record], rows: Sequence[Row]) -> dict[str, float]:
        right: dict[tuple[str, str], bool] = defaultdict(lambda: True)
        for record, row in zip(records, rows, strict=True):
            if not {"sentence", "question"} <= row.raw.keys():
                message = f"Row {row.number} of {self.task.name} lacks sentence or question."
                raise GLMError("bad_data", message, field="data")
            right[row.raw["sentence"], row.raw["question"]] &= record.scores["EM"] == 100.0
        found = super().measure(records, rows)
        return found | {"EM_questions": 100.0 * sum(right.values()) / len(right)} if right else found
