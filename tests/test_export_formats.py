"""Export: each of the eight formats, opened by the programs that people use; redacted alike; broken off and gone on with."""

from __future__ import annotations

import asyncio
import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
import pytest

from storage import Record, StorageError, migration
from storage.export import FORMATS, Export, Selection, write_export
from storage.export.encoders import cell
from storage.program import PROGRAM_VERSION
from storage.run_filter import RunFilter
from tests import databases
from tests.command_line import call
from tests.reviewed import add, ask, fill_record, finish, review

ROOT = Path(__file__).parent.parent
# Each on SQLite and on PostgreSQL.
address, record = databases.address, databases.record

ALL = ["capital", "second", "story", "filled", "good", "twice", "worse", "failed"]


def export(record: Record, format: str, *, redact: bool = False, **filters: Any) -> Export:
    """An export of the runs that meet `filters`."""
    selection = Selection(RunFilter.parse(filters), record.clock(), redact)
    return Export(record.database, FORMATS[format], selection)


async def rows(record: Record, format: str, **options: Any) -> list[dict[str, Any]]:
    """What a format of JSON lines says."""
    data = b"".join([part async for part in export(record, format, **options).stream()])
    return [json.loads(line) for line in data.decode().splitlines()]


async def test_the_own_form_has_everything(record: Record):
    await fill_record(record)
    head, model, *runs = await rows(record, "jsonl")
    assert head == {"kind": "export", "form": "glm-playground", "version": 1}
    assert (model["kind"], model["weights_hash"], model["parent"]) == ("model_version", "a" * 64, None)
    assert [run["id"] for run in runs] == ALL
    assert len({tuple(run) for run in runs}) == 1, "the same keys in every line"
    capital, second, story, filled, good, twice, worse, failed = runs
    assert capital["blanks"][0]["token_ids"] == [1, 2, 70000]
    assert capital["review"]["tags"] == ["fact", "geography"]
    assert [span["chosen"] for span in capital["review"]["spans"]] == ["Paris"]
    assert capital["review"]["reviewer"] == "rita" and "rita" not in json.dumps(story["fingerprint"])
    assert (story["prompt"], story["messages"], capital["prompt"]) == ("Once upon a time", None, None)
    assert second["feedback"][0]["comment"] == "=SUM(A1) it knows Zebulon"
    assert [len(run["votes"]) for run in runs] == [0, 0, 0, 0, 0, 0, 1, 0], "with the later of the two"
    assert worse["votes"][0]["choice"] == "second" and worse["conversation"]["title"] == "问答"
    assert failed["parameters"] == {"stop": ["=1+1"]}
    assert "scrypt" not in json.dumps(runs), "no password leaves"


async def test_votes_leave_with_both_runs_only(record: Record):
    await fill_record(record)
    (_, _, run) = await rows(record, "jsonl", ids="worse")
    assert run["votes"] == []
    assert len((await rows(record, "jsonl", ids="worse,good"))[-1]["votes"]) == 1


async def test_what_is_unfinished_or_erased_stays(record: Record):
    await fill_record(record)
    await record.accept_run("running", visitor="ann", mode="generate", prompt="x", parameters={})
    (conversation,) = (await record.list_conversations("ann")).rows
    await record.delete_conversation(conversation.id, "ann")
    assert [row["id"] for row in (await rows(record, "jsonl"))[2:]] == [
        id for id in ALL if id not in ("capital", "second")
    ]


async def test_redaction_holds_for_a_whole_conversation(record: Record):
    await fill_record(record)
    chat = (await record.get_run("second", None)).conversation_id
    await finish(record, "third", ask("Who am I?"), "You are Zebulon.", conversation=chat)
    plain = json.dumps(await rows(record, "jsonl"), ensure_ascii=False)
    assert "Zebulon" in plain and "zeb@example.org" in plain
    for format in FORMATS:
        if FORMATS[format].encoding == "parquet":
            continue
        data = b"".join([part async for part in export(record, format, redact=True).stream()]).decode()
        assert "ebulon" not in data and "zeb@" not in data, format
        assert len(data) > 50, format
    redacted = {row.get("id"): row for row in await rows(record, "jsonl", redact=True)}
    assert redacted["third"]["output"] == "You are [hidden]."
    assert redacted["second"]["feedback"][0]["comment"] == "=SUM(A1) it knows [hidden]"
    assert redacted["capital"]["blanks"][0]["token_ids"] == [1, 2, 70000], "nothing personal in it"
    job = export(record, "jsonl", redact=True)
    assert [part async for part in job.stream()]
    assert (job.tally.runs, job.tally.redacted_runs) == (9, 3)


