"""Our network against fixtures recorded from GLM-130B's original code.

`pytest tests/test_reference.py --reference DIR` runs on any folder of such fixtures; without the option a part of them, in
tests/data/reference, is used where the full set is absent.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import GLMError
from engine.glm import blanks
from engine.glm.attention import MaskedAttention
from engine.glm.blanks import Prompt
from engine.glm.checkpoint import Weights
from engine.glm.config import PRESETS, Config, check_split
from engine.glm.model import GLM, rotary_table
from engine.serving.protocol import Sampling
from engine.training.data import Batch
from engine.training.loss import batch_loss, shrunk
from tests import reference as recorded
from tests.evaluation_runs import check_run
from tests.ranks import run_ranks
from tests.reference import Engine, RankTask, load_config, load_model, logits_of, stored_rows, with_end

LOGITS_TOLERANCE = 2e-4
RANKS_TOLERANCE = 1e-4  # of ranks from one rank
SCORES_TOLERANCE = 5e-4


@pytest.fixture(scope="module")
def reference(request: pytest.FixtureRequest) -> Path:
    return Path(request.config.getoption("--reference"))


@pytest.fixture(scope="module")
def model(reference: Path) -> GLM:
    return load_model(reference)


@pytest.fixture(scope="module")
def folders(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every recorded checkpoint, whatever its layout, as a model folder of ours."""
    out = tmp_path_factory.mktemp("converted")
    return {name: recorded.convert(reference, name, out / name) for name in recorded.checkpoints(reference)}


@pytest.fixture(scope="module")
def plain(folders: dict[str, Path]) -> Path:
    return next(folder for folder in folders.values() if Config.load(folder).quantization is None)


@pytest.fixture(scope="module")
def engine(plain: Path) -> Engine:
    return Engine(plain)


def needed(folder: Path, name: str, key: str | None = None) -> Any:
    """A recorded JSON file, or what it has under a key. Sets may lack some: the test is skipped, with a line that says so."""
    path = folder / name
    found = json.loads(path.read_text()) if path.exists() else None
    if found is None or (key is not None and key not in found):
        pytest.skip(f"this set of fixtures has no {name}" + (f" with {key}" if path.exists() else ""))
    return found if key is None else found[key]


def cases(folder: Path) -> list[Path]:
    return sorted((folder / "logits").glob("*.safetensors"))


def test_there_are_cases(reference: Path) -> None:
    assert len(cases(reference)) >= 3


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = Path(metafunc.config.getoption("--reference"))
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", cases(folder), ids=lambda path: path.stem)
    if "layout" in metafunc.fixturenames:
        metafunc.parametrize("layout", recorded.checkpoints(folder))


def test_logits(case: Path, model: GLM) -> None:
    data = load_file(case)
    assert (logits_of(model, data) - stored_rows(data["logits"], data)).abs().max() < LOGITS_TOLERANCE


def test_logits_of_every_layout(layout: str, folders: dict[str, Path], reference: Path, model: GLM) -> None:
    """Plain checkpoints, converted from any number of ranks' files, are the one-rank checkpoint bit for bit; quantised ones
    have the logits that were recorded of them."""
    weights = Weights(folders[layout])
    key = recorded.logits_key(reference, layout, folders[layout])
    if key is None:
        for name, parameter in model.named_parameters():
            assert torch.equal(weights.part(name).float(), parameter), name
        assert weights.names == {name for name, _ in model.named_parameters()}
        return
    found = 0
    quantised = Engine(folders[layout]).model
    for case in cases(reference):
        data = load_file(case)
        if key in data:
            found += 1
            difference = (logits_of(quantised, data) - stored_rows(data[key], data)).abs().max()
            assert difference < LOGITS_TOLERANCE, case.stem
    assert found, f"no logits of {layout} were recorded"


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_quantised_while_loading(kind: str, plain: Path, reference: Path) -> None:
    quantised = Engine(plain, quantize=kind).model
    found = [data for data in map(load_file, cases(reference)) if f"logits_{kind}_mp1" in data]
    if not found:
        pytest.skip(f"this set of fixtures has no logits_{kind}_mp1")
    for data in found:
        expected = stored_rows(data[f"logits_{kind}_mp1"], data)
        assert (logits_of(quantised, data) - expected).abs().max() < LOGITS_TOLERANCE


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.heavy)])
def test_ranks(
    size: int, reference: Path, folders: dict[str, Path], plain: Path, model: GLM, engine: Engine, tmp_path: Path
) -> None:
    """Several processes, each with its part: plain, quantised in any layout that splits so, quantised while loading."""
    try:
        check_split(load_config(reference), size)
    except GLMError as error:
        pytest.skip(str(error))
    for case in cases(reference):
        save_file({"logits": logits_of(model, load_file(case))}, tmp_path / case.name)
    tasks = [RankTask(plain, None, ("logits", f"logits_mp{size}"), generate=True)]
    for name, folder in folders.items():
        if (key := recorded.logits_key(reference, name, folder)) is not None:
            tasks.append(RankTask(folder, None, (key,)))
    tasks += [RankTask(plain, kind, (f"logits_{kind}_mp{size}",)) for kind in ("int8", "int4")]
    results = run_ranks(size, recorded.as_rank, reference, tmp_path, tasks)
    assert all(result == results[0] for result in results)
    differences, alone, tokens = results[0]
    assert set(alone) == {case.stem for case in cases(reference)}
    assert max(alone.values()) < RANKS_TOLERANCE, alone
    assert len(differences) >= len(alone) and max(differences.values()) < LOGITS_TOLERANCE, differences
    expected = [
        result.ids for case in recorded.generation_cases(reference) for result in recorded.run_case(engine, case)
    ]
    assert tokens == expected


