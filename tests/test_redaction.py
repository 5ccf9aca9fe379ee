"""storage.redaction: what is found by kind, in English and Chinese; what is hidden is gone everywhere, across borders too."""

from __future__ import annotations

import time

import pytest

from storage.redaction import Finding, find, hide, hide_pieces, luhn


def found(text: str, kind: str | None = None) -> list[str]:
    return [finding.text for finding in find([text]) if kind in (None, finding.kind)]


@pytest.mark.parametrize(
    "text, number",
    [
        ("手机13800138000，谢谢", "13800138000"),
        ("电话：138-0013-8000", "138-0013-8000"),
        ("座机 010-62345678", "010-62345678"),
        ("call (415) 555-2671 today", "(415) 555-2671"),
        ("415-555-2671.", "415-555-2671"),
        ("London: 020 7946 0018", "020 7946 0018"),
        ("+86 138 0013 8000", "+86 138 0013 8000"),
        ("+1 415 555 2671", "+1 415 555 2671"),
        ("+44 20 7946 0018", "+44 20 7946 0018"),
        ("+49 30 123456", "+49 30 123456"),
        ("0044 20 7946 0018", "0044 20 7946 0018"),
    ],
)
def test_phone_numbers(text: str, number: str) -> None:
    assert found(text) == [number]


@pytest.mark.parametrize(
    "text",
    [
        "on 2024-01-02 at 12:30",
        "pi is 3.14159265358979",
        "0.1234567890",
        "1234567890",
        "in 1989 there were 12,500 of 3,000,000",
        "192.168.100.200:8080",
        "1700000000000 ms",
        "床前明月光，疑是地上霜。",
        "The capital of France is Paris.",
        "see https://example.org/a?b=1 and @home",
    ],
)
def test_what_is_nothing(text: str) -> None:
    assert found(text) == []


@pytest.mark.parametrize(
    "text, kind, words",
    [
        ("我的邮箱anna.smith+x@mail.example.co.uk是", "email", "anna.smith+x@mail.example.co.uk"),
        ("Mail <a@b.org>.", "email", "a@b.org"),
        ("4111 1111 1111 1111", "card", "4111 1111 1111 1111"),
        ("卡号6222021234567890128。", "card", "6222021234567890128"),
        ("IBAN GB82 WEST 1234 5698 7654 32!", "card", "GB82 WEST 1234 5698 7654 32"),
        ("身份证11010519491231002X", "id", "11010519491231002X"),
        ("SSN 123-45-6789", "id", "123-45-6789"),
        ("NI no. AB 12 34 56 C", "id", "AB 12 34 56 C"),
        ("key=sk-abcdefghijklmnop1234", "key", "sk-abcdefghijklmnop1234"),
        ("AKIAIOSFODNN7EXAMPLE", "key", "AKIAIOSFODNN7EXAMPLE"),
        ("ghp_" + "a1B2" * 9, "key", "ghp_" + "a1B2" * 9),
        ("Authorization: Bearer abcdef1234567890", "key", "abcdef1234567890"),
        ("my password: hunter", "key", "hunter"),
        ("the password is hunter2.", "key", "hunter2"),
        ("密码是abc12345。", "key", "abc12345"),
        ("postgres://u:p4ss@db.example/x now", "url", "postgres://u:p4ss@db.example/x"),
        ("https://x.example/a?b=1&token=abc.", "url", "https://x.example/a?b=1&token=abc"),
    ],
)
def test_secrets_and_numbers(text: str, kind: str, words: str) -> None:
    assert [(finding.kind, finding.text) for finding in find([text])] == [(kind, words)]


def test_a_private_key_is_found_whole() -> None:
    key = "-----BEGIN RSA PRIVATE KEY-----\nMIIEow+/=\nabc\n-----END RSA PRIVATE KEY-----"
    assert found(f"Here: {key} there") == [key]


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112",  # the check digit is wrong
        "99999920240231002X is no date",
        "123-00-6789",
        "GB82 WEST 1234 5698 7654 33",
        "the password is wrong",
        "sk-short",
    ],
)
def test_near_misses(text: str) -> None:
    assert found(text) == []


