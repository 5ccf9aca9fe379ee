"""How a command ends: its exit status, and what went wrong as a sentence on stderr instead of a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from engine.errors import GLMError

MISTAKES = (
    frozenset(  # of whoever typed the command, in its arguments or files; all other kinds are the machine's failures
        {"bad_request", "bad_data", "bad_model", "model_not_found", "prompt_too_long", "unknown_mask", "unsupported"}
    )
)
_NO_SUCH_FILE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


def status(error: GLMError) -> int:
    """2 for a mistake, 1 for a failure."""
    return 2 if error.kind in MISTAKES else 1


def told(work: Callable[[], int], ended: str = "", leave_line: Callable[[], None] = lambda: None) -> int:
    """The exit status of `work`: its own; 2 for a mistake; 1 when the machine fails; 130 when it was interrupted.

    ended: what has become of it when it was interrupted or the machine failed, in a sentence. leave_line: called before anything
    is told.
    """
    try:
        return work()
    except GLMError as error:
        leave_line()
        sys.stderr.write(f"error: {error}\n")
        return status(error)
    except KeyboardInterrupt:
        leave_line()
        if ended:
            sys.stderr.write(f"Ended. {ended}\n")
        return 130
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        leave_line()
        what = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(f"error: {what}{error.strerror or error}.{ended and f' {ended}'}\n")
        return 2 if isinstance(error, _NO_SUCH_FILE) else 1