def test_prefix_mask_is_the_recorded_one(case: Path, model: GLM) -> None:
    """Our own mask, built from the context length alone, gives the same logits where the case is no padded batch."""
    data = load_file(case)
    if "valid_rows" in data or "rows" in data:
        return
    mask = ~data["attention_mask"][0, 0]
    context = int(mask[0].sum())  # what the first row sees is the context
    with torch.no_grad():
        logits = model(data["tokens"], data["position_ids"], context_length=torch.tensor([context]))
    assert (logits - data["logits"]).abs().max() < LOGITS_TOLERANCE


def test_rotary_tables(reference: Path) -> None:
    data = load_file(reference / "rotary_tables.safetensors")
    cos, sin = rotary_table(data["positions"], data["cos_fp16"].shape[-1], "fp16")
    assert torch.equal(cos, data["cos_fp16"])
    assert torch.equal(sin, data["sin_fp16"])


def test_hidden_states(reference: Path, model: GLM) -> None:
    """Every recorded sub-module output of the case, found by hooks on our modules of the same names."""
    expected = load_file(reference / "hidden_states_b_mask.safetensors")
    data = load_file(reference / "logits" / "b_mask.safetensors")
    found: dict[str, torch.Tensor] = {}
    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_hook(lambda _, inputs, output, name=name: found.update({name: output})))

    class Recorder(MaskedAttention):
        def __call__(self, layer, query, key, value):
            context = super().__call__(layer, query, key, value)
            found[f"layers.{layer}.mem_kv"] = torch.cat((key.flatten(2), value.flatten(2)), dim=-1)
            found[f"layers.{layer}.attention.context"] = context.flatten(2)
            return context

    with torch.no_grad():
        hidden = model.run(
            model.embed(data["tokens"]), model.rotary(data["position_ids"]), Recorder(~data["attention_mask"])
        )
        model.logits(hidden)
    for handle in handles:
        handle.remove()
    for layer in range(model.config.layers):
        found[f"layers.{layer}.output"] = found[f"layers.{layer}"]
        value, gate = found[f"layers.{layer}.mlp.dense_h_to_4h"].chunk(2, dim=-1)
        found[f"layers.{layer}.mlp.activation"] = value * torch.nn.functional.gelu(gate)
    assert set(expected) <= set(found), sorted(set(expected) - set(found))
    for name, tensor in expected.items():
        assert (found[name] - tensor).abs().max() < LOGITS_TOLERANCE, name


def greedy(model: GLM, ids: list[int], gmask: bool, mask_position: int, total: int, end_tokens: list[int]) -> list[int]:
    """The reference's own loop without a cache: append the most likely token, stop behind an end token."""
    ids = list(ids)
    context = len(ids) - 1
    while len(ids) < total:
        generated = len(ids) - context
        tail = list(range(context, len(ids))) if gmask else [mask_position] * generated
        positions = torch.tensor([list(range(context)) + tail])
        with torch.no_grad():
            logits = model(torch.tensor([ids]), positions, context_length=torch.tensor([context]))
        ids.append(int(logits[0, -1].argmax()))
        if ids[-1] in end_tokens:
            break
    return ids


