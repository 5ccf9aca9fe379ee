"""`batch_invariant` and w8a8 from a pool's arguments to what its clients are told."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

from engine.errors import GLMError
from engine.glm import blanks
from engine.glm.eight_bit import has_onednn
from engine.glm.tokenizer import Tokenizer
from engine.serving.pool import Pool
from engine.serving.protocol import Finished, Request, Sampling
from tests.lively import make_lively_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, vocabulary_file: Path) -> Path:
    return make_lively_model(tmp_path_factory.mktemp("lively") / "model", vocabulary_file)


def requests(folder: Path) -> list[Request]:
    tokenizer = Tokenizer.load(folder)
    made = []
    for number in range(6):
        document = blanks.parse(f"{'The old king went home. ' * number}It was a long [gMASK]", tokenizer)
        prompt = blanks.prompt(document.ids, document.masks[0].index, tokenizer)
        made.append(Request(str(number), prompt, Sampling(temperature=1.0, max_new_tokens=8 + number, seed=number)))
    return made


async def finished(pool: Pool, request: Request) -> Finished:
    last = [event async for event in pool.stream(request)][-1]
    assert isinstance(last, Finished)
    return last


@pytest.mark.parametrize("quantize", [None, "w8a8"])
async def test_a_pool_gives_the_same_numbers_in_any_company(folder: Path, quantize: str | None) -> None:
    if quantize and not has_onednn(torch.device("cpu")):
        pytest.skip("a CPU without products of 8-bit numbers")
    asked = requests(folder)
    async with Pool(folder, threads=1, slots=6, batch_invariant=True, quantize=quantize) as pool:
        together = await asyncio.gather(*(finished(pool, request) for request in asked))
        alone = [await finished(pool, request) for request in asked]
        assert pool.limits is not None
        precision = pool.limits.fingerprint()["precision"]
    assert precision == ("fp32, int8, w8a8, fp16 cache, batch-invariant" if quantize else "fp32, batch-invariant")
    assert [one.results for one in together] == [one.results for one in alone]
    assert max(one.largest_batch for one in together) > 1


def test_w8a8_is_for_loaded_weights(folder: Path) -> None:
    with pytest.raises(GLMError) as caught:
        Pool(folder, quantize="w8a8", offload="disk")
    assert (caught.value.kind, caught.value.field) == ("unsupported", "quantize")
