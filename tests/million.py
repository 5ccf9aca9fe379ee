"""A database as it is after years of use: a million runs of realistic length in both languages, made in a few minutes.

    fill("sqlite:///FILE", 1_000_000)        # a migrated, empty database; PostgreSQL as well

Half of the runs are English and nearly all of these hold `the`, nearly half Chinese with 的; each of WORDS_ONCE stands in a
single run. Every run has the blank that it filled; one in twenty was rated, reviewed, tagged or corrected. Prompts and outputs
are drawn from some thousands whose index terms are known beforehand, which is what makes it fast.

A test file asks for the fixture `million`, made once a session, with `pytest_plugins = ("tests.million",)`. GLM_TEST_MILLION:
a smaller number of runs, or the file of a database that `fill` made before.
"""

from __future__ import annotations

import itertools
import os
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest

from storage import migration, search
from storage.address import Address
from storage.compact import pack_floats, pack_ids
from storage.database import to_json
from storage.run_numbers import first_number

FIRST = datetime(2024, 1, 1, tzinfo=UTC)
RUNS = 1_000_000
WORDS_ONCE = ("floccinaucinihilipilification", "龘靐")
TAGS = ("wrong fact", "off topic", "rude", "unfinished", "很好", "too long")
BATCH = 5000

_ENGLISH = """
time year people way day man thing woman life child world school state family student group country
problem hand part place case week company system program question work government number night point
home water room mother area money story fact month lot right study book eye job word business issue side
kind head house service friend father power hour game line end member law car city community name
president team minute idea kid body information back parent face others level office door health person
art war history party result change morning reason research girl guy moment air teacher force education
model answer network language machine learning prompt token blank layer weight gradient river mountain
capital bridge museum train ticket coffee weather garden kitchen recipe flour sugar doctor medicine
engine battery
""".split()  # noqa: SIM905 (easier to read)
_SMALL = "of and to in is that for it as was with be by on not he his but at are this have from or had an they".split()  # noqa: SIM905
_CHINESE = """
我们 你们 他们 这个 那个 什么 怎么 为什么 可以 需要 问题 答案 模型 语言 学习 机器 深度 训练 数据 城市
北京 上海 天气 今天 明天 昨天 时间 朋友 家庭 学校 老师 学生 工作 公司 经济 文化 历史 世界 国家 中国 人民
生活 健康 医生 医院 电影 音乐 艺术 科学 技术 计算 网络 信息 社会 发展 环境 自然 河流 山脉 森林 海洋 动物
植物 食物 味道 厨房 米饭 面条 茶叶 咖啡 火车 飞机 汽车 道路 桥梁 房子 花园 春天 夏天 秋天 冬天 早上 晚上
高兴 难过 认真 努力 简单 复杂 重要 普通 特别 开始 结束 继续 改变 选择 决定 发现 认为 知道 希望 喜欢 使用
提高 解决 研究 分析
""".split()  # noqa: SIM905 (easier to read)


class Text(NamedTuple):
    """A text with what stands of it in the index."""

    text: str
    terms: list[str]
    alone: frozenset[str]

    @classmethod
    def of(cls, text: str) -> Text:
        return cls(text, search.terms(text), frozenset(search.characters(text)))


def _english(draw: random.Random) -> str:
    words = []
    for _ in range(draw.randint(6, 16)):
        kind = draw.random()
        words.append("the" if kind < 0.12 else draw.choice(_SMALL) if kind < 0.45 else draw.choice(_ENGLISH))
    return " ".join(words).capitalize() + ". "


def _chinese(draw: random.Random) -> str:
    words = [draw.choice(_CHINESE) + ("的" if draw.random() < 0.2 else "") for _ in range(draw.randint(5, 12))]
    return "".join(words) + "。"


def texts(draw: random.Random, language: str, least: int, most: int, count: int = 10_000) -> list[Text]:
    """Texts of `least` to `most` sentences. Each has a word that few others have (`item12`), half of the English ones `the`."""
    made = []
    for number in range(count):
        kinds = {"en": (_english,), "zh": (_chinese,), "mixed": (_english, _chinese)}[language]
        sentences = [kinds[turn % len(kinds)](draw) for turn in range(draw.randint(least, most))]
        made.append(Text.of("".join(sentences) + f"item{number}. "))
    return made