def test_greedy_generation(reference: Path, model: GLM, engine: Engine) -> None:
    """By the engine with its cache, and by the reference's own loop without one."""
    robust = [case for case in needed(reference, "generation.json", "greedy") if case["robust"]]
    assert robust
    for case in robust:
        end_tokens = case["end_tokens"]
        [result] = recorded.run_case(engine, case)
        assert case["output"] in [case["input"] + ids for ids in with_end(result, end_tokens)], case["context"]
        found = greedy(model, case["input"], case["gmask"], case["mask_position"], case["max_total_length"], end_tokens)
        assert found == case["output"], case["context"]


def test_beam_search(reference: Path, engine: Engine) -> None:
    """Tokens where they are robust; scores of all beams."""
    found = needed(reference, "generation.json", "beam")
    assert any(case["robust"] for case in found)
    for case in found:
        name = f"{case['context']} {case['params']}"
        results = recorded.run_case(engine, case)
        if not case["robust"]:
            continue
        assert len(results) == len(case["beams"]), name
        for result, beam in zip(results, case["beams"], strict=True):
            assert beam in [case["input"] + ids for ids in with_end(result, case["end_tokens"])], name
        live = case["unfinished_cumulative_logprob"]
        if case["params"]["consider_end"]:
            scores, expected = [result.score for result in results], case["beam_scores_penalized"]
        else:
            scores, expected = [result.logprob for result in results], live
        assert scores == pytest.approx(expected, abs=SCORES_TOLERANCE), name


def test_batched_generation(reference: Path, model: GLM, engine: Engine) -> None:
    """Texts of different lengths in one batch of ours; theirs were padded."""
    found = [case for case in needed(reference, "generation.json", "batch_greedy") if case["robust"]]
    assert found
    for case in found:
        sampling = Sampling(top_k=1, max_new_tokens=case["max_gen_length"], seed=0)
        generated = []
        prompts = []
        for ids, positions, length, following in zip(
            case["tokens"], case["position_ids"], case["context_length"], case["target_position_ids"], strict=True
        ):
            ends = engine.tokenizer.end_ids
            if case["unidirectional"]:  # the text stands behind sop: it is no prompt of ours
                whole = causal_greedy(model, ids[:length], length + case["max_gen_length"], ends)[length:]
                generated.append(whole[:-1] if whole[-1] in ends else whole)
                continue
            step = following[1] - following[0]
            prompts.append(Prompt(tuple(ids[:length]), tuple(positions[:length]), length - 1, following[0], step))
        if prompts:
            generated = [list(results[0].ids) for results in engine.run(prompts, sampling)]
        assert generated == case["generated"], case["name"]


def causal_greedy(model: GLM, ids: list[int], total: int, end_tokens: tuple[int, ...]) -> list[int]:
    """Without a bidirectional context: only the mask token, which stands first, is seen by all."""
    ids = list(ids)
    while len(ids) < total:
        with torch.no_grad():
            logits = model(torch.tensor([ids]), torch.arange(len(ids))[None], context_length=torch.tensor([1]))
        ids.append(int(logits[0, -1].argmax()))
        if ids[-1] in end_tokens:
            break
    return ids


def test_fill_blanks(reference: Path, engine: Engine) -> None:
    """The loop of the original generate.py, rebuilt here on our engine: it fills one kind of mask, carries the first beam on,
    and the other beams' answers mix the histories of several blanks."""
    runs = needed(reference, "fill_blanks.json")
    assert any(run["robust"] for run in runs)
    for run in runs:
        if run["robust"]:
            check_fill_blanks(engine, run)


