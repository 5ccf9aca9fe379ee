"""storage.words and storage.search: what is found of English and Chinese texts, on SQLite and PostgreSQL alike."""

from __future__ import annotations

import random

import pytest
from sqlalchemy import text

from storage import Database, FilledBlank, Record, migration, search, words
from storage.run_filter import RunFilter
from tests import databases
from tests.databases import accept, refused

# The fixtures of this file, each on SQLite and on PostgreSQL.
address, record = databases.address, databases.record

CHAT = [
    {"role": "user", "content": "深度学习难不难？"},
    {"role": "assistant", "content": "It depends."},
    {"role": "user", "content": "Why, exactly?"},
]
TEXTS = {
    "en": ("Where is the café?", "The CAFÉ is open until 10 p.m. Ask for François."),
    "zh": ("介绍一下机器学习。", "机器学习是人工智能的一个分支，用ＧＰＵ训练。"),
    "chat": (CHAT, "Because 第3章 says so."),
    "odd": ("under_score state-of-the-art don't", "naïve Straße ﬁne こんにちは世界 日本語のテキスト"),
}


async def write(record: Record, texts: dict = TEXTS) -> None:
    for id, (prompt, output) in texts.items():
        await accept(record, id, prompt=prompt, mode="chat" if isinstance(prompt, list) else "generate")
        await record.finalise_run(id, "done", output=output, blanks=[FilledBlank(0, "[gMASK]", output, (1,), (-1.0,))])


async def found(record: Record, query: str) -> set[str]:
    page = await record.queue(RunFilter(words=query))
    return {row.run.id for row in page.rows}


FOUND = [
    ("cafe", "en"),
    ("CAFÉ", "en"),
    ("cafe\u0301", "en"),
    ("francois", "en"),
    ("the", "en odd"),
    ("the open", "en"),
    ('"café is open"', "en"),
    ('"is café open"', ""),
    ("“café is”", "en"),
    ('"café the"', ""),  # no phrase goes from the prompt on to the output
    ("学习", "zh chat"),
    ("机器", "zh"),
    ("机器学习", "zh"),
    ("器学", "zh"),
    ("学器", ""),
    ("机习", ""),
    ("智", "zh"),
    ("支", "zh"),  # the last one before a comma
    ("人工智能 分支", "zh"),
    ("「人工智能」", "zh"),
    ("人工分支", ""),
    ("gpu", "zh"),
    ("GPU训练", "zh"),
    ("深度", "chat"),
    ("depends", "chat"),
    ("第3章", "chat"),
    ("because 第", "chat"),
    ("score", "odd"),
    ("state-of-the-art", "odd"),
    ("art-of-the-state", ""),
    ("don't", "odd"),
    ("naive", "odd"),
    ("strasse", "odd"),
    ("fine", "odd"),
    ("世界", "odd"),
    ("日本語", "odd"),
    ("テキスト", "odd"),
    ("caf", ""),
]


async def test_what_is_found(written: Record):
    numbers = {row.run.number: row.run.id for row in (await written.queue(RunFilter())).rows}
    for query, ids in FOUND:
        expected = set(ids.split())
        assert await found(written, query) == expected, query
        # The other way, of the runs that come first in an order, must say the same.
        asked = search.among(written.database.dialect, query, list(numbers))
        held = await written.database.read(lambda session, asked=asked: session.scalars(asked))
        assert {numbers[number] for number in held} == expected, query


NASTY = [
    '"', '""', "'", "''", "\\", "*", "a*", "^a", "a:b", "words:a", "NOT a", "a AND", "OR", "NEAR(a b, 2)", "(a", "a)", "-a", "+a",
    "a & b", "a | !b",
    "a <-> b", "'a':*", "a\x00b", "\ud800", "%", "_", ";", "--", "/*", "👍", "\u200b", "“", "」", '"a" "', "{words} : a",
    "a\nb", " ", "…", "؟",
    "'; DROP TABLE run; --",
]  # fmt: skip


