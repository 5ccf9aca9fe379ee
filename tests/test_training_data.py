"""The data of a training run: formats and forms of rows, tokenised sources, what is left out, and the same order always."""

from __future__ import annotations

import gzip
import itertools
import json
import lzma
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy
import pytest

from engine.errors import GLMError
from engine.glm.config import CHAT
from engine.glm.tokenizer import Tokenizer
from engine.training.data import Batch, Mixture, Source, load_source, pack
from engine.training.left_out import LeftOut
from engine.training.objective import Objective
from engine.training.recipe import Multitask, Replay, Stage
from engine.training.row_files import RowFile
from engine.training.shares_of_tokens import mixed_weights, stage_weights
from engine.training.source_options import SourceOptions, capped, capped_indices
from engine.training.sources import find_source, read_rows
from engine.training.token_writer import OtherRows, Tokenised, TokenWriter
from engine.training.tokens import folder_of
from tests.command_line import call

ROOT = Path(__file__).resolve().parent.parent
NONE: frozenset[str] = frozenset()
DOCUMENTS = [{"text": f"Number {n} is here. It is {'very ' * (n % 40)}large; 第{n}个。后面还有。"} for n in range(120)]
FORMS = [
    {"text": "A document. Another sentence."},
    {"text": "The [MASK] of [sMASK].", "answers": ["capital", "France"]},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}], "lang": "en"},
    {"prompt": "How are you?", "response": "Well."},
]
READ = [
    *FORMS[:3],
    {"messages": [{"role": "user", "content": "How are you?"}, {"role": "assistant", "content": "Well."}]},
]


@pytest.fixture(scope="module")
def tokenizer(vocabulary_file) -> Tokenizer:
    return Tokenizer.load(vocabulary_file)


def zstd(data: bytes) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    return pyarrow.Codec("zstd").compress(data, asbytes=True)


