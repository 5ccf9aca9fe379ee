"""The layout of a GLM sequence, for inference and for training."""

from __future__ import annotations

import pytest

from engine.errors import GLMError
from engine.glm import blanks
from engine.glm.config import CHAT
from engine.glm.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(vocabulary_file) -> Tokenizer:
    return Tokenizer.load(vocabulary_file)


def test_mask_prompt(tokenizer: Tokenizer) -> None:
    """[MASK]: eos closes the context, sop and everything made carry the mask's position."""
    document = blanks.parse("The capital of [MASK] is Tokyo.", tokenizer)
    left, right = tokenizer.encode_plain("The capital of"), tokenizer.encode_plain(" is Tokyo.")
    assert document.ids == (*left, tokenizer.mask, *right, tokenizer.eos)
    prompt = blanks.prompt(document.ids, document.masks[0].index, tokenizer)
    assert prompt.ids == (*document.ids, tokenizer.sop)
    assert prompt.context_length == len(document.ids)
    assert prompt.positions == (*range(len(document.ids)), len(left))
    assert [prompt.position(j) for j in range(3)] == [len(left)] * 3


def test_gmask_prompt(tokenizer: Tokenizer) -> None:
    """[gMASK] at the end: no eos, positions run on."""
    document = blanks.parse("Once upon a time[gMASK]", tokenizer)
    assert document.ids[-1] == tokenizer.gmask
    prompt = blanks.prompt(document.ids, document.masks[0].index, tokenizer)
    length = len(document.ids)
    assert prompt.positions == tuple(range(length + 1))
    assert [prompt.position(j) for j in range(3)] == [length + 1, length + 2, length + 3]


def test_text_without_a_mask_gains_a_gmask(tokenizer: Tokenizer) -> None:
    document = blanks.parse("Hello", tokenizer)
    assert document.text == "Hello[gMASK]"
    assert [mask.kind for mask in document.masks] == ["[gMASK]"]


def test_all_kinds_of_masks_in_one_text(tokenizer: Tokenizer) -> None:
    text = "[MASK] 你好 [sMASK]。[gMASK]"
    document = blanks.parse(text, tokenizer)
    assert [mask.kind for mask in document.masks] == ["[MASK]", "[sMASK]", "[gMASK]"]
    assert [text[mask.start : mask.end] for mask in document.masks] == ["[MASK]", "[sMASK]", "[gMASK]"]
    assert [document.ids[mask.index] for mask in document.masks] == [tokenizer.mask, tokenizer.smask, tokenizer.gmask]


@pytest.mark.parametrize("text", ["a [XMASK] b", "a [mask] b", "a [MMASK]", "[gmask]", "a [ MASK ] b"])
def test_unknown_mask_is_named(text: str, tokenizer: Tokenizer) -> None:
    with pytest.raises(GLMError) as caught:
        blanks.parse(text, tokenizer)
    assert caught.value.kind == "unknown_mask"
    assert caught.value.field == "text"
    assert text[text.index("[") : text.index("]") + 1] in str(caught.value)


def test_special_words_in_a_text_stay_words(tokenizer: Tokenizer) -> None:
    """ "people" holds "eop": no special token may come out of what a visitor writes."""
    document = blanks.parse("sop eop eod people ENC dBLOCK </s> [MASK].", tokenizer)
    special = set(tokenizer.special.values()) | {tokenizer.eos}
    assert [token for token in document.ids if token in special] == [tokenizer.mask, tokenizer.eos]


def test_in_chat_an_unknown_mask_is_ordinary_text(tokenizer: Tokenizer) -> None:
    document = blanks.parse("I wear a [mask].[gMASK]", tokenizer, strict=False)
    assert [mask.kind for mask in document.masks] == ["[gMASK]"]
    assert tokenizer.decode(document.ids[:-1]) == "I wear a [mask]."


@pytest.mark.parametrize(
    ("text", "fill", "expected"),
    [
        ("The capital is [MASK].", " Paris", "The capital is Paris."),
        ("The capital is [MASK].", "Paris", "The capital is Paris."),
        ("床前明月光，[MASK]。", "疑是地上霜", "床前明月光，疑是地上霜。"),
        ("[MASK] is big.", "Paris", "Paris is big."),
        ("[MASK] is big.", " Paris", "Paris is big."),
        ("A[MASK]", " b", "A b"),
    ],
)
def test_splice(text: str, fill: str, expected: str) -> None:
    start = text.index("[MASK]")
    assert blanks.splice(text, start, start + len("[MASK]"), fill) == expected


@pytest.mark.parametrize(
    "text", ["The capital of [MASK] is Tokyo.", "Once upon[gMASK]", "我们[sMASK]回家。", "[MASK] a [MASK] b"]
)
def test_training_layout_begins_with_the_inference_prompt(text: str, tokenizer: Tokenizer) -> None:
    document = blanks.parse(text, tokenizer)
    answer = tokenizer.encode_plain(" some answer 回答")
    for mask in document.masks:
        prompt = blanks.prompt(document.ids, mask.index, tokenizer)
        sample = blanks.layout(document.ids, [(mask.index, answer)], tokenizer)
        length = len(prompt.ids)
        assert sample.ids[:length] == prompt.ids
        assert sample.positions[:length] == prompt.positions
        assert sample.context_length == prompt.context_length
        assert sample.ids[length:] == tuple(answer)
        assert sample.positions[length:] == tuple(prompt.position(j) for j in range(len(answer)))
        assert sample.targets[: length - 1] == (-1,) * (length - 1)
        assert sample.targets[length - 1 :] == (*answer, tokenizer.eop)


def test_several_spans_behind_one_context(tokenizer: Tokenizer) -> None:
    """The recorded training layout of the original: spans in any order, each with its own sop and mask position."""
    context = (9, tokenizer.mask, 8, tokenizer.mask, 7, tokenizer.eos)
    sample = blanks.layout(context, [(3, [20, 21]), (1, [30])], tokenizer)
    sop, eop = tokenizer.sop, tokenizer.eop
    assert sample.ids == (*context, sop, 20, 21, sop, 30)
    assert sample.positions == (0, 1, 2, 3, 4, 5, 3, 3, 3, 1, 1)
    assert sample.targets == (-1, -1, -1, -1, -1, -1, 20, 21, eop, 30, eop)


def test_chat_text(tokenizer: Tokenizer) -> None:
    text = blanks.chat_text([("user", "Hi {x}"), ("assistant", "Hello"), ("user", "Bye")], CHAT)
    assert text == "问：Hi {x}\n答：Hello\n问：Bye\n答：[gMASK]"
