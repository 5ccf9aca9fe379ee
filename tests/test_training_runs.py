"""The state of trainings, versions, comparisons and what serves, on both databases."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from storage import Record, StorageError
from storage.training_tables import Dataset, DatasetRow
from tests import databases
from tests.databases import refused

address, record = databases.address, databases.record


async def prepared(record: Record) -> int:
    """A dataset "d" of one row; the number of a version to go on from."""

    async def work(session: Any) -> None:
        values = {"id": "d", "name": "birds", "version": 2, "hash": "h", "rows": 1, "filters": {}, "parameters": {}}
        session.add(Dataset(**values, created=record.clock()))
        await session.flush()
        session.add(DatasetRow(dataset_id="d", index=0, part="train", hash="r", content={"text": "x"}))

    await record.database.write(work)
    return await record.ensure_model_version("base-hash", "base", {"layers": 2})


async def trained(record: Record, base: int, weights: str) -> int:
    run = await record.create_training_run("d", base, "lora", {}, "/somewhere", by=None)
    return await record.finish_training_run(
        run.id, weights_hash=weights, name=weights, config={}, model_folder=f"{run.folder}/run/model"
    )


async def test_one_training_at_a_time(record: Record) -> None:
    base = await prepared(record)
    staff = await record.create_staff("Ann", "admin", None)
    run = await record.create_training_run("d", base, "full", {"steps": 3}, "/somewhere", by=staff.id)
    assert (run.state, run.folder, run.parameters) == ("queued", f"/somewhere/{run.id}", {"steps": 3})
    assert await refused(record.create_training_run("d", base, "lora", {}, "/x", by=None)) == "conflict"
    assert await record.change_training_run(run.id, ("queued",), state="running", process={"pid": 1})
    assert not await record.change_training_run(run.id, ("queued",), state="failed")
    assert await refused(record.resume_training_run(run.id)) == "conflict"
    [active] = await record.active_training_runs()
    assert (active.id, active.process) == (run.id, {"pid": 1})
    assert await record.change_training_run(run.id, ("running", "stopping"), state="failed", error="No.")
    assert await record.active_training_runs() == []
    other = await record.create_training_run("d", base, "lora", {}, "/x", by=None)
    assert await refused(record.resume_training_run(run.id)) == "conflict"  # the other one is under way
    await record.change_training_run(other.id, ("queued",), state="stopped")
    again = await record.resume_training_run(run.id)
    assert (again.state, again.error) == ("queued", None)
    assert [(entry.run.id, entry.dataset, entry.by) for entry in await record.list_training_runs()] == [
        (other.id, "birds 2", None),
        (run.id, "birds 2", "ann"),
    ]
    assert await refused(record.get_training_run("nothing")) == "not_found"


async def test_of_two_at_once_one_begins(record: Record) -> None:
    base = await prepared(record)
    begun = (record.create_training_run("d", base, "lora", {}, "/x", by=None) for _ in range(6))
    ends = await asyncio.gather(*begun, return_exceptions=True)
    assert sorted(isinstance(end, StorageError) for end in ends) == [False] + [True] * 5


async def test_a_result_is_a_version_with_parent_and_dataset(record: Record) -> None:
    base = await prepared(record)
    first = await trained(record, base, "first")
    second = await trained(record, first, "second")
    assert [version.id for version in await record.ancestors(second)] == [second, first, base]
    found = await record.get_version(second)
    assert (found.dataset_id, found.parent_id, found.tainted) == ("d", first, None)
    assert found.folder is not None and found.folder.endswith("/run/model")
    await databases.accept(record, model_version=second)
    newest, middle, oldest = await record.list_versions()
    assert (newest.version.id, newest.runs, newest.dataset, newest.evaluation) == (second, 1, "birds 2", None)
    assert (middle.runs, oldest.dataset, oldest.training_run) == (0, None, None) and middle.training_run
    assert await refused(record.get_version(999)) == "not_found"
    # The same weights again, trained by somebody else: the version is there already.
    assert await trained(record, base, "first") == first


@pytest.mark.parametrize("when", ["before", "during"])
async def test_a_row_removed_during_the_training_taints_its_version(record: Record, when: str) -> None:
    base = await prepared(record)

    async def remove(session: Any) -> None:
        row = await session.get_one(DatasetRow, ("d", 0))
        row.content, row.removed = None, record.clock()

    if when == "before":
        await record.database.write(remove)
    run = await record.create_training_run("d", base, "lora", {}, "/x", by=None)
    if when == "during":
        await record.database.write(remove)
    version = await record.finish_training_run(run.id, weights_hash="w", name="w", config={}, model_folder="/x/m")
    assert ((await record.get_version(version)).tainted is not None) == (when == "during")
    child = await trained(record, version, "child")
    assert ((await record.get_version(child)).tainted is not None) == (when == "during")


async def test_evaluations(record: Record) -> None:
    base = await prepared(record)
    version = await trained(record, base, "first")
    values: dict[str, Any] = {"other": base, "training_run": None, "parameters": {"folder": "/x"}, "by": None}
    evaluation = await record.create_evaluation("comparison", version, **values)
    assert await refused(record.create_evaluation("comparison", version, **values)) == "conflict"
    assert [one.id for one in await record.running_evaluations("comparison")] == [evaluation.id]
    assert await record.change_evaluation(evaluation.id, state="done", results={"verdict": "better"})
    assert not await record.change_evaluation(evaluation.id, state="failed")
    last = await record.last_evaluation("comparison", version)
    assert last is not None and last.results == {"verdict": "better"}
    again = await record.create_evaluation("comparison", version, **values)
    assert (await record.last_evaluation("comparison", version)).id == again.id
    assert (await record.list_versions())[0].evaluation.id == again.id
    assert await record.last_evaluation("comparison", base) is None


async def test_what_serves(record: Record) -> None:
    base = await prepared(record)
    assert await record.deployed() is None
    version = await trained(record, base, "first")
    await record.deploy(version, by=None)
    await record.deploy(base, by=None)
    assert (await record.deployed()).id == base
    newest, before = await record.list_deployments()
    assert (newest.version, newest.deployment.until) == ("base", None)
    assert before.version == "first" and before.deployment.until == newest.deployment.since
    assert await refused(record.deploy(999, by=None)) == "not_found"
