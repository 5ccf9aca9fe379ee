"""The Pile: bits a byte of UTF-8, over all documents and over those of each of its sets (Gao et al., arXiv 2101.00027).

A row is a document with its set's name as `meta.pile_set_name`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from engine.errors import GLMError
from engine.evaluation.kinds import LanguageModel
from engine.evaluation.metrics import Metric
from engine.evaluation.record import Record
from engine.evaluation.rows import Row


class Pile(LanguageModel):
    def metrics(self) -> dict[str, Metric]:
        return {}

    def measure(self, records: Sequence[Record], rows: Sequence[Row]) -> dict[str, float]:
        losses: dict[str, float] = defaultdict(float)
        sizes: dict[str, int] = defaultdict(int)
        for record, row in zip(records, rows, strict=True):
            meta = row.raw.get("meta")
            if not isinstance(meta, dict) or "pile_set_name" not in meta:
                message = f"Row {row.number} of {self.task.name} has no meta.pile_set_name."
                raise GLMError("bad_data", message, field="data")
            for name in ("BPB", f"BPB: {meta['pile_set_name']}"):
                losses[name] += record.loss
                sizes[name] += record.bytes
        return {name: loss / sizes[name] / math.log(2) for name, loss in losses.items() if sizes[name]}
