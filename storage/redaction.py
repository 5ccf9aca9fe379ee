"""Finds what a person should not publish by accident, and hides what they choose. Rules only: no model, no network.

    findings = find(texts)                        # e-mail, phone and card numbers, keys, likely names ... as proposals
    redacted = hide(text, ["Anna Smith"])         # "[hidden]", in a Chinese text "[已隐藏]"

Kinds: url (with a password or key in it), key (of an interface, password), email, card (payment card or bank account),
id (identity or insurance number), phone, name. Names are guesses from what introduces them ("my name is", "我叫"), in
English and Chinese; a person decides. What is hidden disappears wherever it stands, in either case, also inside longer
words, except that a Latin word of up to three letters is only hidden as a whole word: hiding "Li" leaves "Like" alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from itertools import islice

import phonenumbers

from storage import person_names

KINDS = ("url", "key", "email", "card", "id", "phone", "name")
MARKS = {"en": "[hidden]", "zh": "[已隐藏]"}
PHONE_REGIONS = ("CN", "US", "GB")  # how numbers without a country code are read
SHORT_WORD = 3
MOST = 200
PHONE_TRIES = 3000  # in one text: each costs some microseconds
_HAN = re.compile("[\u3400-\u9fff]")
_LETTER = r"[^\W\d_\u3400-\u9fff]"  # of a script that puts spaces between words

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Finding:
    """`text` is what to hide, `count` how often it stands in the texts that were searched."""

    text: str
    kind: str
    count: int


def find(texts: Iterable[str]) -> list[Finding]:
    """What is worth hiding in `texts`, by kind and then in order of appearance, at most MOST; a text that comes twice
    counts once."""
    different = list(dict.fromkeys(texts))
    found: dict[str, str] = {}
    for text in different:
        for start, end, kind in _spans(text):
            found.setdefault(text[start:end], kind)
    whole = "\n".join(" ".join(text.lower().split()) for text in different)
    proposed = sorted(found.items(), key=lambda item: KINDS.index(item[1]))[:MOST]
    return [Finding(words, kind, _count(words, whole)) for words, kind in proposed]


def words(texts: Iterable[str]) -> list[str]:
    """All that is worth hiding in `texts`, however much it is: for where nobody looks at proposals."""
    found: dict[str, None] = {}
    for text in dict.fromkeys(texts):
        found.update((text[start:end], None) for start, end, _ in _spans(text))
    return list(found)


def _count(words: str, whole: str) -> int:
    if _is_short(words):
        return len(re.findall(_part(words), whole, re.IGNORECASE))
    return max(1, whole.count(" ".join(words.lower().split())))


def hide(text: str, hidden: Sequence[str]) -> str:
    """`text` with a mark in place of everything in `hidden`."""
    return hide_pieces([text], hidden)[0]


def hide_pieces(pieces: Sequence[str], hidden: Sequence[str]) -> list[str]:
    """Pieces that are read as one text, redacted together, so that what lies across a border is hidden, too.

    The mark stands in the piece in which the hidden words begin.
    """
    pattern = _pattern(tuple(hidden))
    if pattern is None:
        return list(pieces)
    whole = "".join(pieces)
    spans = [found.span() for found in pattern.finditer(whole)]
    if not spans:
        return list(pieces)
    mark = MARKS["zh" if _HAN.search(whole) else "en"]
    redacted, begin = [], 0
    for piece in pieces:
        end, position, parts = begin + len(piece), begin, []
        for start, stop in spans:
            if stop <= begin or start >= end:
                continue
            parts += [whole[position : max(start, begin)], mark if start >= begin else ""]
            position = min(stop, end)
        redacted.append("".join([*parts, whole[position:end]]))
        begin = end
    return redacted


@lru_cache(maxsize=256)
def _pattern(hidden: tuple[str, ...]) -> re.Pattern[str] | None:
    """One expression for all hidden words, the longest first; None for none. A space stands for any white space."""
    wanted = sorted({words.strip() for words in hidden} - {""}, key=len, reverse=True)
    return re.compile("|".join(map(_part, wanted)), re.IGNORECASE) if wanted else None


def _part(words: str) -> str:
    part = r"\s+".join(re.escape(word) for word in words.split())
    return rf"(?<!{_LETTER}){part}(?!{_LETTER})" if _is_short(words) else part


def _is_short(words: str) -> bool:
    return len(words) <= SHORT_WORD and words.isalpha() and not _HAN.search(words)


def _spans(text: str) -> list[tuple[int, int, str]]:
    """(start, end, kind) of every finding, in order; none overlaps another, the earlier kind wins."""
    taken: list[tuple[int, int, str]] = []
    covered = bytearray(len(text))
    for kind in KINDS:
        for start, end in _DETECTORS[kind](text):
            if not any(covered[start:end]):
                covered[start:end] = b"\1" * (end - start)
                taken.append((start, end, kind))
    return sorted(taken)


# The kinds, one detector each. Every repetition is bounded, so that no text takes more than linear time.

_URL = re.compile(
    r"\b[a-z][a-z0-9+.-]{1,20}://(?:[^\s/@:]{1,200}:[^\s/@]{1,200}@[^\s<>\"'，。；）]{1,500}"
    r"|[^\s<>\"'?，。；）]{1,500}\?[^\s<>\"'，。；）]{0,500}?"
    r"(?<=[?&])(?:access_token|token|api_?key|key|secret|password|passwd|pwd|sig|signature|auth)=[^\s<>\"'，。；）]{1,500})",
    re.IGNORECASE,
)
_KEY = re.compile(
    r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----[^-]{0,10000}(?:-----END [A-Z ]{0,30}PRIVATE KEY-----)?"
    r"|(?<![A-Za-z0-9])(?:sk-[A-Za-z0-9_-]{16,200}|gh[opusr]_[A-Za-z0-9]{20,100}|github_pat_\w{20,100}"
    r"|glpat-[\w-]{16,100}|xox[abeprs]-[\w-]{10,200}|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{35}|hf_[A-Za-z0-9]{20,100}"
    r"|npm_[A-Za-z0-9]{30,100}|[rsp]k_(?:live|test)_[A-Za-z0-9]{16,100}"
    r"|eyJ[\w-]{10,2000}\.[\w-]{10,4000}(?:\.[\w-]{10,2000})?)",
    re.ASCII,
)
# The value behind a name that says that it is secret.
_SECRET = re.compile(
    r"(?:passw(?:or)?d|passcode|api[ _-]?key|access[ _-]?key|secret(?:[ _-]key)?|(?:access[ _-]|auth[ _-])?token|密码|口令|密钥)"
    r"(?:\"|')?\s{0,3}(?:[:=：]|is|是|为)\s{0,3}(?:\"|')?([^\s\"',，。；;！!]{4,200})|\bBearer\s{1,3}([\w.~+/-]{12,2000}=*)",
    re.IGNORECASE,
)
_SECRET_WORDS = (
    "passw",
    "passcode",
    "key",
    "secret",
    "token",
    "bearer",
    "密码",
    "口令",
    "密钥",
)  # one of them is in each
_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![A-Za-z])"
)
_CARD = re.compile(r"(?<![\d.])(?:\d[ -]?){12,18}\d(?!\d)", re.ASCII)
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])", re.ASCII)
_RESIDENT = re.compile(
    r"(?<![A-Za-z0-9])[1-9]\d{5}((?:18|19|20)\d{2})(\d{2})(\d{2})\d{3}[\dXx](?![A-Za-z0-9])", re.ASCII
)
_SOCIAL_SECURITY = re.compile(r"(?<![\d-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])", re.ASCII)
_NATIONAL_INSURANCE = re.compile(
    r"(?<![A-Za-z0-9])[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d{2} ?\d{2} ?\d{2} ?[A-D](?![A-Za-z0-9])", re.ASCII
)
# What any card, identity or phone number has: six digits close to each other. Most texts have none, and are done here.
_NUMBER = re.compile(r"(?:\d\D{0,8}){5}\d")
_ABROAD = re.compile(r"(?<![\d.])00([1-9][\d -]{7,18}\d)(?!\d)", re.ASCII)


def _urls(text: str) -> Iterator[Span]:
    for found in _URL.finditer(text):
        yield found.start(), found.start() + len(found[0].rstrip(".,;:!?)]}"))


def _keys(text: str) -> Iterator[Span]:
    for found in _KEY.finditer(text):
        yield found.span()
    lowered = text.lower()
    if not any(word in lowered for word in _SECRET_WORDS):
        return
    for found in _SECRET.finditer(text):
        group = 1 if found[1] is not None else 2
        # "the password is wrong" says nothing secret: a plain word counts only behind a colon or an equals sign.
        if re.search(r"[:=：]", text[found.start() : found.start(group)]) or not found[group].rstrip(".?").isalpha():
            yield found.start(group), found.start(group) + len(found[group].rstrip(".?"))


def _emails(text: str) -> Iterator[Span]:
    if "@" not in text:
        return
    for found in _EMAIL.finditer(text):
        yield found.span()


def _cards(text: str) -> Iterator[Span]:
    if not _NUMBER.search(text):
        return
    for found in _CARD.finditer(text):
        digits = re.sub(r"\D", "", found[0])
        # Cards begin with 2 to 6, which moments in milliseconds don't.
        if digits[0] in "23456" and luhn(digits):
            yield found.span()
    for found in _IBAN.finditer(text):
        account = found[0].replace(" ", "")
        if (
            15 <= len(account) <= 34
            and int("".join(str(int(sign, 36)) for sign in account[4:] + account[:4])) % 97 == 1
        ):
            yield found.span()


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812)."""
    total = 0
    for position, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + position % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0 and set(digits) != {"0"}


