"""Tensor parallel ranks compute what one rank does: each reads its own slices only, and together they give the same logits."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from engine.errors import GLMError
from engine.glm import checkpoint, parallel
from engine.glm.blanks import Prompt
from engine.glm.config import Config, Quantization, check_split
from engine.glm.model import GLM, initialise
from engine.glm.parallel import SINGLE, Ranks
from engine.serving.runner import Runner
from engine.serving.work import Reading, Work
from tests.ranks import run_ranks
from tests.reference import load_model

SIZES = (1, 2, 4)
TOLERANCE = 1e-4  # between numbers of ranks
RECORDED_TOLERANCE = 2e-4  # from the original code, which ran on as many ranks


@pytest.fixture(scope="module")
def reference(request: pytest.FixtureRequest) -> Path:
    return Path(request.config.getoption("--reference"))


@pytest.fixture(scope="module")
def folder(reference: Path, tmp_path_factory: pytest.TempPathFactory, vocabulary_file: Path) -> Path:
    """The recorded model as a model folder."""
    folder = tmp_path_factory.mktemp("reference") / "model"
    checkpoint.save(load_model(reference), folder, tokenizer=vocabulary_file)
    return folder


def cases(reference: Path) -> list[Path]:
    return sorted((reference / "logits").glob("*.safetensors"))


def generations(reference: Path) -> list[dict[str, Any]]:
    """Those that the original made alike on one, two and four ranks."""
    path = reference / "generation.json"
    return [case for case in json.loads(path.read_text())["greedy"] if case["robust"]] if path.is_file() else []


@pytest.fixture(scope="module")
def found(reference: Path, folder: Path) -> dict[int, dict[str, Any]]:
    """What rank 0 of 1, 2 and 4 found."""
    results = {}
    for size in SIZES:
        ranks = [compute(SINGLE, folder, reference)] if size == 1 else run_ranks(size, compute, folder, reference)
        for other in ranks[1:]:  # a follower's logits are the same, to the bit: it may drop them
            assert all(np.array_equal(other["logits"][name], logits) for name, logits in ranks[0]["logits"].items())
        results[size] = ranks[0]
    return results


@torch.inference_mode()
def compute(ranks: Ranks, folder: Path, reference: Path) -> dict[str, Any]:
    model = checkpoint.load(folder, ranks=ranks)
    logits = {}
    for path in cases(reference):
        data = load_file(path)
        logits[path.stem] = model(data["tokens"], data["position_ids"], visible=~data["attention_mask"]).numpy()
    return {
        "logits": logits,
        "tokens": greedy(Runner(model, 8, model.config.positions), generations(reference)),
        "embedded": model.embed(edges(model.config)[None]).numpy(),
    }


def edges(config: Config) -> torch.Tensor:
    """The first and the last id of every rank's part of the vocabulary."""
    part = config.vocabulary // max(SIZES)
    return torch.tensor([edge for first in range(0, config.vocabulary, part) for edge in (first, first + part - 1)])


def greedy(runner: Runner, recorded: list[dict[str, Any]]) -> list[list[int]]:
    """Input and output of each recorded generation. Every rank sees the same logits, so each decides by itself."""
    answers = []
    for slot, case in enumerate(recorded):
        ids = tuple(case["input"])
        length = len(ids) - 1
        at, step = (length, 1) if case["gmask"] else (case["mask_position"], 0)
        prompt = Prompt(ids, (*range(length), at), length, at + step, step)
        tokens: list[int] = []
        work = Work(readings=(Reading(prompt, slot),))
        while True:
            tokens.append(int(runner.follow(work)[0].argmax()))
            if tokens[-1] in case["end_tokens"] or len(ids) + len(tokens) == case["max_total_length"]:
                break
            made = len(tokens) - 1
            work = Work(
                slots=(slot,),
                tokens=(tokens[-1],),
                columns=(len(ids) + made,),
                positions=(prompt.position(made),),
            )
        answers.append([*ids, *tokens])
    return answers


@pytest.mark.parametrize("size", SIZES[1:])
def test_logits_are_those_of_one_rank(found: dict[int, dict[str, Any]], size: int) -> None:
    assert found[size]["logits"].keys() == found[1]["logits"].keys() and found[1]["logits"]
    for name, logits in found[size]["logits"].items():
        assert np.abs(logits - found[1]["logits"][name]).max() < TOLERANCE, name


@pytest.mark.parametrize("size", SIZES[1:])
def test_logits_are_those_of_the_original_on_as_many_ranks(
    found: dict[int, dict[str, Any]], reference: Path, size: int
) -> None:
    recorded = {path.stem: load_file(path).get(f"logits_mp{size}") for path in cases(reference)}
    assert any(logits is not None for logits in recorded.values())
    for name, logits in recorded.items():
        if logits is not None:
            assert np.abs(logits.numpy() - found[size]["logits"][name]).max() < RECORDED_TOLERANCE, name


