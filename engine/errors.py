"""One exception for whatever a user, a file or the machine causes.

`kind` is a stable word that the web layer maps to a status code and a sentence, and that programs may compare;
`str(error)` is a sentence for a person. Mistakes of our own code are asserts, never a GLMError.
"""

from __future__ import annotations

KINDS = frozenset(
    {
        "bad_request",  # a field has a value that can't be used
        "unknown_mask",  # text in mask brackets that is not a mask
        "prompt_too_long",  # the prompt leaves no room in the model's positions
        "queue_full",  # refused now, worth trying again
        "overloaded",  # the service can't take work at all at present
        "worker_died",  # the process that ran the model ended in the middle of a request
        "non_finite_logits",  # the model gave inf or nan
        "timeout",
        "model_not_found",
        "bad_model",  # a model folder that can't be read, or is another model's
        "bad_data",  # training or evaluation data that can't be used
        "unsupported",
        "internal",
    }
)


class GLMError(Exception):
    """A typed error: `kind` (one of KINDS), the `field` it is about and the `limit` that was passed, if any."""

    def __init__(
        self,
        kind: str,
        message: str,
        *,
        field: str | None = None,
        limit: int | float | str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        assert kind in KINDS, kind
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.field = field
        self.limit = limit
        self.retry_after_s = retry_after_s

    def __reduce__(self):
        # Errors travel over process pipes; keyword-only arguments need a hand-made constructor call.
        return _rebuild, (self.kind, self.message, self.field, self.limit, self.retry_after_s)


def _rebuild(kind: str, message: str, field, limit, retry_after_s) -> GLMError:
    return GLMError(kind, message, field=field, limit=limit, retry_after_s=retry_after_s)