async def test_spans_stay_in_their_places_when_what_is_before_them_is_hidden(record: Record):
    await fill_record(record)
    output = "My name is Zebulon and Rome is in Spain."
    await finish(record, "named", "x", output)
    await add(record, review(record, "named", corrected=output.replace("Spain", "Italy")))
    from tests.reviewed import span

    await add(record, span(record, "s3", "named", output, "Spain", "Italy"))
    run = (await rows(record, "jsonl", redact=True, ids="named"))[-1]
    (found,) = run["review"]["spans"]
    assert run["output"] == "My name is [hidden] and Rome is in Spain."
    assert run["output"][found["start"] : found["end"]] == found["rejected"] == "Spain"
    assert found["text"] == "My name is [hidden] and Rome is in [MASK]."


async def test_openai(record: Record):
    await fill_record(record)
    lines = await rows(record, "openai")
    assert lines[0] == {
        "messages": [
            {"role": "user", "content": "What is the capital of France?"},
            {"role": "assistant", "content": "The capital is Paris, of course.", "weight": 1},
        ]
    }
    assert [message.get("weight") for message in lines[1]["messages"]] == [None, 0, None, 1]
    assert [line["messages"][-1]["content"] for line in lines[2:4]] == [
        " there was a good story.",
        "Water boils at 100 degrees and freezes at 0.",
    ]
    assert len(lines) == 7, "a run that failed has no answer"


async def test_sharegpt_gives_a_conversation_once_with_its_corrections(record: Record):
    await fill_record(record)
    first, second = (await rows(record, "sharegpt", modes="chat"))[:2]
    assert [turn["from"] for turn in first["conversations"]] == ["human", "gpt", "human", "gpt"]
    assert first["conversations"][1]["value"] == "The capital is Paris, of course."
    assert second["conversations"][-1]["value"] == "我不知道。"
    assert len(await rows(record, "sharegpt", modes="chat")) == 2
    only = await rows(record, "sharegpt", ids="capital")
    assert only[0]["conversations"][-1]["value"] == "The capital is Paris, of course.", "the last that is selected"


async def test_alpaca(record: Record):
    await fill_record(record)
    lines = await rows(record, "alpaca")
    assert lines[0] == {
        "instruction": "What is the capital of France?",
        "input": "",
        "output": "The capital is Paris, of course.",
        "history": [],
    }
    assert lines[1]["history"] == [["What is the capital of France?", "The capital is Lyon, of course."]]
    assert lines[3]["instruction"] == "Water boils at [MASK] and freezes at [MASK]."


async def test_preferences_come_from_corrections_thumbs_and_votes(record: Record):
    await fill_record(record)
    await finish(record, "liked", ask("1 + 1?"), "2", conversation=await record.create_conversation("ann", "chat"))
    again = (await record.get_run("liked", None)).conversation_id
    await finish(record, "disliked", ask("1 + 1?"), "3", conversation=again)
    await finish(record, "other", ask("1 + 2?"), "4", conversation=again)
    for id, rating in (("liked", 1), ("disliked", -1), ("other", -1)):
        await record.add_feedback(id, "ann", rating=rating)
    pairs = await rows(record, "preferences")
    told = {(pair["source"], pair["run"], pair["rejected_run"]): pair for pair in pairs}
    assert set(told) == {
        ("span", "capital", "capital"),
        ("rewrite", "capital", "capital"),
        ("rewrite", "story", "story"),
        ("span", "filled", "filled"),
        ("rewrite", "filled", "filled"),
        ("vote", "good", "worse"),
        ("thumbs", "liked", "disliked"),
    }
    span = told["span", "capital", "capital"]
    assert span["prompt"][0]["content"].endswith("Answer: The capital is [MASK], of course.")
    assert (span["chosen"][0]["content"], span["rejected"][0]["content"]) == ("Paris", "Lyon")
    vote = told["vote", "good", "worse"]
    assert (vote["chosen"][0]["content"], vote["rejected"][0]["content"]) == ("中国的首都是北京。", "我不知道。")


