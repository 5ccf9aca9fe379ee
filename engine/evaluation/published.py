"""What others published of GLM-130B on the tasks here, from published.yaml; never measured by this project, and always told so."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict

PUBLISHED = Path(__file__).parent / "published.yaml"
MARK = "published, not measured"
MODEL = "GLM-130B"


class Published(BaseModel):
    """group: of the task, None for the whole; file: one file of a group, by the stem of its name. where: table or figure."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    metric: str
    value: float
    precision: str
    source: str  # a key of `sources` in the file
    where: str
    group: str | None = None
    file: str | None = None
    note: str | None = None

    @property
    def origin(self) -> str:
        """For people."""
        return f"{_read()[0][self.source]}, {self.where}" + (f" ({self.note})" if self.note else "")

    def __str__(self) -> str:
        return f"{MODEL} {self.precision} {self.value:g}"


def published(
    task: str, metric: str | None = None, group: str | None = None, file: str | None = None
) -> tuple[Published, ...]:
    """Of a task by its name; of all metrics, or of one. group, file: of these alone; without them of the task as a whole."""
    return tuple(
        each
        for each in _read()[1].get(task, ())
        if (metric is None or each.metric == metric) and each.group == group and each.file == file
    )


def tasks() -> dict[str, tuple[Published, ...]]:
    """All of them, by task."""
    return dict(_read()[1])


@cache
def _read() -> tuple[dict[str, str], dict[str, tuple[Published, ...]]]:
    values = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))
    return values["sources"], {
        name: tuple(Published.model_validate(each) for each in entries) for name, entries in values["tasks"].items()
    }