def check_fill_blanks(engine: Engine, run: dict) -> None:
    name = f"{run['name']} {run['strategy']}"
    tokenizer = engine.tokenizer
    words = [word if word.endswith("MASK]") else int(word) for word in run["raw_text"].split()]
    kind = next((kind for kind in ("[MASK]", "[sMASK]") if kind in words), "[gMASK]")
    if not any(isinstance(word, str) for word in words):
        words.append(kind)
    sequence = [word if isinstance(word, int) else tokenizer.special[word] for word in words]
    sequence = list(blanks.close(sequence, tokenizer))
    outputs, filled = [sequence], []
    for step in run["steps"]:
        sequence = outputs[0]
        mask = sequence.index(tokenizer.special[kind])
        prompt = blanks.prompt(sequence, mask, tokenizer)
        assert list(prompt.ids) == step["input_seq"] and mask == step["mask_position"], name
        budget = run["out_seq_length"] - len(prompt.ids)
        assert budget == step["max_gen_length"], name
        sampling = recorded.recorded_sampling(run["strategy"], run["params"], budget)
        results = engine.run([prompt], sampling)[0]
        assert len(results) == len(step["outputs"]), name
        for result, output in zip(results, step["outputs"], strict=True):
            # A greedy run's row is padded with -1 behind its end.
            kept = output[: output.index(-1)] if -1 in output else output
            assert kept in [step["input_seq"] + ids for ids in with_end(result, tokenizer.end_ids)], name
        if "beam_scores_penalized" in step:
            scores = [result.score for result in results]
            assert scores == pytest.approx(step["beam_scores_penalized"], abs=SCORES_TOLERANCE), name
        filled.append([list(result.ids) for result in results])
        outputs = [[*sequence[:mask], *result.ids, *sequence[mask + 1 :]] for result in results]
    assert tokenizer.special[kind] not in outputs[0], name
    answers = [output[:-1] if output[-1] == tokenizer.eos else output for output in outputs]
    assert answers == run["answers"], name
    assert [list(parts) for parts in zip(*filled, strict=True)] == run["blanks"], name


def test_evaluation(reference: Path, engine: Engine, plain: Path, tmp_path: Path) -> None:
    """Every recorded run of the original evaluation: rows, batches, log-probabilities, predictions, metrics."""
    for run in needed(reference, "evaluation/expected.json"):
        check_run(reference / "evaluation", run, engine, plain, tmp_path / run["name"])


def test_number_of_parameters(reference: Path, model: GLM) -> None:
    count = recorded.values(reference)["num_parameters"]
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert load_config(reference).parameters() == count
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in GLM(PRESETS["glm-130b"]).parameters()) == 128_697_794_560
    assert PRESETS["glm-130b"].parameters() == 128_697_794_560


@pytest.mark.parametrize("variant", ["alpha1", "alpha0.1_input", "alpha0.1_input_and_logits"])
def test_gradients(reference: Path, model: GLM, variant: str) -> None:
    """The trainer's loss and its gradients: of every parameter the norm and the sum, of some all numbers."""
    numbers = needed(reference, "gradients.json", "variants")[variant]
    data = load_file(reference / "gradients.safetensors")
    visible = ~data["attention_mask"][:, 0]
    targets = data["targets"].masked_fill(data["loss_mask"] == 0, -1)
    real = visible.diagonal(dim1=1, dim2=2)
    context = visible[:, 0] & real
    batch = Batch(*(part.numpy() for part in (data["tokens"], data["position_ids"], targets, real.long(), context)))
    model.requires_grad_(True).zero_grad()
    if variant.endswith("logits"):  # shrinks the tied matrix of the logits too: an alternative reading of the paper
        loss, count = loss_with_shrunk_logits(model, batch)
    else:
        loss, count = batch_loss(model, batch, 1.0 if variant == "alpha1" else 0.1)
    (loss / count).backward()
    assert abs(loss.item() / count - numbers["loss"]) < 1e-4
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        norm = numbers["grad_norms"][f"transformer.{name}"]
        assert abs(float(parameter.grad.norm()) - norm) < 1e-4 * max(1.0, norm), name
    rows = model.word_embeddings.weight.grad[data["word_embedding_rows"]]
    assert (rows - data[f"{variant}/word_embeddings.weight.grad_rows"]).abs().max() < 1e-4
    gradients = dict(model.named_parameters())
    for name, expected in data.items():
        if name.startswith(f"{variant}/transformer."):
            found = gradients[name.removeprefix(f"{variant}/transformer.")].grad
            assert (found - expected).abs().max() < 1e-4, name
    model.requires_grad_(False)


def loss_with_shrunk_logits(model: GLM, batch: Batch) -> tuple[torch.Tensor, int]:
    """As `batch_loss` with a share of 0.1, on the output matrix too."""
    weight = model.word_embeddings.weight
    model.logits = lambda hidden: torch.nn.functional.linear(model.final_layernorm(hidden), shrunk(weight, 0.1))
    try:
        return batch_loss(model, batch, 0.1)
    finally:
        del model.logits