def test_luhn() -> None:
    assert luhn("79927398713") and not luhn("79927398710") and not luhn("0000000000000")


@pytest.mark.parametrize(
    "text, names",
    [
        ("My name is Anna Smith and I live here.", ["Anna Smith"]),
        ("my name is anna", ["anna"]),
        ("Hello, I'm Bob. I am happy; I am German.", ["Bob"]),
        ("Dear Dr. Jones, I'm sorry.", ["Jones"]),
        ("Best regards,\nPeter van der Berg", ["Peter van der Berg"]),
        ("Call me Ishmael. I am GLM, an AI.", ["Ishmael"]),
        ("Hi, this is Mary from Acme. This is Paris.", ["Mary"]),
        ("我叫王小明，今年三十岁", ["王小明"]),
        ("我叫王明今年三十岁", ["王明"]),
        ("我是张伟的朋友，我是高兴的", ["张伟"]),
        ("大家好，我是欧阳修。", ["欧阳修"]),
        ("我的名字是李在明", ["李在明"]),
        ("我叫张嘉和。", ["张嘉和"]),
        ("我叫小明", ["小明"]),
        ("我叫萨拉。", ["萨拉"]),
        ("我是Tom，你好", ["Tom"]),
        ("李老师好", ["李老师"]),
        ("我是程序员，我是一个学生，我是AI助手", []),
        ("我叫他来吃饭。你叫什么名字？", []),
        ("My name is not important.", []),
        ("name: my-app", []),
    ],
)
def test_names_are_proposed(text: str, names: list[str]) -> None:
    assert found(text, "name") == names == found(text)


def test_findings_are_counted_over_different_texts() -> None:
    texts = ["My name is Anna. ANNA!", "Anna wrote to anna@example.org", "My name is Anna. ANNA!"]
    assert find(texts) == [Finding("anna@example.org", "email", 1), Finding("Anna", "name", 4)]
    assert find(["My name is Li. Like Li, LI."]) == [Finding("Li", "name", 3)]
    assert find([]) == find([""]) == []


def test_hiding_is_complete() -> None:
    assert hide("Anna, ANNA and Annabel", ["Anna"]) == "[hidden], [hidden] and [hidden]bel"
    assert hide("我叫王小明，王小明", ["王小明"]) == "我叫[已隐藏]，[已隐藏]"
    assert hide("Li likes li and Like 李", ["Li"]) == "[已隐藏] likes [已隐藏] and Like 李"
    assert hide("Anna\n  Smith", ["Anna Smith"]) == "[hidden]"
    assert hide("a.b axb", ["a.b"]) == "[hidden] axb", "signs mean themselves"
    assert hide("Anna Smith, Anna", ["Anna", "Anna Smith"]) == "[hidden], [hidden]", "the longest first"
    assert hide("hidden", ["hidden"]) == "[hidden]"
    assert hide("as it is", []) == hide("as it is", ["", "  "]) == "as it is"


def test_words_across_pieces_are_hidden() -> None:
    assert hide_pieces(["call 138", "00138000", "!"], ["13800138000"]) == ["call [hidden]", "", "!"]
    assert hide_pieces(["a", "An", "n", "a b", "An"], ["anna"]) == ["a", "[hidden]", "", " b", "An"]
    assert hide_pieces(["Anna", "", "Anna"], ["Anna"]) == ["[hidden]", "", "[hidden]"]
    assert hide_pieces(["x", "y"], ["z"]) == ["x", "y"]


UNITS = (
    "a",
    "1",
    "1 ",
    "a@",
    "http://",
    "我叫王",
    "A ",
    "My name is ",
    "a:b@",
    "138 0013 8000 ",
    "password:",
    "ab://x?",
)


@pytest.mark.parametrize("unit", [*UNITS, "-----BEGIN PRIVATE KEY-----"])
def test_no_text_takes_long(unit: str) -> None:
    text = unit * (100_000 // len(unit))
    begin = time.perf_counter()
    find([text])
    # Linear ones take well under a second; what backtracks without bounds takes minutes.
    assert time.perf_counter() - begin < 20