async def test_any_text_is_a_search(written: Record):
    draw = random.Random(1)
    letters = "ab学习的é \"'*():^-+&|!<>~\\{}[]\x00%_“”「」\u0301٣"
    for query in [*NASTY, *("".join(draw.choices(letters, k=draw.randint(1, 12))) for _ in range(100))]:
        await found(written, query)
        await written.count_queue(RunFilter(words=query))
    assert await found(written, "；…!") == set(), "nothing to look for"
    assert (await written.count_queue(RunFilter())).count == len(TEXTS)


async def test_a_search_that_is_too_long_is_refused(written: Record):
    for query in ("a" * 501, "a b " * 40):
        assert await refused(written.queue(RunFilter(words=query))) == "bad_request"


@pytest.fixture
async def written(record: Record) -> Record:
    await write(record)
    return record


async def test_texts_that_are_erased_leave_the_index(written: Record, address: str):
    assert await found(written, "机器学习") == {"zh"}

    async def entries(session) -> int:
        return await session.scalar(text("SELECT count(*) FROM run_search"))

    assert await written.database.read(entries) == len(TEXTS)
    for number, statement in enumerate(
        (
            "UPDATE run SET prompt = NULL WHERE id = 'zh'",
            "UPDATE run SET deleted = finished WHERE id = 'en'",
            "DELETE FROM blank WHERE run_id = 'odd'",
            "DELETE FROM run WHERE id = 'odd'",
        )
    ):

        async def erase(session, statement: str = statement) -> None:
            await session.execute(text(statement))

        await written.database.write(erase)
        assert await written.database.read(entries) == len(TEXTS) - min(number + 1, 2) - (number == 3)
    conversation = await written.create_conversation("ann", "chat")
    await accept(written, "talk", conversation=conversation, prompt="unheardof")
    await written.finalise_run("talk", "done", output="secretword")
    assert await found(written, "secretword") == {"talk"}
    await written.delete_conversation(conversation, "ann")
    assert await written.database.read(entries) == 1
    assert await found(written, "unheardof") == set()


async def test_corrections_are_found_and_go_again(written: Record):
    await written.save_review("zh", 0, None, corrected="It is a kind of 统计学。")
    assert await found(written, "统计学") == await found(written, "人工智能") == {"zh"}
    await written.save_review("zh", 1, None, corrected=None)
    assert await found(written, "统计学") == set()
    assert await found(written, "人工智能") == {"zh"}


async def test_runs_that_end_otherwise_are_indexed_too(record: Record):
    await accept(record, "failed", prompt="unlucky words")
    await record.finalise_run("failed", "error", error_kind="worker_died")
    await accept(record, "left", prompt="无人回答")
    assert await record.interrupt_unfinished() == 1
    assert await found(record, "unlucky") == {"failed"}
    assert await found(record, "回答") == {"left"}
    assert {(row.run.id, row.run.language) for row in (await record.queue(RunFilter())).rows} == {
        ("failed", "en"),
        ("left", "zh"),
    }


