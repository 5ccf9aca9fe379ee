"""What of a text can be searched: words, and of Chinese and Japanese, which put no spaces between theirs, pairs of characters.

    terms("Machine 机器学习")  ->  ["machine", "机器", "器学", "学习"]        # in their order: a phrase is a run of them
    characters("机器学习")     ->  {"机", "器", "学", "习"}                  # so that a single one is found, too

Case, accents and the width of letters make no difference. `language(text)` tells by the script alone which language it is. A
text's first PART_TERMS terms are indexed: what PostgreSQL can tell the order of, in four parts.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

from storage.errors import StorageError

LANGUAGES = ("en", "zh", "mixed", "other")
QUERY_CHARACTERS = 500
QUERY_TERMS = 64
PART_TERMS = 4000  # of each of a run's texts
WORD_CHARACTERS = 64  # longer ones (an encoded picture, say) are cut

_HAN = "\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_KANA = "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff"
_SEGMENT = re.compile(f"([{_HAN}{_KANA}]+)|[^\\W_{_HAN}{_KANA}]+")
_ACCENTS = re.compile("[\u0300-\u036f]")
_HAN_CHARACTER = re.compile(f"[{_HAN}]")
_LATIN_LETTER = re.compile("[A-Za-z\u00c0-\u024f]")
_OTHER_LETTER = re.compile(f"[^\\W\\d_A-Za-z\u00c0-\u024f{_HAN}]")
_CHUNK = re.compile('"([^"]*)"|“([^”]*)”|「([^」]*)」|(\\S+)')


def normalised(text: str) -> str:
    """The form in which texts are compared: small letters, no accents, one width."""
    if text.isascii():
        return text.lower()
    bare = _ACCENTS.sub("", unicodedata.normalize("NFKD", text.casefold()))
    return unicodedata.normalize("NFKC", bare).casefold()


def terms(text: str, most: int = PART_TERMS) -> list[str]:
    """The first `most` words and pairs of a text; a character that stands alone among others is a word."""
    found: list[str] = []
    for segment, unspaced in _segments(normalised(text[: most * WORD_CHARACTERS])):
        if len(found) >= most:
            break
        found.extend(_pairs(segment) if unspaced else [segment])
    return found[:most]


def characters(text: str, most: int = PART_TERMS) -> set[str]:
    """The characters of those parts of a text that have no spaces between words."""
    return {
        character for segment, unspaced in _segments(normalised(text[: 4 * most])) if unspaced for character in segment
    }


def query(words: str) -> tuple[list[list[str]], list[str]]:
    """What a person types, as phrases (lists of terms that follow each other) and single characters, all of which must be there.

    What stands between quotation marks, or together without a space, is one phrase. Any text is a query; one without a letter or
    a digit has no terms at all. Raises `StorageError("bad_request")` for one that is too long.
    """
    if len(words) > QUERY_CHARACTERS:
        raise _too_long(f"{QUERY_CHARACTERS} characters", QUERY_CHARACTERS)
    phrases: list[list[str]] = []
    alone: list[str] = []
    for match in _CHUNK.finditer(words):
        phrase: list[str] = []
        for segment, unspaced in _segments(normalised(next(part for part in match.groups() if part is not None))):
            if unspaced and len(segment) == 1:
                # Its neighbours in the text make pairs with it, so that nothing can be said of what stands beside it.
                alone.append(segment)
                phrases.append(phrase)
                phrase = []
            else:
                phrase.extend(_pairs(segment) if unspaced else [segment])
        phrases.append(phrase)
    phrases = [phrase for phrase in phrases if phrase]
    if sum(map(len, phrases)) + len(alone) > QUERY_TERMS:
        raise _too_long(f"{QUERY_TERMS} words or pairs of characters", QUERY_TERMS)
    return phrases, alone


def language(text: str) -> str:
    """`en` for Latin letters, `zh` for Han characters, `mixed` where both have a share, `other` for other scripts or none.

    A Han character weighs as much as three letters, about what it says. A tenth or less of a script doesn't count.
    """
    han = 3 * len(_HAN_CHARACTER.findall(text))
    latin = len(_LATIN_LETTER.findall(text))
    other = 2 * len(_OTHER_LETTER.findall(text))
    whole = han + latin + other
    if not whole or 2 * other > whole:
        return "other"
    if 10 * han <= whole:
        return "en"
    return "zh" if 10 * latin <= whole else "mixed"


def _segments(text: str) -> Iterator[tuple[str, bool]]:
    """Words, and runs of characters without spaces (True)."""
    for match in _SEGMENT.finditer(text):
        unspaced = match[1] is not None
        yield (match[0] if unspaced else match[0][:WORD_CHARACTERS]), unspaced


def _pairs(segment: str) -> Iterable[str]:
    if len(segment) == 1:
        return [segment]
    return map("".join, zip(segment, segment[1:], strict=False))


def _too_long(most: str, limit: int) -> StorageError:
    return StorageError("bad_request", f"A search may have {most}.", field="words", limit=limit)
