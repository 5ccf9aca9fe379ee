"""A whole number for each run, whose order is that of acceptance: what pages of the queue and the full-text index go by.

The microseconds since 1970 are its upper bits; the lower ones tell apart what one process accepts in the same microsecond. It
fits into 63 bits until the year 2112.
"""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

LOWER_BITS = 11

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_lower = itertools.count()


def run_number(created: datetime) -> int:
    """A number for a run of this moment, another at each call."""
    return first_number(created) | (next(_lower) & ((1 << LOWER_BITS) - 1))


def first_number(moment: datetime) -> int:
    """The smallest number that a run of this moment can have. ValueError for one without a time zone."""
    if moment.tzinfo is None:
        raise ValueError("a moment needs a time zone")
    return (moment - _EPOCH) // timedelta(microseconds=1) << LOWER_BITS
