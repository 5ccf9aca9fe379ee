"""Which runs are meant: one description for the queue of the review desk, for export and for datasets.

    filter = RunFilter.parse({"words": "机器学习", "language": "zh,mixed", "rating_from": 4, "reviewed": True})
    select(Run).where(*filter.conditions(database.dialect))

Only runs whose texts still exist meet a filter. Unless `clients` or `ids` ask for them, what staff let the model write at the desk
(`client` STAFF_CLIENT) doesn't. Of several values of one field any will do; different fields must all be met.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, exists, or_

from storage import search
from storage.errors import StorageError
from storage.models import FINAL, UNFINISHED, Run
from storage.review_tables import Review, ReviewTag
from storage.words import LANGUAGES, QUERY_CHARACTERS

STAFF_CLIENT = "review"
THUMBS = ("up", "down", "any")
STARS = range(1, 6)
VALUES = 50  # of one field
IDS = 1000
VALUE_CHARACTERS = 200

#: What `parse` also understands: one of them by a name in the singular.
_ALIASES = {
    "mode": "modes",
    "status": "statuses",
    "model_version": "model_versions",
    "language": "languages",
    "tag": "tags",
    "reviewer": "reviewers",
    "client": "clients",
    "id": "ids",
    "q": "words",
}


@dataclass(frozen=True, slots=True)
class RunFilter:
    """All that is None or empty makes no difference.

    `words`: see `storage.words.query`. `model_versions`: numbers of the table. `rating_from`, `rating_to`: staff's stars, 1 to 5,
    both included. `thumbs`: visitors'. `reviewers`: ids of staff, who changed the review last. `reviewed`: whether the review is
    done. `created_from` is included, `created_to` is not.
    """

    words: str | None = None
    modes: tuple[str, ...] = ()
    statuses: tuple[str, ...] = ()
    model_versions: tuple[int, ...] = ()
    languages: tuple[str, ...] = ()
    rating_from: int | None = None
    rating_to: int | None = None
    thumbs: str | None = None
    tags: tuple[str, ...] = ()
    reviewers: tuple[str, ...] = ()
    reviewed: bool | None = None
    corrected: bool | None = None
    flagged: bool | None = None
    clients: tuple[str, ...] = ()
    created_from: datetime | None = None
    created_to: datetime | None = None
    visitor: str | None = None
    ids: tuple[str, ...] = ()

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> RunFilter:
        """From JSON or a query string: several values as a list or with commas, moments in ISO 8601 (UTC unless they say so; a day
        alone as `created_to` includes that day). Empty values are left out.

        Raises `StorageError("bad_request")` with the field.
        """
        values: dict[str, Any] = {}
        for name, value in given.items():
            field = _ALIASES.get(name, name)
            if field not in _READERS:
                raise _wrong(str(name)[:50], "There is no such filter.")
            if isinstance(value, list | tuple) and len(value) == 1 and field not in _MANY:
                value = value[0]
            if value is None or value == "" or value == [] or value == ():
                continue
            values[field] = _READERS[field](field, value)
        filter = cls(**values)
        if filter.words is not None:
            search.check(filter.words)
        return filter

    def as_dict(self) -> dict[str, Any]:
        """What is set, as JSON; `parse` makes the same filter of it."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: _as_json(value) for name, value in values.items() if value is not None and value != ()}

    def conditions(self, dialect: str, *, words: bool = True) -> list[ColumnElement[bool]]:
        """What a row of `Run` must meet, on this kind of database; `words` False leaves the search out."""
        found: list[ColumnElement[bool]] = [Run.deleted.is_(None)]
        for column, values in (
            (Run.mode, self.modes),
            (Run.status, self.statuses),
            (Run.model_version_id, self.model_versions),
            (Run.language, self.languages),
            (Run.client, self.clients),
            (Run.id, self.ids),
        ):
            if values:
                found.append(column.in_(values) if len(values) > 1 else column == values[0])
        if not self.clients and not self.ids:
            found.append(Run.client != STAFF_CLIENT)
        if self.visitor is not None:
            found.append(Run.visitor == self.visitor)
        if self.created_from is not None:
            found.append(Run.created >= self.created_from)
        if self.created_to is not None:
            found.append(Run.created < self.created_to)
        found += self._opinions()
        if words and self.words is not None:
            found.append(search.condition(dialect, self.words))
        return found

    @property
    def needs_opinion(self) -> bool:
        """Whether only runs meet it of which somebody said something (`Run.touched`)."""
        asked = (self.rating_from, self.rating_to, self.thumbs)
        positive = self.reviewed or self.corrected or self.flagged
        return bool(any(value is not None for value in asked) or self.tags or self.reviewers or positive)

    def _opinions(self) -> list[ColumnElement[bool]]:
        found: list[ColumnElement[bool]] = [Run.touched.is_(True)] if self.needs_opinion else []
        if self.rating_from is not None:
            found.append(Run.stars >= self.rating_from)
        if self.rating_to is not None:
            found.append(and_(Run.stars >= STARS[0], Run.stars <= self.rating_to))
        if self.thumbs is not None:
            up, down = Run.thumbs_up > 0, Run.thumbs_down > 0
            found.append({"up": up, "down": down, "any": or_(up, down)}[self.thumbs])
        for column, wanted in (
            (Run.reviewed, self.reviewed),
            (Run.corrected, self.corrected),
            (Run.flagged, self.flagged),
        ):
            if wanted is not None:
                found.append(column.is_(wanted))
        if self.tags:
            found.append(exists().where(ReviewTag.run_id == Run.id, ReviewTag.tag.in_(self.tags)))
        if self.reviewers:
            found.append(exists().where(Review.run_id == Run.id, Review.reviewer_id.in_(self.reviewers)))
        return found


