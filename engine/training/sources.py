"""Training rows by the name of their source below a data folder: its path without the extension, `pretrain/world_factbook`.

A row has one of four forms; what else it holds doesn't matter:

    {"text"}                                 a document
    {"text", "answers": ["..."]}             a text with blanks, "... [MASK] ...", and what fills them
    {"messages": [{"role", "content"}]}      a conversation of user and assistant; an answer with "weight": 0 is not learnt
    {"prompt", "response"}                   a conversation of one round; it is read as {"messages"}

Files: JSON lines, plain or compressed, or Parquet with columns of these names (row_files.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from engine.errors import GLMError
from engine.glm.tokenizer import MASKS
from engine.training.row_files import EXTENSIONS, RowFile

_FORMS = 'a row needs "text" or "messages", "text" and "answers", or "prompt" and "response"'
ROLES = ("user", "assistant")


def find_source(folder: Path, name: str) -> Path:
    """The file of source `name`; GLMError bad_data if there is none, or if the name leads out of the folder."""
    path = PurePosixPath(name)
    if not name.strip("/") or path.is_absolute() or ".." in path.parts or "\\" in name or not name.isprintable():
        raise GLMError("bad_data", f"{name!r} can't name a source: it is a path below the data folder.", field="data")
    for extension in EXTENSIONS:
        file = folder / (name + extension)
        if file.is_file():
            return file
    known = ", ".join(EXTENSIONS[1:-1])
    raise GLMError(
        "bad_data", f"There is no {name}{EXTENSIONS[0]}, {known} or {EXTENSIONS[-1]} in {folder}.", field="data"
    )


def read_rows(folder: Path, name: str, limit_bytes: int | None = None) -> Iterator[dict]:
    """The rows of a source in file order, at most about `limit_bytes` of JSON. A broken line is an error that names it."""
    for _, row in numbered_rows(RowFile(find_source(folder, name)), limit_bytes):
        yield row


def numbered_rows(file: RowFile, limit_bytes: int | None = None, after: int = 0) -> Iterator[tuple[int, dict]]:
    """The same with the number of each row's line, of the lines behind `after`."""
    for number, row in file.rows(limit_bytes, after):
        try:
            row = checked(row)
        except GLMError as error:
            raise GLMError("bad_data", f"{file.place(number)}: {error.message}", field="data") from error
        yield number, row


def is_document(row: dict) -> bool:
    """Whether a checked row is a plain document."""
    return "text" in row and "answers" not in row and "messages" not in row


def checked(row: dict) -> dict:
    """The row in one of the forms {"text"}, {"text", "answers"}, {"messages"}. GLMError bad_data for any other.

    Nothing may be empty here: whether it gives anything to train on is found where it is used.
    """
    row = {name: value for name, value in row.items() if value is not None}
    if "text" in row and "answers" in row:
        _check_blanks(row["text"], row["answers"])
    elif "messages" in row:
        _check_messages(row["messages"])
    elif "text" in row:
        _check_text(row["text"], "text")
    elif "prompt" in row and "response" in row:
        prompt, response = row.pop("prompt"), row.pop("response")
        _check_text(prompt, "prompt")
        _check_text(response, "response")
        row["messages"] = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    else:
        raise GLMError("bad_data", f"{_FORMS}.")
    return row


def _check_blanks(text: object, answers: object) -> None:
    _check_text(text, "text")
    assert isinstance(text, str)
    if not isinstance(answers, list):
        raise GLMError("bad_data", '"answers" must be a list of texts.')
    for answer in answers:
        _check_text(answer, "answers")
    blanks = sum(text.count(mask) for mask in MASKS) or 1  # a text without any is gone on with, as at inference
    if answers and len(answers) != blanks:
        raise GLMError("bad_data", f"{len(answers)} answers for {blanks} blanks.")


def _check_messages(messages: object) -> None:
    if not isinstance(messages, list):
        raise GLMError("bad_data", '"messages" must be a list.')
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise GLMError("bad_data", f'a message needs a "role", {" or ".join(ROLES)}, and a "content".')
        _check_text(message.get("content"), "content")


def _check_text(text: object, what: str) -> None:
    if not isinstance(text, str):
        raise GLMError("bad_data", f'"{what}" must be a text, not {type(text).__name__}.')
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise GLMError("bad_data", f'"{what}" holds half a character at position {error.start}.') from error


def row_text(row: dict) -> str:
    """All the text of a row, for training a vocabulary."""
    if "messages" in row:
        return "\n".join(message["content"] for message in row["messages"])
    return "\n".join([row["text"], *row.get("answers", ())])