async def test_an_upgrade_indexes_what_is_there_and_a_downgrade_takes_it_away(address: str):
    database = Database(address)
    migration.upgrade(database.address, "0003")
    moment = "2024-05-01 12:00:00.000001+00:00" if database.dialect == "postgresql" else "2024-05-01 12:00:00.000001"
    rows = [
        # id, status, prompt, output, mean_logprob, finished
        ("old", "done", '"机器学习"', "Ein Café", -2.5, moment),
        ("chat", "done", '[{"role": "user", "content": "hello 世界"}]', "很好", -1.5, moment),
        ("open", "running", '"waiting"', None, None, None),
    ]

    async def before(session) -> None:
        for id, status, prompt, output, mean, finished in rows:
            statement = text(
                "INSERT INTO run (id, visitor, client, server, mode, prompt, parameters, repaired, status, output, mean_logprob, "
                f"created, finished) VALUES (:id, 'ann', 'web', '', 'chat', :prompt, '{{}}', false, :status, :output, :mean, "
                f"'{moment}', {'NULL' if finished is None else repr(moment)})"
            )
            given = {"id": id, "status": status, "prompt": prompt, "output": output, "mean": mean}
            await session.execute(statement, given)
        for statement in (
            f"INSERT INTO feedback VALUES ('old', 'ann', 1, '', '{moment}', '{moment}')",
            f"INSERT INTO feedback VALUES ('old', 'bob', -1, '', '{moment}', '{moment}')",
            f"INSERT INTO vote VALUES ('old', 'chat', 'ann', 'second', false, '{moment}', '{moment}')",
            "INSERT INTO review (run_id, version, status, rating, flagged, corrected, note, created, updated) "
            f"VALUES ('chat', 3, 'done', 1, true, '非常好', '', '{moment}', '{moment}')",
        ):
            await session.execute(text(statement))

    await database.write(before)
    migration.upgrade(database.address)
    record = Record(database)
    assert await found(record, "学习") == {"old"} and await found(record, "cafe") == {"old"}
    assert await found(record, "世界") == await found(record, "非常") == await found(record, "hello") == {"chat"}
    runs = {row.run.id: row.run for row in (await record.queue(RunFilter())).rows}
    assert set(runs) == {"old", "chat"}, "what hasn't ended is not in the queue"
    old, chat = runs["old"], runs["chat"]
    assert (old.language, old.uncertainty, old.thumbs_up, old.thumbs_down, old.disagreement) == ("mixed", 2.5, 1, 1, 1)
    assert (chat.language, chat.stars, chat.flagged, chat.reviewed, chat.corrected) == ("mixed", 1, True, True, True)
    assert chat.disagreement == 1, "the vote says better, one star says bad"
    assert len({old.number, chat.number, (await record.get_run("open", None)).number}) == 3
    assert await record.finalise_run("open", "done", output="周末")
    assert await found(record, "waiting") == await found(record, "周末") == {"open"}
    await database.close()
    assert migration.downgrade(database.address, "0003") == "0003"
    migration.upgrade(database.address)
    assert await found(record, "学习") == {"old"}
    await database.close()


def test_terms():
    assert words.terms("Machine 机器学习, a_b") == ["machine", "机器", "器学", "学习", "a", "b"]
    assert words.characters("Machine 机器学习") == set("机器学习")
    assert words.terms("x" * 500) == ["x" * 64]
    assert len(words.terms("字" * 100_000)) == words.PART_TERMS == len(words.terms("字母 " * 100_000))


@pytest.mark.parametrize(
    "text, language",
    [
        ("Hello, world", "en"),
        ("Ça va, garçon?", "en"),
        ("你好，世界", "zh"),
        ("请用 GPU 训练一个大型的语言模型，然后告诉我结果", "zh"),
        ("Please explain 机器学习 and 深度学习 to a child", "mixed"),
        ("The word 好 means good, as everybody who has been there for some time knows", "en"),
        ("Привет, мир", "other"),
        ("12345 !?", "other"),
        ("", "other"),
        ("こんにちはせかい", "other"),
    ],
)
def test_language(text: str, language: str):
    assert words.language(text) == language


def test_nothing_but_terms_reaches_the_database():
    for query in NASTY:
        asked = search.expression("sqlite", query)
        if asked is not None:
            assert set(asked.replace("words :", "").replace("characters :", "").replace(" AND ", " ")) <= set(
                'abcdefghijklmnopqrstuvwxyz0123456789 "'
            )
    assert (
        search.expression("sqlite", '机器学习 好 "a b"')
        == 'words : "机器 器学 学习" AND words : "a b" AND characters : "好"'
    )
    assert (
        search.expression("postgresql", '机器学习 好 "a b"') == "('机器' <-> '器学' <-> '学习') & ('a' <-> 'b') & '好'"
    )
