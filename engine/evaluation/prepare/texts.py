"""Texts to measure perplexity on: WikiText-2 and -103, Penn Treebank, the Pile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from engine.evaluation.prepare.converter import Converter, Made, find
from engine.evaluation.prepare.rows import bad, ending, read, read_text

_PLAIN = (".tokens", ".raw", ".txt")
_ROWS = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.xz", ".jsonl.zst")


def whole(splits: dict[str, str], written: str, *columns: str) -> Callable[[Path, list[str]], Made]:
    """A split as one text: its plain file as it is, or the rows of a Parquet or JSON lines file joined. written: the name of the
    file that a split becomes, with {split}. columns: names of the rows' text."""

    def make(source: Path, notes: list[str]) -> Made:
        for split, paths in find(source, splits, (*_PLAIN, *_ROWS)).items():
            name = written.format(split=split)
            for path in paths:
                if ending(path) is None:
                    yield name, read_text(path)
                    continue
                for row in read(path):
                    text = row.get(*columns) if any(map(row.has, columns)) else ""
                    if not isinstance(text, str):
                        raise bad(f"{row.place}: the field {columns[0]!r} is not a text.")
                    yield name, _as_published(text)

    return make


def _as_published(text: str) -> str:
    """With blanks around every line, as the plain files have them: words are counted between blanks, line breaks as one each."""
    if not text or text.endswith("\n"):
        return text  # the hub's rows of WikiText are lines of the plain file
    return "".join(f" {line.strip()} \n" for line in text.split("\n"))


def pile(source: Path, notes: list[str]) -> Made:
    """Documents, each with the part of the Pile that it is from."""
    for split, paths in find(source, {"test": "test", "validation": "validation|val"}, _ROWS).items():
        for path in paths:
            for row in read(path):
                part = row.inside("meta").text("pile_set_name")
                text = row.get("text")
                if not isinstance(text, str):
                    raise bad(f"{row.place}: the field 'text' is not a text.")
                if text:
                    yield f"{split}.jsonl", {"text": text, "meta": {"pile_set_name": part}}


def _wikitext(name: str) -> Converter:
    splits = {"test": r"wiki\.test|test", "valid": r"wiki\.valid|validation|valid"}
    return Converter(
        name,
        name,
        f"the folder {name} (wiki.test.tokens, wiki.valid.tokens), or the hub's wikitext/{name}-v1 or -raw-v1",
        whole(splits, "wiki.{split}.tokens", "text"),
    )


CONVERTERS = (
    _wikitext("wikitext-2"),
    _wikitext("wikitext-103"),
    Converter(
        "ptb",
        "ptbdataset",
        "Mikolov's ptb.test.txt and ptb.valid.txt, or the hub's ptb_text_only",
        whole(
            {"test": r"ptb\.test|test", "valid": r"ptb\.valid|validation|valid"}, "ptb.{split}.txt", "sentence", "text"
        ),
    ),
    Converter("pile", "pile", "the Pile's test.jsonl.zst and val.jsonl.zst", pile),
)