def _ids(text: str) -> Iterator[Span]:
    if not _NUMBER.search(text):
        return
    for found in _RESIDENT.finditer(text):
        try:
            date(int(found[1]), int(found[2]), int(found[3]))
        except ValueError:
            continue
        yield found.span()
    for pattern in (_SOCIAL_SECURITY, _NATIONAL_INSURANCE):
        for found in pattern.finditer(text):
            yield found.span()


def _phones(text: str) -> Iterator[Span]:
    if not _NUMBER.search(text):
        return
    spans: list[Span] = []
    for region in PHONE_REGIONS:
        matcher = phonenumbers.PhoneNumberMatcher(text, region, max_tries=PHONE_TRIES)
        for found in islice(matcher, PHONE_TRIES):
            if not re.fullmatch(r"\d+\.\d+", found.raw_string):  # a number with decimals
                spans.append((found.start, found.end))
    for found in _ABROAD.finditer(text):
        try:
            number = phonenumbers.parse("+" + found[1], None)
        except phonenumbers.NumberParseException:
            continue
        if phonenumbers.is_valid_number(number):
            spans.append(found.span())
    # One number may be read differently in two regions: the longest reading stands.
    yield from sorted(set(spans), key=lambda span: span[0] - span[1])


_DETECTORS: dict[str, Callable[[str], Iterator[Span]]] = {
    "url": _urls,
    "key": _keys,
    "email": _emails,
    "card": _cards,
    "id": _ids,
    "phone": _phones,
    "name": person_names.spans,
}