@pytest.mark.parametrize("size", SIZES)
def test_greedy_tokens_are_the_recorded_ones(found: dict[int, dict[str, Any]], reference: Path, size: int) -> None:
    recorded = generations(reference)
    if not recorded:
        pytest.skip("this folder of fixtures has no robust greedy generations")
    assert found[size]["tokens"] == [case["output"] for case in recorded]


@pytest.mark.parametrize("size", SIZES[1:])
def test_ids_at_the_edges_of_the_vocabularys_parts(found: dict[int, dict[str, Any]], size: int) -> None:
    assert np.array_equal(found[size]["embedded"], found[1]["embedded"])


# What each rank holds


@pytest.mark.parametrize("size", SIZES)
def test_parts_joined_are_the_whole(size: int) -> None:
    whole = torch.arange(16 * 8).view(16, 8)
    for name in (
        "word_embeddings.weight",
        "layers.0.attention.query_key_value.weight",
        "layers.0.mlp.dense_h_to_4h.weight",
        "layers.0.mlp.dense_4h_to_h.weight",
        "layers.0.input_layernorm.weight",
    ):
        how = parallel.partition(name)
        parts = [
            torch.cat([whole[index] for index in parallel.slices(how, whole.shape, rank, size)]) for rank in range(size)
        ]
        assert torch.equal(parallel.join(how, parts), whole), name
        assert how == parallel.WHOLE or parts[0].numel() * size == whole.numel()


def test_shapes_that_can_not_be_split_are_refused() -> None:
    config = Config("small", 1, 48, 96, 6, 100, 32)
    check_split(config, 2)
    for size, word in ((4, "heads = 6"), (3, "vocabulary = 100")):
        with pytest.raises(GLMError, match=word) as caught:
            check_split(config, size)
        assert (caught.value.kind, caught.value.field) == ("unsupported", "tensor_parallel")
        with pytest.raises(GLMError, match=word):
            GLM(config, ranks=Ranks(0, size))


@pytest.mark.parametrize(
    "stored, size, fits",
    [
        (Quantization(8, shards=1), 2, True),
        (Quantization(8, shards=4), 2, True),
        (Quantization(8, shards=2), 4, True),
        (Quantization(8, shards=3), 2, False),
        (Quantization(4, group=32), 2, False),  # 96 columns are 3 groups
        (Quantization(4, group=16), 2, True),
    ],
)
def test_quantised_groups_must_not_cross_ranks(stored: Quantization, size: int, fits: bool) -> None:
    config = Config("small", 1, 96, 192, 12, 100, 32, quantization=stored)
    if fits:
        check_split(config, size)
        return
    with pytest.raises(GLMError, match="column groups") as caught:
        check_split(config, size)
    assert (caught.value.kind, caught.value.field) == ("unsupported", "tensor_parallel")


class AnonymousMemory(threading.Thread):
    """The most of this process's anonymous memory that was seen, in bytes above what there was before."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._before, self._most = self._now(), 0
        self._over = threading.Event()

    @staticmethod
    def _now() -> int:
        """Pages of mapped files are not in it: the system drops them when it needs the room."""
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))

    def run(self) -> None:
        while not self._over.wait(0.001):
            self._most = max(self._most, self._now())

    def end(self) -> int:
        self._over.set()
        self.join()
        return max(self._most, self._now()) - self._before


def load_measured(ranks: Ranks, folder: Path) -> tuple[int, int, int]:
    """Bytes: the peak while loading, the rank's part of the model, the largest tensor of the part."""
    checkpoint.load(
        folder.parent / "tiny", ranks=ranks
    )  # what the first load imports and allocates is not the weights'
    memory = AnonymousMemory()
    memory.start()
    model = checkpoint.load(folder, ranks=ranks)
    sizes = [parameter.nbytes for parameter in model.parameters()]
    return memory.end(), sum(sizes), max(sizes)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="anonymous memory is read from /proc")
def test_a_rank_needs_memory_for_its_own_part_only(tmp_path: Path, vocabulary_file: Path) -> None:
    """A model of 196 MB in fp16, loaded as fp32 by four ranks at the same time."""
    for name, config in (
        ("tiny", Config("tiny", 1, 64, 96, 4, 64, 16)),
        ("large", Config("large", 6, 1024, 2816, 16, 20000, 64)),
    ):
        model = GLM(config)
        initialise(model, torch.Generator().manual_seed(1))
        checkpoint.save(model, tmp_path / name, tokenizer=vocabulary_file)
        del model
    file = (tmp_path / "large" / "model.safetensors").stat().st_size

    def budget(part: int, tensor: int) -> float:
        return 1.05 * part + tensor + 24e6

    for peak, part, tensor in run_ranks(4, load_measured, tmp_path / "large"):
        assert part < 2 * file / 4 * 1.01 and budget(part, tensor) < file
        assert part < peak < budget(part, tensor), (peak, part, tensor)
    # The measure sees it when more is read.
    [(peak, _, _)] = run_ranks(1, load_measured, tmp_path / "large")
    assert peak > file
