"""Blank infilling: what a row of data becomes."""

from __future__ import annotations

from random import Random
from statistics import mean

import pytest

from engine.errors import GLMError
from engine.glm import blanks
from engine.glm.config import CHAT
from engine.glm.tokenizer import Tokenizer
from engine.training.objective import Objective, document_sample, poisson, row_samples, spans

OBJECTIVE = Objective()


@pytest.fixture(scope="module")
def tokenizer(vocabulary_file) -> Tokenizer:
    return Tokenizer.load(vocabulary_file)


def rebuild(sample, tokenizer: Tokenizer) -> list[int]:
    """Put every span of a training sequence back in place of its mask: the document that it was made from."""
    context = list(sample.ids[: sample.context_length])
    answers: dict[int, list[int]] = {}
    at = sample.context_length
    while at < len(sample.ids):
        assert sample.ids[at] == tokenizer.sop
        end = at + 1
        while end < len(sample.ids) and sample.ids[end] != tokenizer.sop:
            end += 1
        gmask = tokenizer.gmask in context
        place = context.index(tokenizer.gmask) if gmask else sample.positions[at]
        answers[place] = list(sample.ids[at + 1 : end])
        assert sample.targets[at : end - 1] == sample.ids[at + 1 : end]
        assert sample.targets[end - 1] in (tokenizer.eop, -1)
        at = end
    if context and context[-1] == tokenizer.eos:
        context.pop()
    document = []
    for index, token in enumerate(context):
        document += answers[index] if token in (tokenizer.mask, tokenizer.gmask) else [token]
    return document


def test_poisson_has_the_right_mean() -> None:
    random = Random(0)
    numbers = [poisson(random, 3.0) for _ in range(20000)]
    assert mean(numbers) == pytest.approx(3.0, abs=0.05)
    assert mean((n - 3) ** 2 for n in numbers) == pytest.approx(3.0, abs=0.15)


@pytest.mark.parametrize("length", [4, 10, 50, 400])
def test_spans_are_apart_and_cover_the_share(length: int) -> None:
    random = Random(length)
    covered = []
    for _ in range(300):
        found = spans(length, OBJECTIVE, random)
        assert found == sorted(found)
        assert all(0 <= start < end <= length for start, end in found)
        assert all(first[1] < second[0] for first, second in zip(found, found[1:], strict=False))
        covered.append(sum(end - start for start, end in found) / length)
    assert 0.1 < mean(covered) < 0.36 if length < 50 else 0.12 < mean(covered) < 0.18


def test_a_document_can_be_rebuilt_from_its_sample(tokenizer: Tokenizer) -> None:
    """Nothing is lost or doubled, in either objective, and both come in the wanted shares."""
    random = Random(5)
    ids = list(range(300, 380))
    masked = 0
    for _ in range(400):
        sample = document_sample(ids, True, tokenizer, OBJECTIVE, random)
        assert rebuild(sample, tokenizer) == ids
        masked += tokenizer.mask in sample.ids
    assert masked / 400 == pytest.approx(0.3, abs=0.07)


def test_a_cut_document_does_not_teach_to_stop(tokenizer: Tokenizer) -> None:
    only_gmask = Objective(mask_share=0.0)
    cut = document_sample(list(range(300, 320)), False, tokenizer, only_gmask, Random(1))
    whole = document_sample(list(range(300, 320)), True, tokenizer, only_gmask, Random(1))
    assert cut.targets[-1] == -1
    assert whole.targets[-1] == tokenizer.eop
    assert cut.targets[:-1] == whole.targets[:-1]


def test_conversation(tokenizer: Tokenizer) -> None:
    """The last answer is the target, and what stands before it is exactly the chat prompt of inference."""
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there"}]}
    (sample,) = row_samples(row, CHAT, tokenizer, OBJECTIVE, 200, Random(0))
    document = blanks.parse(blanks.chat_text([("user", "Hi")], CHAT), tokenizer)
    prompt = blanks.prompt(document.ids, document.masks[-1].index, tokenizer)
    assert sample.ids[: len(prompt.ids)] == prompt.ids
    assert tokenizer.decode([token for token in sample.targets if token >= 0][:-1]) == "Hello there"


def test_k_blanks_become_k_samples_spliced_in_order(tokenizer: Tokenizer) -> None:
    row = {"text": "[MASK] is the capital of [MASK].", "answers": ["Paris", "France"]}
    first, second = row_samples(row, None, tokenizer, OBJECTIVE, 200, Random(0))
    assert tokenizer.decode([t for t in first.targets if t >= 0][:-1]) == "Paris"
    assert tokenizer.decode([t for t in second.targets if t >= 0][:-1]) == " France"
    assert first.ids.count(tokenizer.mask) == 2
    assert tokenizer.decode(second.ids[: second.context_length - 1]) == "Paris is the capital of[MASK]."


def test_rows_that_do_not_fit_are_left_out_never_cut(tokenizer: Tokenizer) -> None:
    row = {"messages": [{"role": "user", "content": "word " * 300}, {"role": "assistant", "content": "x"}]}
    assert row_samples(row, CHAT, tokenizer, OBJECTIVE, 100, Random(0)) == []
    with pytest.raises(GLMError, match="2 answers for 1 blanks"):
        row_samples({"text": "a [MASK]", "answers": ["b", "c"]}, None, tokenizer, OBJECTIVE, 100, Random(0))
    for seed in range(50):
        (sample,) = row_samples({"text": "word " * 900}, None, tokenizer, OBJECTIVE, 100, Random(seed))
        assert len(sample.ids) <= 100
