"""storage.spool and storage.replay: what the database can't take now is on the disk, in order, and comes into it exactly once."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from storage import Database, FilledBlank, Record, StorageError
from storage.replay import accept_entry, conversation_entry, finalise_entry, replay, replay_left, start_entry
from storage.spool import DAMAGED, LOCK, Spool
from tests import databases
from tests.databases import STARTED, accept

ROOT = Path(__file__).parent.parent
VALUES = {"visitor": "ann", "mode": "generate", "prompt": "Hello", "parameters": {}}

# The fixtures of this file, each on SQLite and on PostgreSQL.
address, record = databases.address, databases.record


def opened(folder: Path, limit: int = 1 << 20, reserve: int = 0) -> Spool:
    spool = Spool(folder, limit, reserve)
    spool.open()
    return spool


def everything(spool: Spool) -> list[dict[str, Any]]:
    found = []
    while entries := spool.read():
        found += entries
        spool.done()
    return found


def test_what_waits_comes_back_in_order_also_after_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.spool.SEGMENT_BYTES", 100)
    monkeypatch.setattr("storage.spool.READ_BYTES", 30)
    entries = [
        {"op": "start", "run": str(number), "text": "雪\ud800\n\0\u2028", "p": -math.inf} for number in range(10)
    ]
    spool = opened(tmp_path / "spool")
    assert spool.read() == [] and spool.waiting == 0
    spool.append(entries[:3])
    spool.append(entries[3:])
    assert spool.read() == entries[:1] == spool.read(), "until it is done"
    spool.done()
    assert spool.waiting == 9
    spool.close()  # as a crash would leave it, the lock apart

    spool = opened(tmp_path / "spool")
    assert len(list(spool.folder.glob("*.jsonl"))) == 2
    again = everything(spool)
    assert again in (entries, entries[3:]), "a part that was begun may come again, nothing is left out"
    assert spool.waiting == 0 and not list(spool.folder.glob("*.jsonl"))
    spool.append(entries[:1])
    assert everything(spool) == entries[:1]
    spool.close()
    assert not (tmp_path / "spool").exists()


def test_half_a_line_is_left_out_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool = opened(tmp_path)
    spool.append([{"run": "1"}, {"run": "2"}])
    spool.close()
    (segment,) = tmp_path.glob("*.jsonl")
    for rest in (b'{"run": "3", "te', b'{"run": "3", "te\0\0\0\0', b"\0\0\0"):
        with segment.open("ab") as file:
            file.write(rest)
        spool = opened(tmp_path)
        assert spool.damaged == (0 if rest.startswith(b"\0") else 1) and spool.waiting == 2
        assert [entry["run"] for entry in spool.read()] == ["1", "2"]
        spool.close()
    segment.write_bytes(b'{"run": "1"}\nnonsense\n{"run": "2"}\n')
    spool = opened(tmp_path)
    assert [entry["run"] for entry in everything(spool)] == ["1", "2"] and spool.damaged == 1
    spool.append([{"run": "4"}])
    spool.close()
    (segment,) = tmp_path.glob("*.jsonl")
    segment.write_bytes(b'{"run"')  # nothing but half a line: it stands in nobody's way
    spool = opened(tmp_path)
    spool.append([{"run": "5"}])
    assert [entry["run"] for entry in everything(spool)] == ["5"]
    assert (tmp_path / DAMAGED).read_text().splitlines() == ['{"run": "3", "te'] * 2 + ["nonsense", '{"run"']
    assert "can't be used" in caplog.text and "nonsense" not in caplog.text
    spool.close()


def test_only_the_owner_reads_it_and_one_process_has_it(tmp_path: Path) -> None:
    folder = tmp_path / "all" / "spool"
    spool = opened(folder, limit=100, reserve=1000)
    spool.append([{"run": "1"}])
    spool.append([{"run": "2"}])
    for path in (folder, folder.parent, *folder.iterdir()):
        assert path.stat().st_mode & 0o077 == 0, path
    with pytest.raises(StorageError, match="Another process.*--server-name"):
        opened(folder)
    with pytest.raises(StorageError, match="As many unwritten runs") as caught:
        spool.append([{"run": "3" * 100}])
    assert caught.value.kind == "disk_full" and everything(spool) == [{"run": "1"}, {"run": "2"}]
    spool.close()
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"can't be used\."):
        opened(tmp_path / "file" / "spool")


FULL = """
import os, sys
from pathlib import Path
from storage import StorageError
from storage.spool import Spool

folder = Path(sys.argv[1])