async def test_glm_blank_rows(record: Record):
    await fill_record(record)
    lines = await rows(record, "glm")
    assert lines == [
        {
            "text": "Question: What is the capital of France?\nAnswer: The capital is [MASK], of course.",
            "answers": ["Paris"],
        },
        {"text": "Once upon a time[gMASK]", "answers": [" there was a good story."]},
        {"text": "Water boils at [MASK] degrees and freezes at 0.", "answers": ["100"]},
        {"text": "Water boils at [MASK] and freezes at [MASK].", "answers": ["100 degrees", "0"]},
    ]


@pytest.mark.parametrize(
    "value, shown",
    [
        ("=1+1", "'=1+1"),
        ("+1", "'+1"),
        ("-1 degree", "'-1 degree"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"),
        ("\r\n=1", "'\r\n=1"),
        (" =1", "' =1"),
        ("＝1+1", "'＝1+1"),
        ("\u200b=1", "'\u200b=1"),
        ("\ttab", "'\ttab"),
        ("a=1", "a=1"),
        ("", ""),
        (-1.5, -1.5),
        (True, "true"),
        (None, ""),
        (["=1"], '["=1"]'),
    ],
)
def test_no_field_is_taken_for_a_formula(value: Any, shown: Any):
    assert cell(value) == shown


async def test_csv_is_safe_and_whole(record: Record, tmp_path: Path):
    await fill_record(record)
    output = '=HYPERLINK("http://evil.example","中文")\r\nsecond "line", and more'
    await finish(record, "evil", "@x", output)
    path = tmp_path / "runs.csv"
    await write_export(export(record, "csv"), path)
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    with path.open(encoding="utf-8-sig", newline="") as file:
        read = list(csv.DictReader(file))
    assert [row["id"] for row in read] == [*ALL, "evil"]
    assert read[-1]["output"] == "'" + output and read[-1]["prompt"] == "'@x"
    for row in read:
        assert not [field for field in row.values() if field[:1] in ("=", "+", "@", "\t", "\r")], row
        assert not [name for name, field in row.items() if field[:1] == "-" and name != "mean_logprob"]
    assert json.loads(read[0]["tags"]) == ["fact", "geography"]
    assert (read[1]["thumbs_up"], read[1]["prompt"][:10]) == ("1", "My name is")


async def test_the_usual_programs_open_every_file(record: Record, tmp_path: Path):
    """pandas, pyarrow and datasets.load_dataset, on each of the eight."""
    import datasets

    await fill_record(record)
    for name, format in FORMATS.items():
        path = tmp_path / f"{name}{format.extension}"
        manifest = await write_export(export(record, name), path)
        expected = manifest["rows"] + 2 * (name == "jsonl")
        kind = {"jsonl": "json"}.get(format.encoding, format.encoding)
        loaded = datasets.load_dataset(kind, data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
        assert loaded.num_rows == expected, name
        if kind == "json":
            assert len(pandas.read_json(path, lines=True)) == expected
            assert pyarrow.json.read_json(path).num_rows == expected
        elif kind == "csv":
            assert list(pandas.read_csv(path)["id"]) == ALL
            options = pyarrow.csv.ParseOptions(newlines_in_values=True)
            assert pyarrow.csv.read_csv(path, parse_options=options)["id"].to_pylist() == ALL
        else:
            assert list(pandas.read_parquet(path)["id"]) == ALL
            table = pyarrow.parquet.read_table(path)
            assert table["messages"][0].as_py() == ask("What is the capital of France?")
            assert table["created"][0].as_py() == (await record.get_run("capital", None)).created
            assert loaded[0]["messages"] == ask("What is the capital of France?")


async def test_the_stream_gives_the_bytes_of_the_file(record: Record, tmp_path: Path):
    await fill_record(record)
    for name, format in FORMATS.items():
        job = export(record, name)
        streamed = b"".join([part async for part in job.stream()])
        path = tmp_path / name
        manifest = await write_export(export(record, name), path)
        if format.encoding != "parquet":
            assert path.read_bytes() == streamed, name
            assert (await job.manifest(name)) | {"runs_until": 0} == manifest | {"runs_until": 0}
        else:
            (tmp_path / "streamed").write_bytes(streamed)
            assert pyarrow.parquet.read_table(tmp_path / "streamed") == pyarrow.parquet.read_table(path)
        assert manifest["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert manifest["bytes"] == path.stat().st_size
        assert json.loads((tmp_path / f"{name}.manifest.json").read_text()) == manifest
        assert manifest["schema_revision"] == migration.newest()
        assert manifest["model_versions"] == [{"weights_hash": "a" * 64, "name": "embedded", "runs": 7}]


async def test_the_manifest_says_what_was_asked_for(record: Record, tmp_path: Path):
    await fill_record(record)
    manifest = await write_export(export(record, "csv", redact=True, tags="fact", modes="chat"), tmp_path / "x.csv")
    assert manifest["filters"] == {"tags": ["fact"], "modes": ["chat"]}
    assert (manifest["rows"], manifest["runs"], manifest["redaction"]) == (1, 1, True)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["x.csv", "x.csv.manifest.json"]


class Broken(Exception):
    pass


@pytest.mark.parametrize("format", FORMATS)
async def test_an_export_goes_on_behind_its_last_complete_part(record: Record, tmp_path: Path, format: str):
    await fill_record(record)
    whole = tmp_path / "whole"
    manifest = await write_export(export(record, format), whole)
    path = tmp_path / "broken"

    def stop(tally) -> None:
        raise Broken

    for expected in (2, 4, 6):
        with pytest.raises(Broken):
            await write_export(export(record, format), path, progress=stop, saved_runs=2, size=1)
        state = json.loads((tmp_path / "broken.part.json").read_text())
        assert state["tally"]["runs"] == expected
        if FORMATS[format].encoding != "parquet":
            with (tmp_path / "broken.part").open("ab") as file:
                file.write(b"half a li")  # as a process leaves it that is killed while it writes
        # What comes later is no part of this export.
        await finish(record, f"later {expected}", "x", "y")
    again = await write_export(export(record, format), path, saved_runs=2, size=1)
    if FORMATS[format].encoding == "parquet":
        assert pyarrow.parquet.read_table(path) == pyarrow.parquet.read_table(whole)
    else:
        assert path.read_bytes() == whole.read_bytes()
        assert again["sha256"] == manifest["sha256"]
    assert (again["rows"], again["runs"], again["parts"]) == (manifest["rows"], manifest["runs"], manifest["parts"])
    assert not list(tmp_path.glob("broken.part*"))


async def test_what_cant_be_gone_on_with_is_refused(record: Record, tmp_path: Path):
    await fill_record(record)
    path = tmp_path / "x.jsonl"

    def stop(tally) -> None:
        raise Broken

    async def begin(job: Export, **options: Any) -> None:
        with pytest.raises(Broken):
            await write_export(job, path, progress=stop, saved_runs=2, size=1, **options)

    async def refusal(job: Export) -> str:
        with pytest.raises(StorageError) as caught:
            await write_export(job, path, saved_runs=2, size=1)
        assert caught.value.kind == "conflict"
        return str(caught.value)

    await begin(export(record, "jsonl"))
    for other in (
        export(record, "openai"),
        export(record, "jsonl", modes="chat"),
        export(record, "jsonl", redact=True),
    ):
        assert "another selection or format" in await refusal(other)
    os.truncate(tmp_path / "x.jsonl.part", 10)
    assert "shorter" in await refusal(export(record, "jsonl"))
    (tmp_path / "x.jsonl.part.json").write_text('{"request"')
    assert "can't be read" in await refusal(export(record, "jsonl"))
    await begin(export(record, "openai"), restart=True)
    await write_export(export(record, "openai"), path)
    assert "is there already" in await refusal(export(record, "openai"))


async def test_two_processes_dont_write_the_same_file(record: Record, tmp_path: Path):
    await fill_record(record)
    path = tmp_path / "x.jsonl"
    tried = []

    async def other() -> None:
        with pytest.raises(StorageError, match="Another process is writing"):
            await write_export(export(record, "jsonl"), path)
        tried.append(True)

    job = export(record, "jsonl")
    first = job.batches

    async def batches(*arguments: Any, **options: Any):
        await other()
        async for batch in first(*arguments, **options):
            yield batch

    job.batches = batches  # type: ignore[method-assign]
    await write_export(job, path)
    assert tried


def command(address: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "storage", *arguments]
    environment = {**os.environ, "GLM_DATABASE": address}
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, **options)


async def test_a_killed_process_is_gone_on_with(record: Record, address: str, tmp_path: Path):
    await fill_record(record)
    path = tmp_path / "runs.jsonl"
    program = (
        "import os, signal, sys\n"
        "from storage.export import file\n"
        "file.SAVED_RUNS = file.SIZE = 3\n"
        "file.write_export.__kwdefaults__.update(saved_runs=3, size=3)\n"
        "from storage import export_commands\n"
        "from storage.__main__ import main\n"
        "kill = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.stderr.write = kill\n"
        "main(sys.argv[1:])\n"
    )
    line = [sys.executable, "-c", program, "export", "--no-redaction", str(path)]
    killed = subprocess.run(line, cwd=ROOT, env={**os.environ, "GLM_DATABASE": address}, timeout=120)
    assert killed.returncode == -signal.SIGKILL and not path.exists()
    assert json.loads((tmp_path / "runs.jsonl.part.json").read_text())["tally"]["runs"] == 3
    done = command(address, "export", "--no-redaction", str(path), "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{path}: 8 rows from 8 runs\n"
    await write_export(export(record, "jsonl"), tmp_path / "again.jsonl")
    assert path.read_bytes() == (tmp_path / "again.jsonl").read_bytes()
    (entry,) = (await record.list_audit(subject="export")).rows
    assert (entry.actor, entry.action, entry.details["redaction"], entry.details["runs"]) == (
        "command line",
        "export",
        False,
        8,
    )


async def called(address: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(call, "storage", *arguments, "--database", address)


async def test_the_command_line_filters_redacts_and_refuses(record: Record, address: str, tmp_path: Path):
    await fill_record(record)
    await record.database.close()
    csv_file = tmp_path / "chats.csv"
    done = await called(
        address, "export", str(csv_file), "--format", "csv", "--mode", "chat", "--mode", "fill", "--corrected"
    )
    assert done.returncode == 0, done.stderr
    assert list(pandas.read_csv(csv_file)["id"]) == ["capital", "filled"]
    redacted = tmp_path / "r.jsonl"
    assert (await called(address, "export", str(redacted))).returncode == 0
    assert "[hidden]" in redacted.read_text() and "zeb@" not in redacted.read_text()
    for arguments, message in (
        (["export", str(csv_file)], "is there already"),
        (["export", str(tmp_path / "n"), "--stars-from", "9"], "rating_from: Stars go from 1 to 5"),
        (["export", str(tmp_path / "no folder" / "n")], "can't be written"),
        (["import", str(tmp_path / "none")], "There is no file"),
    ):
        refused = await called(address, *arguments)
        assert refused.returncode == 1 and message in refused.stderr, refused.stderr
        assert refused.stderr.count("\n") == 1 and "Traceback" not in refused.stderr
    shown = await called(address, "export", "--help")
    assert all(format.description in shown.stdout for format in FORMATS.values())
    assert "--no-redaction" in shown.stdout and len((await called(address, "import", "--help")).stdout) > 300


async def test_an_empty_selection_makes_empty_files(record: Record, tmp_path: Path):
    for name in FORMATS:
        manifest = await write_export(export(record, name), tmp_path / name)
        assert (manifest["rows"], manifest["runs"]) == (0, 0)
    assert pyarrow.parquet.read_table(tmp_path / "parquet").num_rows == 0
    assert (tmp_path / "csv").read_text(encoding="utf-8-sig").startswith("id,created,")


def test_the_program_has_one_version():
    assert f'version = "{PROGRAM_VERSION}"' in (ROOT / "pyproject.toml").read_text()