def runs(count: int, seed: int = 7) -> Iterator[tuple[dict[str, Any], list[str], frozenset[str]]]:
    """Rows of the table `run` in order of acceptance (JSON as text), with the terms and the single characters of their texts."""
    draw = random.Random(seed)
    languages = {"en": 0.5, "zh": 0.45, "mixed": 0.05}
    size = min(10_000, count)
    asked = {language: texts(draw, language, 1, 3, size) for language in languages}
    said = {language: texts(draw, language, 2, 8, size) for language in languages}
    once = {count // 3: Text.of(WORDS_ONCE[0]), count // 2: Text.of(WORDS_ONCE[1])}
    for index in range(count):
        (language,) = draw.choices(tuple(languages), tuple(languages.values()))
        prompt, output = draw.choice(asked[language]), draw.choice(said[language])
        if index in once:
            word = once[index]
            output = Text(output.text + word.text, output.terms + word.terms, output.alone | word.alone)
        mode = draw.choices(("chat", "generate", "fill", "score"), (60, 20, 18, 2))[0]
        given = to_json([{"role": "user", "content": prompt.text}] if mode == "chat" else prompt.text)
        terms = [*prompt.terms, search.BREAK, *output.terms, search.BREAK]
        yield _row(draw, index, count, mode, given, output.text, language), terms, prompt.alone | output.alone


def _row(
    draw: random.Random, index: int, count: int, mode: str, prompt: str, output: str, language: str
) -> dict[str, Any]:
    created = FIRST + timedelta(seconds=index * 60, microseconds=draw.randrange(1000))
    status = draw.choices(("done", "cancelled", "error", "interrupted"), (94, 4, 1.5, 0.5))[0]
    tokens = 1 + len(output) // 4
    mean = -draw.expovariate(1.5)
    touched = draw.random() < 0.05
    reviewed = touched and draw.random() < 0.5
    stars = draw.randint(1, 5) if reviewed else None
    up, down = (draw.random() < 0.5, draw.random() < 0.3) if touched else (False, False)
    return {
        "id": f"{index:08x}-{draw.getrandbits(64):016x}",
        "conversation_id": f"conversation {index // 5}",
        "model_version_id": 1 + 4 * index // count,
        "visitor": f"visitor {draw.randrange(50_000)}",
        "client": "web" if draw.random() < 0.8 else "api",
        "server": "",
        "mode": mode,
        "prompt": prompt,
        "parameters": _PARAMETERS,
        "seed": draw.getrandbits(32),
        "fingerprint": _FINGERPRINT,
        "repaired": False,
        "status": status,
        "output": output,
        "finish_reason": "eop" if status == "done" else None,
        "error_kind": "worker_died" if status == "error" else None,
        "error_message": None,
        "prompt_tokens": 20,
        "new_tokens": tokens,
        "largest_batch": 4,
        "mean_logprob": mean,
        "created": created,
        "started": created + timedelta(milliseconds=5),
        "finished": created + timedelta(seconds=3),
        "deleted": None,
        "queue_milliseconds": 5.0,
        "first_token_milliseconds": 80.0,
        "total_milliseconds": 3000.0,
        "number": first_number(created),
        "language": language,
        "uncertainty": -mean,
        "thumbs_up": int(up),
        "thumbs_down": int(down),
        "disagreement": int(up and down),
        "stars": stars,
        "flagged": reviewed and draw.random() < 0.1,
        "reviewed": reviewed and draw.random() < 0.8,
        "corrected": reviewed and draw.random() < 0.3,
        "touched": touched,
    }


_PARAMETERS = to_json({"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 256})
_FINGERPRINT = to_json(
    {"model": "glm", "weights_hash": "0" * 64, "precision": "fp32", "device": "cpu", "version": "1", "sampler": "1"}
)


def beside(row: dict[str, Any]) -> dict[str, list[tuple[Any, ...]]]:
    """What stands in other tables because of a run."""
    ids = tuple(range(row["new_tokens"]))
    logprobs = itertools.repeat(row["mean_logprob"], len(ids))
    kind = "[MASK]" if row["mode"] == "fill" else "[gMASK]"
    text = row["output"][:200] if row["mode"] == "fill" else row["output"]
    found: dict[str, list[tuple[Any, ...]]] = {
        "blank": [
            (row["id"], 0, kind, text, pack_ids(ids), pack_floats(logprobs), to_json([{"text": text, "logprob": -1.0}]))
        ]
    }
    if not row["touched"]:
        return found
    for name, thumb in (("thumbs_up", 1), ("thumbs_down", -1)):
        if row[name]:
            visitor = f"visitor {name}"
            found.setdefault("feedback", []).append((row["id"], visitor, thumb, "", row["finished"], row["finished"]))
    if row["stars"] is not None:
        corrected = row["output"].upper() if row["corrected"] else None
        status = "done" if row["reviewed"] else "open"
        review = (row["id"], 1, status, row["stars"], row["flagged"], corrected, "", f"staff {row['stars'] % 3}")
        found["review"] = [(*review, row["finished"], row["finished"])]
        found["review_tag"] = [(row["id"], TAGS[row["stars"]])]
    return found


BESIDE = {
    "blank": '(run_id, "index", kind, text, token_ids, logprobs, alternatives)',
    "feedback": "(run_id, visitor, rating, comment, created, updated)",
    "review": "(run_id, version, status, rating, flagged, corrected, note, reviewer_id, created, updated)",
    "review_tag": "(run_id, tag)",
}


def first_rows(count: int) -> dict[str, tuple[str, list[tuple[Any, ...]]]]:
    """What the runs refer to: table -> (columns, rows)."""
    models = [(number, f"hash {number}", f"glm {number}", "{}", FIRST) for number in range(1, 5)]
    staff = [(f"staff {number}", f"reviewer {number}", "reviewer", FIRST) for number in range(3)]
    threads = [
        (f"conversation {number}", "visitor 0", "chat", "", FIRST, FIRST + timedelta(seconds=number))
        for number in range(count // 5 + 1)
    ]
    return {
        "model_version": ("(id, weights_hash, name, config, created)", models),
        "staff": ("(id, name, role, created)", staff),
        "conversation": ("(id, visitor, kind, title, created, updated)", threads),
    }


def fill(address: str | Path, count: int = RUNS) -> None:
    """Fill a database that is migrated and empty."""
    parsed = Address.parse(address)
    if parsed.file is not None:
        _fill_sqlite(parsed, count)
    else:
        _fill_postgresql(parsed, count)


def _fill_sqlite(address: Address, count: int) -> None:
    with closing(sqlite3.connect(address.file_uri(), uri=True, isolation_level=None)) as connection:
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-1000000", "foreign_keys=OFF"):
            connection.execute(f"PRAGMA {pragma}").close()
        # What would be written all over the file is made at the end.
        index = "SELECT sql FROM sqlite_master WHERE name = 'ix_run_uncertainty'"
        (made,) = connection.execute(index).fetchone()
        connection.execute("DROP INDEX ix_run_uncertainty")

        def insert(table: str, columns: str, rows: list[tuple[Any, ...]]) -> None:
            if rows:
                marks = ", ".join("?" * len(rows[0]))
                connection.executemany(
                    f"INSERT INTO {table} {columns} VALUES ({marks})", [_sqlite(row) for row in rows]
                )

        for table, (columns, rows) in first_rows(count).items():
            connection.execute("BEGIN")
            insert(table, columns, rows)
            connection.execute("COMMIT")
        for some in _batches(runs(count)):
            connection.execute("BEGIN")
            columns = f"({', '.join(some[0][0])})"
            insert("run", columns, [tuple(row.values()) for row, _, _ in some])
            index = [
                (row["number"], f" {' '.join(terms)} ", f" {' '.join(sorted(alone))} ") for row, terms, alone in some
            ]
            insert("run_search", "(rowid, words, characters)", index)
            for table, columns in BESIDE.items():
                insert(table, columns, [one for row, _, _ in some for one in beside(row).get(table, ())])
            connection.execute("COMMIT")
        connection.execute(made)
        connection.execute("PRAGMA journal_mode=WAL").close()


def _sqlite(row: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(_plain(value) if isinstance(value, datetime) else value for value in row)


def _plain(moment: datetime) -> str:
    return moment.replace(tzinfo=None).isoformat(" ", "microseconds")


def _fill_postgresql(address: Address, count: int) -> None:
    assert address.server is not None
    url = address.server.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url) as connection:

        def insert(table: str, columns: str, rows: list[tuple[Any, ...]]) -> None:
            if rows:
                with connection.cursor().copy(f"COPY {table} {columns} FROM STDIN") as copy:
                    for row in rows:
                        copy.write_row(row)

        for table, (columns, rows) in first_rows(count).items():
            insert(table, columns, rows)
        # An index that is made at the end takes a fraction of the time.
        connection.execute("DROP INDEX ix_run_search_terms")
        for some in _batches(runs(count)):
            insert("run", f"({', '.join(some[0][0])})", [tuple(row.values()) for row, _, _ in some])
            index = [(row["number"], search.tsvector(terms, alone)) for row, terms, alone in some]
            insert("run_search", "(number, terms)", index)
            for table, columns in BESIDE.items():
                insert(table, columns, [one for row, _, _ in some for one in beside(row).get(table, ())])
            connection.commit()
        connection.execute("CREATE INDEX ix_run_search_terms ON run_search USING gin (terms)")
        connection.commit()
        connection.autocommit = True
        connection.execute("VACUUM ANALYZE")


def _batches(rows: Iterator[Any]) -> Iterator[list[Any]]:
    while some := list(itertools.islice(rows, BATCH)):
        yield some


@pytest.fixture(scope="session")
def million(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the generated SQLite database."""
    given = os.environ.get("GLM_TEST_MILLION", "")
    if given and not given.isdecimal():
        return Path(given)
    file = tmp_path_factory.mktemp("million") / "glm.sqlite3"
    migration.upgrade(Address.parse(file))
    fill(file, int(given or RUNS))
    return file