def _as_json(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return list(value) if isinstance(value, tuple) else value


# How each field is read


def _words(field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _wrong(field, "This must be a text.")
    if len(value) > QUERY_CHARACTERS:
        raise _wrong(field, f"This may have {QUERY_CHARACTERS} characters.", QUERY_CHARACTERS)
    return value


def _text(field: str, value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= VALUE_CHARACTERS:
        raise _wrong(field, f"This must be a text of 1 to {VALUE_CHARACTERS} characters.", VALUE_CHARACTERS)
    return value


def _parts(field: str, value: Any, most: int = VALUES) -> list[Any]:
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    split: list[Any] = []
    for one in values:
        split += [part.strip() for part in one.split(",") if part.strip()] if isinstance(one, str) else [one]
    if len(split) > most:
        raise _wrong(field, f"This may have {most} values.", most)
    return list(dict.fromkeys(split))


def _texts(field: str, value: Any) -> tuple[str, ...]:
    return tuple(_text(field, part) for part in _parts(field, value, IDS if field == "ids" else VALUES))


def _numbers(field: str, value: Any) -> tuple[int, ...]:
    return tuple(_number(field, part) for part in _parts(field, value))


def _number(field: str, value: Any) -> int:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        return int(value)
    if not whole or not 0 <= value < 1 << 31:
        raise _wrong(field, "This must be a whole number.")
    return value


def _stars(field: str, value: Any) -> int:
    number = _number(field, value)
    if number not in STARS:
        raise _wrong(field, "Stars go from 1 to 5.", 5)
    return number


def _known(values: Iterable[str]):
    known = tuple(values)

    def read(field: str, value: Any) -> tuple[str, ...]:
        found = _texts(field, value)
        if not set(found) <= set(known):
            raise _wrong(field, f"This must be one of {', '.join(known)}.")
        return found

    return read


def _thumbs(field: str, value: Any) -> str:
    (found, *rest) = _known(THUMBS)(field, value)
    if rest:
        raise _wrong(field, f"This must be one of {', '.join(THUMBS)}.")
    return found


def _truth(field: str, value: Any) -> bool:
    truth = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(str(value).lower())
    if truth is None:
        raise _wrong(field, "This must be true or false.")
    return truth


def _moment(field: str, value: Any) -> datetime:
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    try:
        if isinstance(value, str) and len(value) == 10:
            day = datetime.combine(date.fromisoformat(value), datetime.min.time(), UTC)
            return day + timedelta(days=1) if field == "created_to" else day
        moment = datetime.fromisoformat(value)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (TypeError, ValueError, OverflowError) as error:
        raise _wrong(field, "This must be a day or a moment, as 2026-01-31 or 2026-01-31T12:00:00Z.") from error


_READERS = {
    "words": _words,
    "modes": _texts,
    "statuses": _known(FINAL + UNFINISHED),
    "model_versions": _numbers,
    "languages": _known(LANGUAGES),
    "rating_from": _stars,
    "rating_to": _stars,
    "thumbs": _thumbs,
    "tags": _texts,
    "reviewers": _texts,
    "reviewed": _truth,
    "corrected": _truth,
    "flagged": _truth,
    "clients": _texts,
    "created_from": _moment,
    "created_to": _moment,
    "visitor": _text,
    "ids": _texts,
}
_MANY = {"modes", "statuses", "model_versions", "languages", "tags", "reviewers", "clients", "ids"}


def _wrong(field: str, message: str, limit: int | None = None) -> StorageError:
    return StorageError("bad_request", f"{field}: {message}", field=field, limit=limit)