def in_two(compress: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """As `cat a.zst b.zst` makes it: two streams behind each other."""
    return lambda data: compress(data[: len(data) // 2]) + compress(data[len(data) // 2 :])


def write(path: Path, rows: list[dict]) -> Path:
    """A source in the format that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        names = dict.fromkeys(name for row in rows for name in row)
        columns = {name: [row.get(name) for row in rows] for name in names}
        parquet.write_table(pyarrow.table(columns), path)
        return path
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    compress = {".jsonl": bytes, ".xz": lzma.compress, ".gz": gzip.compress, ".zst": zstd}[path.suffix]
    path.write_bytes(in_two(compress)(data) if compress is not bytes else data)
    return path


def tokenise(
    data: Path, name: str, options: dict, tokenizer: Tokenizer, tokens: Path, workers: int = 1, **kept
) -> Tokenised:
    with TokenWriter(tokens, tokenizer, workers, **kept) as writer:
        return writer.write(name, RowFile(find_source(data, name)), SourceOptions.parse(name, options))


def same(first: Batch, second: Batch) -> bool:
    return all(
        numpy.array_equal(getattr(first, name), getattr(second, name))
        for name in ("ids", "positions", "targets", "document", "context")
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# Formats and forms


@pytest.mark.parametrize("extension", [".jsonl", ".jsonl.xz", ".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_every_format_gives_the_same_rows(extension: str, tmp_path) -> None:
    path = write(tmp_path / "some" / f"v1.5{extension}", FORMS)
    assert list(read_rows(tmp_path, "some/v1.5")) == READ
    file = RowFile(path)
    numbers = [number for number, _ in file.rows()]
    assert numbers == [1, 2, 3, 4]
    assert file.done == file.size == path.stat().st_size
    assert [number for number, _ in file.rows(after=2)] == [3, 4]
    limited = list(file.rows(limit_bytes=60))
    assert 0 < len(limited) < 4
    assert list(file.rows(limit_bytes=60, after=1)) == limited[1:]  # what is passed over counts for the limit


def test_blank_lines_and_byte_order_marks_are_no_rows(tmp_path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "x"}\r\n\r\n\n{"text": "y", "answers": null}')
    assert [number for number, _ in RowFile(tmp_path / "a.jsonl").rows()] == [1, 4]
    assert list(read_rows(tmp_path, "a")) == [{"text": "x"}, {"text": "y"}]


@pytest.mark.parametrize("extension", [".jsonl.zst", ".parquet"])
def test_a_missing_pyarrow_is_named(extension: str, tmp_path, monkeypatch) -> None:
    write(tmp_path / f"a{extension}", FORMS[:1])
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as where it isn't installed: the import fails
    with pytest.raises(GLMError, match="pip install pyarrow") as caught:
        list(read_rows(tmp_path, "a"))
    assert caught.value.kind == "unsupported"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"words": "x"}', '"text" or "messages"'),
        ('{"prompt": "x"}', '"prompt" and "response"'),
        ('{"text": 5}', '"text" must be a text, not int'),
        ('{"text": "a [MASK]", "answers": "b"}', "list of texts"),
        ('{"text": "a [MASK]", "answers": ["b", "c"]}', "2 answers for 1 blanks"),
        ('{"text": "a [MASK]", "answers": [1]}', "must be a text"),
        ('{"messages": "hi"}', "must be a list"),
        ('{"messages": [{"role": "system", "content": "x"}]}', "user or assistant"),
        ('{"messages": [{"role": "user"}]}', '"content" must be a text'),
        ('{"prompt": "x", "response": {}}', '"response" must be a text'),
        ('{"text": "\\ud800"}', "half a character at position 0"),
        ('{"text": ', "not JSON"),
        ("[1]", "JSON object"),
        ("[" * 200_000, "too deep"),
    ],
)
def test_a_row_of_another_form_is_named(row: str, message: str, tmp_path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n\n' + row + "\n")
    with pytest.raises(GLMError, match=message) as caught:
        list(read_rows(tmp_path, "a"))
    assert "a.jsonl, line 3" in str(caught.value)
    assert caught.value.kind == "bad_data"


@pytest.mark.parametrize("extension", [".jsonl.xz", ".jsonl.gz", ".jsonl.zst", ".parquet"])
@pytest.mark.parametrize("how", ["cut", "garbage"])
def test_a_broken_file_is_named(extension: str, how: str, tmp_path) -> None:
    path = write(tmp_path / f"a{extension}", DOCUMENTS)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3] if how == "cut" else b"garbage " * 100)
    with pytest.raises(GLMError, match=r"a\.\S+ can't be read behind") as caught:
        list(read_rows(tmp_path, "a"))
    assert caught.value.kind == "bad_data"


def test_text_that_is_not_utf8_is_named(tmp_path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "x"}\n{"text": "\xff"}\n')
    with pytest.raises(GLMError, match="line 2: not UTF-8"):
        list(read_rows(tmp_path, "a"))


def test_parquet_columns(tmp_path) -> None:
    write(tmp_path / "a.parquet", [{"words": "x"}])
    with pytest.raises(GLMError, match="none of the columns text, answers"):
        list(read_rows(tmp_path, "a"))
    write(tmp_path / "b.parquet", [{"text": "a"}, {"text": None}])
    with pytest.raises(GLMError, match="b.parquet, row 2"):
        list(read_rows(tmp_path, "b"))


@pytest.mark.parametrize("name", ["../a", "sub/../../a", "/etc/a", "..", "", "/", "sub\\a", "a\0", "a\n"])
def test_a_name_that_leads_out_of_the_folder_is_refused(name: str, tmp_path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    (tmp_path / "data" / "sub").mkdir(parents=True)
    with pytest.raises(GLMError, match="can't name a source"):
        find_source(tmp_path / "data", name)


def test_a_missing_source_is_named(tmp_path) -> None:
    with pytest.raises(GLMError, match=r"no some/a\.jsonl, .* or \.parquet in"):
        find_source(tmp_path, "some/a")


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"caps": 3}, "caps: .*Options are limit_megabytes, split, boost, reword, chain, cap"),
        ({"cap": 0}, "cap: .*greater than or equal to 1"),
        ({"cap": "many"}, "cap: "),
        ({"split": "words"}, "split: .*'sentences' or 'couplets'"),
        ({"boost": {"x": "often"}}, "boost.x: "),
        ({"limit_megabytes": -1}, "limit_megabytes: "),
        ({"reword": {"(": ["x"]}}, "reword: .*is no pattern"),
        ({"reword": {"What is (.+)": [r"\1 or \2?"]}}, "reword: .*has 1 groups, and a wording wants number 2"),
        ({"chain": 1.5}, "chain: "),
    ],
)
def test_a_mistake_in_options_is_named(options: dict, message: str, tmp_path, tokenizer) -> None:
    write(tmp_path / "a.jsonl", DOCUMENTS)
    with pytest.raises(GLMError, match=f"^a: {message}") as caught:
        load_source(tmp_path, "a", options, tokenizer, NONE)
    assert caught.value.kind == "bad_data"


def test_only_documents_can_be_split(tmp_path, tokenizer) -> None:
    write(tmp_path / "a.jsonl", FORMS)
    with pytest.raises(GLMError, match="a.jsonl, line 2: only documents"):
        load_source(tmp_path, "a", {"split": "sentences"}, tokenizer, NONE)


def test_boosted_rows_and_held_out_questions(tmp_path, tokenizer) -> None:
    write(tmp_path / "a.jsonl", FORMS)
    source = load_source(tmp_path, "a", {"boost": {"France": 3, "capital": 2, "Well": 2}}, tokenizer, frozenset({"Hi"}))
    assert list(source.lines) == [1, 2, 4, 4]  # "France" stands in an answer, which is no text to look for
    assert tokenizer.decode(source.rows[0]["ids"].tolist()) == FORMS[0]["text"]
    assert source.rows[3] == READ[3]
    with pytest.raises(GLMError, match="no rows left"):
        write(tmp_path / "b.jsonl", FORMS[2:3])
        load_source(tmp_path, "b", {}, tokenizer, frozenset({"Hi"}))


def rounds(*questions: str, lang: str = "en") -> list[dict]:
    return [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": f"{text}!"}], "lang": lang}
        for text in questions
    ]


def test_questions_are_asked_in_other_words(tmp_path, tokenizer) -> None:
    write(tmp_path / "a.jsonl", [*rounds("Where is Rome?", "Where is Rome? Tell me."), *FORMS[:2]])
    reword = {r"Where is (.+)\?": [r"\1 is where?", "Where?"], "Nothing": ["x"]}
    source = load_source(tmp_path, "a", {"reword": reword}, tokenizer, frozenset({"Where?"}))
    asked = [[message["content"] for message in row["messages"]] for row in source.rows if "messages" in row]
    assert asked == [  # the pattern is of the whole question; a wording that is held out stays away
        ["Where is Rome?", "Where is Rome?!"],
        ["Rome is where?", "Where is Rome?!"],
        ["Where is Rome? Tell me.", "Where is Rome? Tell me.!"],
    ]
    assert list(source.lines) == [1, 1, 2, 3, 4]


def test_rounds_are_chained_in_their_language(tmp_path, tokenizer) -> None:
    english, chinese = [f"Question {number}" for number in range(40)], [f"问题{number}" for number in range(40)]
    blank = [{"messages": [{"role": "user", "content": "A [MASK]."}, {"role": "assistant", "content": "blank"}]}]
    write(tmp_path / "a.jsonl", [*rounds(*english), *rounds(*chinese, lang="zh"), *blank])
    rows = load_source(tmp_path, "a", {"chain": 0.5}, tokenizer, NONE, seed=1).rows
    assert rows == load_source(tmp_path, "a", {"chain": 0.5}, tokenizer, NONE, seed=1).rows
    assert rows[-1] == blank[0]
    lengths = [len(row["messages"]) for row in rows[:-1]]
    assert set(lengths) == {2, 4, 6} and 25 < sum(length > 2 for length in lengths) < 55
    for row, question in zip(rows, [*english, *chinese], strict=False):
        assert row["messages"][-2]["content"] == question  # behind the others, with its own answer
        assert row["messages"][-1]["content"] == f"{question}!"
        own = english if question in english else chinese
        assert all(message["content"] in own for message in row["messages"][::2])


def test_a_cap_keeps_rows_by_the_seed_alone(tmp_path, tokenizer) -> None:
    write(tmp_path / "a.jsonl", DOCUMENTS)

    def lines(cap: int, seed: int) -> list[int]:
        return list(load_source(tmp_path, "a", {"cap": cap}, tokenizer, NONE, seed=seed).lines)

    assert len(lines(30, 1)) == 30
    assert lines(30, 1) == lines(30, 1) == sorted(set(lines(30, 1)))
    assert lines(30, 1) != lines(30, 2)
    assert set(lines(10, 1)) < set(lines(30, 1))
    assert lines(500, 1) == list(range(1, 121))


@pytest.mark.parametrize(("count", "cap"), [(1, 1), (50, 1), (1000, 37), (1000, 999), (1000, 1000), (10, 20)])
def test_capping_a_stream_and_a_known_number_of_rows_is_the_same(count: int, cap: int) -> None:
    indices = capped_indices(count, cap, 7, "name")
    assert capped(range(count), cap, 7, "name") == (list(range(count)) if indices is None else indices.tolist())


def test_a_cap_is_fair() -> None:
    """Every row has the same chance, over many seeds."""
    drawn = numpy.zeros(20)
    for seed in range(2000):
        drawn[capped_indices(20, 5, seed, "a")] += 1
    assert (abs(drawn / 2000 - 0.25) < 0.05).all()


# Rows of no use


def test_rows_of_no_use_are_counted_and_named(tmp_path, tokenizer) -> None:
    long = {"messages": [{"role": "user", "content": "word " * 200}, {"role": "assistant", "content": "x"}]}
    rows = [
        FORMS[2],
        long,
        {"messages": []},
        {"messages": [{"role": "user", "content": "Hi"}]},
        {"prompt": "What?", "response": " "},
        {"text": ""},
        {"text": "[MASK] " + "word " * 200, "answers": ["x"]},
        {"text": "[MASK]", "answers": []},
    ]
    write(tmp_path / "a.jsonl", rows)
    mixture = Mixture([load_source(tmp_path, "a", {}, tokenizer, NONE)], CHAT, tokenizer, Objective(), 1)
    stream = mixture.samples("all", [1.0], 64)
    while mixture.served[0] < 16:
        assert len(next(stream).ids) <= 64
    table = {entry["reason"]: entry for entry in mixture.left_out_table()}
    assert {reason: entry["rows"] // 2 for reason, entry in table.items()} == {
        "empty": 1,
        "no answer": 4,
        "too long": 2,
    }
    assert sorted(table["too long"]["first"]) == ["a.jsonl, line 2", "a.jsonl, line 7"]
    assert table["empty"] == {"source": "a", "reason": "empty", "rows": 2, "first": ["a.jsonl, line 6"]}
    assert mixture.left_out == 14
    again = Mixture(mixture.sources, CHAT, tokenizer, Objective(), 1)
    again.restore(json.loads(json.dumps(mixture.state())))
    assert again.left_out_table() == mixture.left_out_table()


def test_a_blank_that_does_not_fit_is_counted(tokenizer) -> None:
    """The second blank is read with the first one filled, and that filling is too long."""
    source = Source(
        "a",
        [
            {"text": "[MASK] and [MASK].", "answers": ["one", "two and three " * 40]},
            {"text": "a [MASK]", "answers": ["b"]},
        ],
    )
    mixture = Mixture([source], None, tokenizer, Objective(), 1)
    stream = mixture.samples("all", [1.0], 60)
    while mixture.served[0] < 6:
        next(stream)
    (entry,) = mixture.left_out_table()
    assert (entry["rows"], entry["reason"], entry["first"]) == (3, "too long", ["a, row 1"])


def test_tables_of_several_streams_are_merged() -> None:
    first, second = LeftOut(), LeftOut()
    for line in range(7):
        first.add("a", "too long", f"a.jsonl, line {line}")
    second.add("a", "too long", "a.jsonl, line 3")
    second.add("a", "empty", "a.jsonl, line 9")
    whole = LeftOut(first.table())
    whole.merge(second.table())
    assert whole.total == 9
    assert [(entry["reason"], entry["rows"]) for entry in whole.table()] == [("empty", 1), ("too long", 8)]
    assert whole.table()[1]["first"] == [f"a.jsonl, line {line}" for line in range(5)]


def test_a_source_of_no_use_at_all_ends_with_a_sentence(tmp_path, tokenizer) -> None:
    write(tmp_path / "a.jsonl", [{"text": "word " * 200 + "[MASK]", "answers": ["x"]}] * 3)
    mixture = Mixture([load_source(tmp_path, "a", {}, tokenizer, NONE)], None, tokenizer, Objective(), 1)
    with pytest.raises(GLMError, match="Not one row of a can be trained on in 32 tokens: a.jsonl, line . is too long"):
        next(mixture.samples("all", [1.0], 32))


def test_a_row_that_fails_when_it_is_drawn_is_named(tmp_path, tokenizer) -> None:
    write(tmp_path / "a.jsonl", [{"text": "[mask] or [MASK]", "answers": ["x"]}])
    mixture = Mixture([load_source(tmp_path, "a", {}, tokenizer, NONE)], None, tokenizer, Objective(), 1)
    with pytest.raises(GLMError, match=r"^a\.jsonl, line 1: \[mask\] is not a mask"):
        next(mixture.samples("all", [1.0], 64))


# Tokenised sources


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write(folder / "pretrain" / "plain.jsonl.xz", DOCUMENTS)
    write(folder / "pretrain" / "table.parquet", [{"text": row["text"][::-1]} for row in DOCUMENTS])
    write(folder / "instruct" / "chat.jsonl", FORMS[2:] * 10)
    return folder


NAMES = ["pretrain/plain", "pretrain/table", "instruct/chat"]
OPTIONS = [
    {},
    {"cap": 17},
    {"split": "sentences", "boost": {"Number 7": 3}},
    {"limit_megabytes": 0.005},
    {"split": "sentences", "limit_megabytes": 0.01, "cap": 40},
]


def mixture_of(data: Path, options: dict, tokenizer: Tokenizer, seed: int, tokens: Path | None) -> Mixture:
    given = {"pretrain/plain": options, "pretrain/table": {}, "instruct/chat": {"cap": 9}}
    sources = [load_source(data, name, given[name], tokenizer, NONE, tokens=tokens, seed=3) for name in NAMES]
    return Mixture(sources, CHAT, tokenizer, Objective(), seed)


def batches(mixture: Mixture, count: int) -> list[Batch]:
    stream = mixture.samples("all", [2.0, 1.0, 0.5], 48)
    return [pack(stream, 3, 48) for _ in range(count)]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_tokenised_sources_give_the_same_batches(options: dict, data: Path, tokenizer, tmp_path) -> None:
    made = tokenise(data, "pretrain/plain", options, tokenizer, tmp_path)
    tokenise(data, "pretrain/table", {}, tokenizer, tmp_path)
    plain = mixture_of(data, options, tokenizer, 5, None)
    tokenised = mixture_of(data, options, tokenizer, 5, tmp_path)
    assert type(tokenised.sources[0].rows) is not list
    assert made.rows == len(mixture_of(data, {**options, "cap": None}, tokenizer, 5, None).sources[0].rows)
    assert len(plain.sources[0].rows) == len(tokenised.sources[0].rows) == options.get("cap", made.rows)
    assert list(tokenised.sources[0].lines) == list(plain.sources[0].lines)
    for first, second in zip(batches(plain, 60), batches(tokenised, 60), strict=True):
        assert same(first, second)
    assert plain.state() == tokenised.state()


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_stopped_anywhere_it_goes_on_the_same(rank: int, data: Path, tokenizer, tmp_path) -> None:
    """Behind any batch, with a state that went through JSON; every rank has an order of its own."""
    for name in NAMES[:2]:
        tokenise(data, name, {}, tokenizer, tmp_path)
    whole = batches(mixture_of(data, {}, tokenizer, rank, tmp_path), 24)
    assert not same(whole[0], batches(mixture_of(data, {}, tokenizer, rank + 1, tmp_path), 1)[0])
    for stop in range(0, 24, 5):
        first = mixture_of(data, {}, tokenizer, rank, tmp_path)
        batches(first, stop)
        second = mixture_of(data, {}, tokenizer, rank, tmp_path)
        second.restore(json.loads(json.dumps(first.state())))
        assert all(itertools.starmap(same, zip(batches(second, 24 - stop), whole[stop:], strict=True)))


def test_ids_of_a_large_vocabulary(data: Path, vocabulary_file, tmp_path) -> None:
    large = Tokenizer.load(vocabulary_file, num_image_tokens=70_000)
    tokenise(data, "pretrain/plain", {}, large, tmp_path)
    source = load_source(data, "pretrain/plain", {}, large, NONE, tokens=tmp_path)
    assert [large.decode(row["ids"].tolist()) for row in source.rows] == [row["text"] for row in DOCUMENTS]
    assert json.loads((folder_of(tmp_path, "pretrain/plain") / "tokens.json").read_text())["kind"] == "uint32"


def test_empty_documents_keep_their_places(tokenizer, tmp_path) -> None:
    write(tmp_path / "a.jsonl", [{"text": ""}, {"text": "Some words"}, {"text": ""}])
    write(tmp_path / "b.jsonl", [{"text": ""}])
    for name, lengths in (("a", [0, 3, 0]), ("b", [0])):
        tokenise(tmp_path, name, {}, tokenizer, tmp_path / "tokens")
        source = load_source(tmp_path, name, {}, tokenizer, NONE, tokens=tmp_path / "tokens")
        assert [min(len(row["ids"]), 3) for row in source.rows] == lengths or len(
            tokenizer.encode_plain("Some words")
        ) < 3
        assert [len(row["ids"]) for row in source.rows] == [
            len(row["ids"]) for row in load_source(tmp_path, name, {}, tokenizer, NONE).rows
        ]


def test_several_processes_write_the_same(data: Path, tokenizer, tmp_path) -> None:
    write(tmp_path / "a.jsonl", DOCUMENTS * 40)
    one = tokenise(tmp_path, "a", {}, tokenizer, tmp_path / "one")
    two = tokenise(tmp_path, "a", {}, tokenizer, tmp_path / "two", workers=2)
    assert one.text_bytes == two.text_bytes > 1 << 19  # several batches
    assert contents(one.folder) == contents(two.folder)


_KILLED = """
import os, signal, sys
from pathlib import Path
import psutil
from engine.glm.tokenizer import Tokenizer
from engine.training.row_files import RowFile
from engine.training.source_options import SourceOptions
from engine.training.token_writer import TokenWriter

def end(what, done):
    print(*[child.pid for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

folder = Path(sys.argv[1])
with TokenWriter(folder / "tokens", Tokenizer.load(sys.argv[2]), 2, end) as writer:
    writer.write("a", RowFile(folder / "a.jsonl"), SourceOptions())
"""


def test_a_killed_run_leaves_no_processes_behind(vocabulary_file, tmp_path) -> None:
    psutil = pytest.importorskip("psutil")
    write(tmp_path / "a.jsonl", DOCUMENTS * 60)
    arguments = [sys.executable, "-c", _KILLED, str(tmp_path), str(vocabulary_file)]
    done = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, cwd=ROOT, timeout=100)
    assert done.returncode == -9
    left = [psutil.Process(int(number)) for number in done.stdout.split() if psutil.pid_exists(int(number))]
    assert len(done.stdout.split()) == 2
    assert psutil.wait_procs(left, timeout=20)[1] == []
    assert [path.name for path in (tmp_path / "tokens").iterdir()] == ["a.tokens.part"]


class _EndedError(Exception):
    """Instead of a killed process."""


@pytest.mark.parametrize("tail", ["kept", "more", "lost"])
def test_a_run_that_was_ended_is_gone_on_with(tail: str, tokenizer, tmp_path) -> None:
    """tail: what the disk holds behind the last saved point: that, more, which wasn't sure yet; or less, a damaged disk."""
    rows = [{"text": f"{n}. " + row["text"]} for n, row in enumerate(DOCUMENTS * 60)]
    write(tmp_path / "a.jsonl.gz", rows)
    options = {"split": "sentences", "boost": {"Number 7": 2}}
    whole = tokenise(tmp_path, "a", options, tokenizer, tmp_path / "whole")
    calls = itertools.count(1)

    def end(what: str, done: int) -> None:
        if next(calls) == 4:
            raise _EndedError

    with pytest.raises(_EndedError):
        tokenise(tmp_path, "a", options, tokenizer, tmp_path / "parts", report=end, save_every=0.0)
    folder = folder_of(tmp_path / "parts", "a")
    assert not folder.exists()
    plain = load_source(tmp_path, "a", options, tokenizer, NONE)
    assert type(load_source(tmp_path, "a", options, tokenizer, NONE, tokens=tmp_path / "parts").rows) is type(
        plain.rows
    )
    for path in folder.with_name("a.tokens.part").glob("*.bin"):
        if tail == "more":
            path.write_bytes(path.read_bytes() + b"cut off")
        elif tail == "lost":
            path.write_bytes(path.read_bytes()[:100])
    made = tokenise(tmp_path, "a", options, tokenizer, tmp_path / "parts")
    assert contents(made.folder) == contents(whole.folder)
    if tail == "lost":
        assert made.text_bytes == whole.text_bytes
    else:
        assert 0 < made.text_bytes < 0.9 * whole.text_bytes  # the rest alone was tokenised
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["a.tokens"]


def test_an_unfinished_run_of_another_source_is_begun_anew(tokenizer, tmp_path) -> None:
    write(tmp_path / "a.jsonl", DOCUMENTS * 60)
    calls = itertools.count(1)

    def end(what: str, done: int) -> None:
        if next(calls) == 3:
            raise _EndedError

    with pytest.raises(_EndedError):
        tokenise(tmp_path, "a", {}, tokenizer, tmp_path / "tokens", report=end, save_every=0.0)
    write(tmp_path / "a.jsonl", DOCUMENTS[::-1])
    tokenise(tmp_path, "a", {}, tokenizer, tmp_path / "tokens")
    rows = load_source(tmp_path, "a", {}, tokenizer, NONE, tokens=tmp_path / "tokens").rows
    assert [tokenizer.decode(row["ids"].tolist()) for row in rows] == [row["text"] for row in DOCUMENTS[::-1]]


def test_tokens_are_verified_when_they_are_opened(tokenizer, vocabulary_file, tmp_path) -> None:
    path = write(tmp_path / "a.jsonl", DOCUMENTS)
    made = tokenise(tmp_path, "a", {"cap": 3}, tokenizer, tmp_path)
    assert tokenise(tmp_path, "a", {"cap": 4}, tokenizer, tmp_path).text_bytes == 0  # a cap changes no tokens

    def load(options: dict | None = None, vocabulary: Tokenizer = tokenizer) -> Source:
        return load_source(tmp_path, "a", options or {}, vocabulary, NONE, tokens=tmp_path)

    load()
    with pytest.raises(GLMError, match="another limit_megabytes, split or boost: run tokenize again"):
        load({"split": "sentences"})
    with pytest.raises(GLMError, match="another vocabulary"):
        load(vocabulary=Tokenizer.load(vocabulary_file, num_image_tokens=5))
    for name in ("ids.bin", "offsets.bin", "lines.bin"):
        whole = (made.folder / name).read_bytes()
        (made.folder / name).write_bytes(whole[:-8])
        with pytest.raises(GLMError, match=rf"{name} has \d+ bytes, not \d+: run tokenize again"):
            load()
        if name == "offsets.bin":
            (made.folder / name).write_bytes(whole[:-8] + b"\0" * 8)
            with pytest.raises(GLMError, match="offsets.bin is damaged"):
                load()
        assert tokenise(tmp_path, "a", {}, tokenizer, tmp_path).rows == 120  # made again, or whole again
        (made.folder / name).write_bytes(whole)
        load()
    about = (made.folder / "tokens.json").read_text()
    for broken in ("", "[]", "{}", about.replace('"rows": 120', '"rows": -1'), about.replace('"rows"', '"row"')):
        (made.folder / "tokens.json").write_text(broken)
        with pytest.raises(GLMError, match="run tokenize again"):
            load()
    (made.folder / "tokens.json").write_text(about)
    with path.open("a") as file:
        file.write('{"text": "One more."}\n')
    with pytest.raises(GLMError, match="another version of the source's file"):
        load()
    assert tokenise(tmp_path, "a", {}, tokenizer, tmp_path).rows == 121
    assert len(load().rows) == 121


def test_other_rows_than_documents_are_not_tokenised(tokenizer, tmp_path) -> None:
    write(tmp_path / "a.jsonl", DOCUMENTS * 60 + FORMS)
    with pytest.raises(OtherRows, match="a.jsonl, line 7202"):
        tokenise(tmp_path, "a", {}, tokenizer, tmp_path / "tokens")
    assert list((tmp_path / "tokens").iterdir()) == []


_ANONYMOUS = """
import json, sys
from pathlib import Path
from engine.glm.tokenizer import Tokenizer
from engine.training.data import Mixture, load_source, pack
from engine.training.objective import Objective
from engine.training.row_files import RowFile
from engine.training.source_options import SourceOptions
from engine.training.token_writer import TokenWriter

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1024

folder, most = Path(sys.argv[1]), []
"""
_TRAINING = """
tokenizer = Tokenizer.load(sys.argv[2])
before = anonymous()
with TokenWriter(folder / "tokens", tokenizer, 1, lambda what, done: most.append(anonymous())) as writer:
    made = writer.write("a", RowFile(folder / "a.jsonl"), SourceOptions())
writing = max(most) - before
before = anonymous()
source = load_source(folder, "a", {}, tokenizer, frozenset(), tokens=folder / "tokens")
stream = Mixture([source], None, tokenizer, Objective(), 1).samples("all", [1.0], 128)
seen = sum(pack(stream, 16, 128).tokens for _ in range(200))
print(json.dumps({"writing": writing, "training": anonymous() - before, "rows": len(source.rows), "bytes": made.text_bytes}))
"""
_READING = """
file = RowFile(folder / sys.argv[2])
next(iter(file.rows()))  # what is imported on the way isn't counted
before, count = anonymous(), 0
for count, row in file.rows():
    if count % 500 == 0:
        most.append(anonymous())
print(json.dumps({"reading": max(most) - before, "rows": count}))
"""
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="anonymous memory is read from /proc")


def measured(code: str, *arguments: object) -> dict:
    """What a process of its own prints."""
    line = [sys.executable, "-c", _ANONYMOUS + code, *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, timeout=200)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def large_rows() -> list[dict]:
    """50 MB of text that does not compress to nothing."""
    random = Random(1)
    words = [f"word{random.randrange(10**6)}" for _ in range(10_000)]
    starts = (random.randrange(9_700) for _ in range(16_000))
    return [{"text": " ".join(words[start : start + 300])} for start in starts]


@on_linux
def test_training_on_tokens_holds_little(vocabulary_file, tmp_path) -> None:
    """Neither tokenising a source of 50 MB nor training on its tokens keeps more than a little of it in memory."""
    write(tmp_path / "a.jsonl", large_rows())
    found = measured(_TRAINING, tmp_path, vocabulary_file)
    assert found["rows"] == 16_000
    assert found["bytes"] > 45e6
    assert found["writing"] < 20, found  # MB
    assert found["training"] < 3, found


@on_linux
@pytest.mark.parametrize("extension", [".jsonl.zst", ".parquet"])
def test_a_source_is_read_as_a_stream(extension: str, tmp_path) -> None:
    path = write(tmp_path / f"a{extension}", large_rows())
    found = measured(_READING, tmp_path, path.name)
    assert found["rows"] == 16_000
    assert found["reading"] < 25, found


# The command

RECIPE = """
model: glm-tiny
optimizer: {learning_rate: 0.005, embedding_learning_rate: 0.005}
sources: {pretrain/plain: {split: sentences}}
stages:
  - {name: all, steps: 1, rows: 4, length: 64, weights: {pretrain/plain: 3, pretrain/table: 2, instruct/chat: 1}}
"""


def command(recipe: Path, data: Path, out: Path, *more: str) -> subprocess.CompletedProcess:
    arguments = [sys.executable, "-m", "engine", "tokenize", str(recipe), "--data", str(data), "--out", str(out), *more]
    return subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, timeout=200)


def test_the_command(data: Path, vocabulary_file, tokenizer, tmp_path) -> None:
    """The documents of a recipe from a run folder's vocabulary; a second run finds all of it there."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    run = tmp_path / "run"
    run.mkdir()
    (run / "tokenizer.model").write_bytes(vocabulary_file.read_bytes())
    done = command(tmp_path / "recipe.yaml", data, run / "tokens", "--tokenizer", str(run), "--workers", "2")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "instruct/chat: not tokenised: chat.jsonl, line 1 has something else than a document"
    assert lines[1].startswith("pretrain/plain: 480 rows, ")
    assert lines[2].startswith("pretrain/table: 120 rows, ")
    source = load_source(data, "pretrain/plain", {"split": "sentences"}, tokenizer, NONE, tokens=run / "tokens")
    assert type(source.rows) is not list
    times = {path: path.stat().st_mtime_ns for path in run.rglob("*.*")}
    again = command(tmp_path / "recipe.yaml", data, run / "tokens", "--tokenizer", str(run))
    assert again.returncode == 0, again.stderr
    assert "MB/s" not in again.stdout
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*.*")} == times


def test_mistakes_are_sentences(data: Path, vocabulary_file, tmp_path) -> None:
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "tokens"

    def failing(text: str, *more: str, status: int = 2) -> str:
        recipe.write_text(text)
        done = call("engine", "tokenize", recipe, "--data", data, "--out", out, *more)
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr

    ours = "--tokenizer", str(vocabulary_file)
    assert "Give --tokenizer" in failing(RECIPE)
    assert "no vocabulary at" in failing(RECIPE, "--tokenizer", str(tmp_path))
    assert "at least 1" in failing(RECIPE, *ours, "--workers", "0")
    assert "pretrain/plain: parts: " in failing(RECIPE.replace("split:", "parts:"), *ours)
    assert "no pretrain/other.jsonl" in failing(RECIPE.replace("pretrain/table", "pretrain/other"), *ours)
    assert "can't name a source" in failing(RECIPE.replace("pretrain/table", "../table"), *ours)
    assert not out.exists()
    out.mkdir()
    import fcntl

    descriptor = os.open(out, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        assert "Another run writes" in failing(RECIPE, *ours)
    finally:
        os.close(descriptor)
    out.rmdir()
    out.write_text("")
    assert "is a file" in failing(RECIPE, *ours)


# The share of instructions


def test_instructions_get_their_share() -> None:
    weights = mixed_weights({"wiki": 3, "books": 1}, {"small": 100, "capped": 300}, share=0.2)
    assert weights == pytest.approx({"wiki": 0.6, "books": 0.2, "small": 0.05, "capped": 0.15})
    default = mixed_weights({"wiki": 3.0}, {"a": 1, "b": 0}, 0.05)
    assert default == pytest.approx({"wiki": 0.95, "a": 0.05, "b": 0.0})
    assert mixed_weights({"wiki": 2.0}, {}, share=0) == {"wiki": 1.0}
    assert mixed_weights({}, {"a": 4}, share=1) == {"a": 1.0}


@pytest.mark.parametrize(
    ("documents", "instructions", "share", "message"),
    [
        ({"a": 1.0}, {"b": 1}, 1.5, "not from 0 to 1"),
        ({"a": 1.0}, {"a": 1}, 0.1, "a is among"),
        ({"a": -1.0}, {"b": 1}, 0.1, "a: -1.0 is below 0"),
        ({"a": 1.0}, {}, 0.05, "no instructions for 5%"),
        ({}, {"b": 1}, 0.05, "no documents for 95%"),
    ],
)
def test_a_share_that_cannot_be_kept(documents: dict, instructions: dict, share: float, message: str) -> None:
    with pytest.raises(GLMError, match=message):
        mixed_weights(documents, instructions, share)


def test_a_stage_replays_general_data_beside_its_own() -> None:
    stage = Stage(
        name="tune", steps=1, rows=1, length=64, weights={"own": 3.0, "more": 1.0},
        replay=Replay(weights={"wiki": 1.0, "chat": 3.0}, share=0.4), multitask=Multitask(sources=["p3"], share=0.1),
    )  # fmt: skip
    assert stage.sources == ["own", "more", "wiki", "chat", "p3"]
    expected = {"own": 0.405, "more": 0.135, "wiki": 0.09, "chat": 0.27, "p3": 0.1}
    assert stage_weights(stage, {"p3": 7}) == pytest.approx(expected)
    doubled = stage.model_copy(update={"replay": Replay(weights={"own": 1.0})})
    with pytest.raises(GLMError, match="own is among the own data and the replayed data"):
        stage_weights(doubled, {"p3": 7})


def test_a_mixture_keeps_the_share(data: Path, tokenizer) -> None:
    """Of the tokens that are drawn, the share of the weights; rows of a source that is at an end come again."""
    sources = [load_source(data, name, {}, tokenizer, NONE) for name in NAMES]
    weights = mixed_weights({NAMES[0]: 1, NAMES[1]: 1}, {NAMES[2]: len(sources[2].rows)}, share=0.05)
    mixture = Mixture(sources, CHAT, tokenizer, Objective(), 1)
    stream = mixture.samples("all", [weights[name] for name in NAMES], 64)
    for _ in range(3000):
        next(stream)
    assert mixture.tokens[2] / sum(mixture.tokens) == pytest.approx(0.05, abs=0.005)
