"""Lineage: from an output to weights, dataset, runs and reviewers; from a run to datasets and models; and what deletion leaves."""

from __future__ import annotations

from sqlalchemy import update

from storage import Record
from storage.models import ModelVersion
from storage.run_filter import RunFilter
from tests import databases
from tests.databases import refused
from tests.reviewed import fill_record, finish

# Each on SQLite and on PostgreSQL.
address, record = databases.address, databases.record


async def trained(record: Record, hash: str, parent: int, dataset: str | None) -> int:
    """A model version made from `parent`, trained on `dataset`."""
    id = await record.ensure_model_version(hash * 64, f"model {hash}", {}, parent=parent)

    async def work(session) -> None:
        await session.execute(update(ModelVersion).where(ModelVersion.id == id).values(dataset_id=dataset))

    await record.database.write(work)
    return id


async def test_both_ways_and_what_a_deletion_taints(record: Record):
    await fill_record(record)
    everything = await record.freeze_dataset("all", RunFilter(), by="adam", held_out_share=0)
    story = await record.freeze_dataset("story", RunFilter.parse({"ids": "story"}), by="adam", held_out_share=0)
    first = await trained(record, "b", 1, everything.id)
    second = await trained(record, "c", first, story.id)
    apart = await trained(record, "d", 1, story.id)
    await finish(record, "new", "x", "y", model_version=second)

    found = await record.run_lineage("new")
    assert [step.version.id for step in found.written_by] == [second, first, 1], (
        "the version that wrote it, then its ancestors"
    )
    assert [step.dataset and step.dataset.id for step in found.written_by] == [story.id, everything.id, None]
    assert (found.datasets, found.models) == ([], [])

    found = await record.run_lineage("capital")
    assert [(one.dataset.id, one.train, one.held_out, one.reviewers) for one in found.datasets] == [
        (everything.id, 2, 0, ["rita"])
    ]
    assert [model.id for model in found.models] == [first, second], "the one trained on it, and the one made from that"
    assert {model.id for model in (await record.run_lineage("story")).models} == {first, second, apart}

    version = await record.version_lineage(first)
    assert ([one.id for one in version.made_from_it], version.more_made, version.runs) == ([second], 0, 0)
    dataset = await record.dataset_lineage(everything.id)
    assert (dataset.reviewers, [one.id for one in dataset.versions]) == ([("rita", 5)], [first])
    assert [(one.id, rows) for one, rows in dataset.written_by] == [(1, 5)]
    page = await record.dataset_sources(everything.id, limit=2)
    assert [(row.run, row.reviewer, row.model_version) for row in page.rows] == [("capital", "rita", 1)] * 2
    rest = await record.dataset_sources(everything.id, after=int(page.next))
    assert [row.run for row in rest.rows] == ["story", "filled", "filled"] and rest.next is None

    (conversation,) = (await record.list_conversations("ann")).rows
    await record.delete_conversation(conversation.id, "ann")
    found = await record.run_lineage("capital")
    assert found.deleted is not None and found.datasets[0].removed == 2
    assert [model.tainted is not None for model in found.models] == [True, True]
    assert [model.tainted is not None for model in (await record.run_lineage("story")).models] == [True, True, False]
    tombs = (await record.dataset_sources(everything.id, limit=2)).rows
    assert [(row.hash == old.hash, row.removed is not None) for row, old in zip(tombs, page.rows, strict=True)] == [
        (True, True)
    ] * 2
    assert (await record.version_lineage(second)).steps[1].removed_rows == 2


async def test_what_isnt_there(record: Record):
    for asked in (record.run_lineage("x"), record.version_lineage(7), record.dataset_lineage("x")):
        assert await refused(asked) == "not_found"
    assert (await record.dataset_sources("x")).rows == []


async def test_a_long_line_of_versions_is_cut_not_followed_for_ever(record: Record):
    parent = await record.ensure_model_version("0", "v", {})
    for number in range(1, 130):
        parent = await record.ensure_model_version(str(number), "v", {}, parent=parent)
    assert len((await record.version_lineage(parent)).steps) == 101