def fill():
    with open(folder / "filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass

spool = Spool(folder / "spool", 1 << 30, reserve=100_000)
spool.open()
fill()
count = 0
try:
    while True:
        spool.append([{"run": str(count), "text": "x" * 1000}])
        count += 1
except StorageError as error:
    print(error.kind, count > 90)
os.remove(folder / "filler")
spool.append([{"run": str(count), "text": "more"}])
count += 1
found = []
while entries := spool.read():
    found += entries
    spool.done()
print([entry["run"] for entry in found] == [str(number) for number in range(count)], spool.damaged)
print((folder / "spool" / "reserve").stat().st_size)
"""


def test_a_really_full_disk_is_bridged_by_the_reserve(tmp_path: Path) -> None:
    alone = databases.small_disk(tmp_path, "1m")
    command = [*alone, sys.executable, "-c", FULL, str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["disk_full True", "True 0", "100000"]


async def test_everything_comes_into_the_database_once(record: Record, tmp_path: Path) -> None:
    moments = [STARTED + timedelta(hours=number) for number in range(5)]
    blank = FilledBlank(0, "[gMASK]", "雪", (1, 2), (-0.5, -math.inf), [{"text": "雨", "logprob": -1.0}])
    spool = opened(tmp_path)
    spool.append([conversation_entry("talk", moments[0], visitor="ann", kind="chat", title="A title")])
    for run in ("one", "two"):
        spool.append(
            [
                accept_entry(run, moments[1], **VALUES, conversation="talk", seed=2**64 - 1),
                start_entry(run, moments[2]),
                finalise_entry(run, moments[3], "done", output="雪", blanks=[blank], new_tokens=2),
            ]
        )
    spool.append([accept_entry("open", moments[4], **VALUES), {"op": "nonsense"}, start_entry("missing", moments[4])])
    kept = [path.read_bytes() for path in tmp_path.glob("*.jsonl")]
    assert await replay(record, spool) == 10 and spool.waiting == 0
    spool.close()
    for _ in range(2):
        for run in ("one", "two"):
            found = await record.get_run(run, "ann")
            assert (found.status, found.output, found.seed, found.new_tokens) == ("done", "雪", 2**64 - 1, 2)
            assert [found.created, found.started, found.finished] == moments[1:4]
            assert [(b.text, b.token_ids, b.logprobs, b.alternatives) for b in found.blanks] == [
                ("雪", (1, 2), (-0.5, -math.inf), [{"text": "雨", "logprob": -1.0}])
            ]
        talk = await record.get_conversation("talk", "ann")
        assert (talk.title, talk.created, [run.id for run in talk.runs]) == ("A title", moments[0], ["one", "two"])
        assert (await record.get_run("open", "ann")).status == "accepted"
        assert (await record.counts())["runs"] == 3 and (await record.counts())["blanks"] == 2
        assert json.loads((tmp_path / DAMAGED).read_text().splitlines()[0]) == {"op": "nonsense"}
        # The same again, as after a crash behind the last write.
        (tmp_path / "000001.jsonl").write_bytes(b"".join(kept))
        spool = opened(tmp_path)
        await replay(record, spool)
        spool.close()


async def test_a_conversation_that_was_deleted_meanwhile_stays_without_texts(record: Record, tmp_path: Path) -> None:
    await record.create_conversation("ann", "chat", "SECRET", id="gone")
    await record.create_conversation("bob", "chat", "bob's", id="bob's")
    await record.delete_conversation("gone", "ann")
    spool = opened(tmp_path)
    for run, conversation in (("one", "gone"), ("two", "bob's")):
        end = finalise_entry(run, STARTED, "done", output="SECRET", blanks=[FilledBlank(0, "[gMASK]", "SECRET")])
        values = {**VALUES, "prompt": "SECRET", "conversation": conversation}
        spool.append([accept_entry(run, STARTED, **values), end])
    await replay(record, spool)
    spool.close()
    for run in ("one", "two"):
        found = await record.get_run(run, None)
        assert (found.status, found.prompt, found.output, found.blanks) == ("done", None, None, [])
        assert found.conversation_id is None and found.deleted is not None
    assert (await record.get_conversation("bob's", "bob")).runs == []


REPLAYER = """
import asyncio, sys
from pathlib import Path
from storage import Database, Record
from storage.replay import replay_left

print("ready", flush=True)
asyncio.run(replay_left(Record(Database(sys.argv[1])), Path(sys.argv[2])))
"""


async def test_a_replay_that_is_killed_loses_and_doubles_nothing(
    record: Record, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.spool.SEGMENT_BYTES", 20_000)
    spool = opened(tmp_path / "spools" / "server")
    for number in range(400):
        blanks = [FilledBlank(0, "[MASK]", str(number), [number], [-1.0])]
        run, moment = f"run {number}", STARTED + timedelta(seconds=number)
        end = finalise_entry(run, moment, "done", output=str(number), blanks=blanks)
        spool.append([accept_entry(run, moment, **VALUES), end])
    spool.close()
    await record.database.close()

    async def written() -> int:
        return (await record.counts())["runs"]

    command = [sys.executable, "-c", REPLAYER, address, str(tmp_path / "spools")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    while not await written():
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert await written() < 400, "the kill came in the middle"

    await replay_left(record, tmp_path / "spools")
    counts = await record.counts()
    assert (counts["runs_by_status"]["done"], counts["runs"], counts["blanks"]) == (400, 400, 400)
    assert (await record.get_run("run 399", "ann")).blanks[0].token_ids == (399,)
    assert not (tmp_path / "spools" / "server").exists()


async def test_a_database_that_fails_in_the_middle_is_tried_again(record: Record, tmp_path: Path) -> None:
    spool = opened(tmp_path)
    spool.append([accept_entry(f"run {number}", STARTED, **VALUES) for number in range(3)])
    missing = Record(Database(tmp_path / "none" / "glm.sqlite3"))
    with pytest.raises(StorageError) as caught:
        await replay(missing, spool)
    assert caught.value.kind == "database_unavailable" and spool.waiting == 3
    await accept(record, "run 1")
    assert await replay(record, spool) == 3
    assert (await record.counts())["runs"] == 3
    spool.close()


async def test_the_spool_of_a_running_server_is_left_alone(record: Record, tmp_path: Path) -> None:
    running, ended = opened(tmp_path / "running"), opened(tmp_path / "ended")
    running.append([accept_entry("running's", STARTED, **VALUES)])
    ended.append([accept_entry("ended's", STARTED, **VALUES)])
    ended.close()
    assert await replay_left(record, tmp_path) == 1
    assert (await record.counts())["runs"] == 1 and running.waiting == 1
    running.close()
    assert sorted(path.name for path in (tmp_path / "running").iterdir()) == ["000001.jsonl", LOCK]
