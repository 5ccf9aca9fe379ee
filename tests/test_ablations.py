"""The ablations: the recipe is what engine.glm computes, each variant differs as it says, the verdicts follow their rules."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.errors import GLMError
from engine.glm.attention import MaskedAttention, packed_visible
from engine.glm.model import GLM, initialise
from engine.training import ablation_rules as rules
from engine.training.ablation_report import write
from engine.training.ablation_run import (
    CURVES,
    Data,
    Run,
    Settings,
    invented_documents,
    rate_share,
    read_results,
    train,
)
from engine.training.ablations import (
    VARIANTS,
    HalfSoftmaxAttention,
    Inputs,
    half_softmax_bound,
    look_inside,
    make_model,
    scores_of,
    variant_loss,
)
from engine.training.data import Batch, Mixture, pack
from engine.training.loss import batch_loss
from engine.training.objective import Objective
from tests.command_line import call, run
from tests.test_training import write_data

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = Settings(steps=12, rows=2, length=32, hidden=16, heads=2, vocabulary=512, data="invented")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return Data(None, tmp_path_factory.mktemp("invented"), 512)


@pytest.fixture(scope="module")
def batch(data: Data) -> Batch:
    mixture = Mixture(data.sources, None, data.tokenizer, Objective(), 1)
    return pack(mixture.samples("all", [1.0], 32), 3, 32)


def gradients(model: GLM) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


# The variants


@pytest.mark.parametrize(("name", "share"), [("no-shrink", 1.0), ("glm-130b", 0.1)])
def test_deepnorm_in_fp32_is_the_model_itself(batch: Batch, name: str, share: float) -> None:
    """The logits to the last bit; the trainer's loss and gradients."""
    config = SETTINGS.config(3)
    expected = GLM(config)
    initialise(expected, torch.Generator().manual_seed(5))
    total, count = batch_loss(expected, batch, share)
    (total / count).backward()
    model = make_model(VARIANTS[name], config, 5)
    loss, _ = variant_loss(model, Inputs.of(batch), VARIANTS[name])
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float((total / count).detach()), rel=1e-6)
    for name, gradient in gradients(expected).items():
        assert torch.allclose(gradients(model)[name], gradient, rtol=1e-4, atol=1e-7), name
    inputs = Inputs.of(batch)
    hidden = model.run(model.embed(inputs.ids), model.rotary(inputs.positions), MaskedAttention(inputs.visible))
    assert torch.equal(model.logits(hidden), expected(inputs.ids, inputs.positions, visible=inputs.visible))


def test_shrinking_changes_the_lookups_gradient_alone(batch: Batch) -> None:
    found = {}
    for name in ("no-shrink", "glm-130b"):
        model = make_model(VARIANTS[name], SETTINGS.config(2), 1)
        loss, looked_up = variant_loss(model, Inputs.of(batch), VARIANTS[name])
        looked_up.retain_grad()
        loss.backward()
        found[name] = float(loss.detach()), looked_up.grad, gradients(model)
    whole, shrunk = found["no-shrink"], found["glm-130b"]
    assert whole[0] == pytest.approx(shrunk[0], rel=1e-6)
    assert torch.allclose(shrunk[1], 0.1 * whole[1], rtol=1e-4, atol=1e-8)
    for name, gradient in whole[2].items():
        same = torch.allclose(shrunk[2][name], gradient, rtol=1e-4, atol=1e-7)
        assert same == (name != "word_embeddings.weight"), name


@pytest.mark.parametrize("name", ["pre-ln", "post-ln"])
def test_norms_are_what_they_say(batch: Batch, name: str) -> None:
    """Against the formulas, written out; weights are the recipe's numbers but for their gains, and as many."""
    config, inputs = SETTINGS.config(2), Inputs.of(batch)
    model, recipe = make_model(VARIANTS[name], config, 1), make_model(VARIANTS["glm-130b"], config, 1)
    assert sum(parameter.numel() for parameter in model.parameters()) == config.parameters()
    assert [(name, parameter.shape) for name, parameter in model.named_parameters()] == [
        (name, parameter.shape) for name, parameter in recipe.named_parameters()
    ]
    rotary, attention = model.rotary(inputs.positions), MaskedAttention(inputs.visible)
    hidden = model.embed(inputs.ids)
    for layer in model.layers:
        if name == "pre-ln":
            hidden = hidden + layer.attention(layer.input_layernorm(hidden), rotary, attention)
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        else:  # sums are normalised: LN(x), LN(LN(x) + attention), ...
            hidden = layer.input_layernorm(hidden)
            hidden = layer.post_attention_layernorm(hidden + layer.attention(hidden, rotary, attention))
            hidden = hidden + layer.mlp(hidden)
    assert torch.equal(model.run(model.embed(inputs.ids), rotary, attention), hidden)
    gain = math.sqrt(2 * config.layers)
    ours, theirs = model.layers[1], recipe.layers[1]
    fused = torch.ones(config.heads, 3, config.head_dim, 1)
    fused[:, 2] = gain
    expected = theirs.attention.query_key_value.weight * fused.view(-1, 1)
    assert torch.allclose(ours.attention.query_key_value.weight, expected)
    assert torch.allclose(ours.mlp.dense_h_to_4h.weight, theirs.mlp.dense_h_to_4h.weight * gain)
    into_residual = gain if name == "post-ln" else 1.0
    assert torch.allclose(ours.mlp.dense_4h_to_h.weight, theirs.mlp.dense_4h_to_h.weight * into_residual)
    assert torch.allclose(ours.attention.dense.weight, theirs.attention.dense.weight * into_residual)


@pytest.mark.parametrize("size", [0.3, 1.0, 3.0, 6.0])
def test_a_softmax_in_fp16_is_within_its_bound(size: float) -> None:
    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(2, 48, 4, 16, generator=generator, dtype=torch.float64) for _ in range(3))
    query, key = query * size, key * size
    visible = packed_visible(torch.ones(2, 48, dtype=torch.int64), torch.zeros(2, 48, dtype=torch.bool))
    exact = MaskedAttention(visible)(0, query, key, value)
    # Scores in fp64, so that the only roundings are the softmax's.
    found = HalfSoftmaxAttention(visible)(0, query, key, value)
    error = float((found - exact).abs().max() / value.abs().max())
    bound = half_softmax_bound(float(scores_of(query, key).abs().max()), 48)
    assert 0 < error <= bound < 1.0
    assert error > bound / 1000  # the bound is not an idle one


def test_the_bound_ends_where_fp16_does() -> None:
    assert half_softmax_bound(1.0, 64) < half_softmax_bound(10.0, 64) < half_softmax_bound(100.0, 64) < math.inf
    assert half_softmax_bound(500.0, 64) == math.inf
    visible = torch.ones(1, 1, 2, 2, dtype=torch.bool)
    query = torch.full((1, 2, 1, 4), 400.0)
    assert HalfSoftmaxAttention(visible)(0, query, query, query).isnan().all()  # scores of 320,000
    assert not MaskedAttention(visible)(0, query, query, query).isnan().any()


def test_an_overflow_leaves_updates_out_until_the_scale_fits(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.training import ablation_run

    found = train(Run("fp16-softmax", 1, 1e-3, 1), VARIANTS["fp16-softmax"], SETTINGS, data)
    assert found["skipped"] == 0 and not found["diverged"]
    recipe = train(Run("glm-130b", 1, 1e-3, 1), VARIANTS["glm-130b"], SETTINGS, data)
    for name in CURVES:  # the scale is divided out again
        assert found["curves"][name] == pytest.approx(recipe["curves"][name], rel=0.01), name
    assert found["curves"] != recipe["curves"]
    monkeypatch.setattr(ablation_run, "_FIRST_SCALE", 2.0**30)
    scaled = train(Run("fp16-softmax", 1, 1e-3, 1), VARIANTS["fp16-softmax"], SETTINGS, data)
    assert 0 < scaled["skipped"] < SETTINGS.steps and not scaled["diverged"]
    assert None in scaled["curves"]["norm"] and scaled["curves"]["norm"][-1] is not None


def test_look_inside_finds_the_scores_that_rows_see(batch: Batch) -> None:
    model, inputs = make_model(VARIANTS["glm-130b"], SETTINGS.config(2), 1), Inputs.of(batch)
    found = look_inside(model, inputs)
    assert len(found["hidden"]) == 2 and found["largest_score"] > 0
    alone = replace(inputs, visible=torch.eye(32, dtype=torch.bool).expand(3, 1, 32, 32))
    assert look_inside(model, alone)["largest_score"] <= found["largest_score"]


# Training


def test_curves_hold_the_norms_of_the_gradients(data: Data) -> None:
    found = train(Run("no-shrink", 2, 1e-3, 1), VARIANTS["no-shrink"], SETTINGS, data)
    assert set(found["curves"]) == set(CURVES) and all(len(curve) == 12 for curve in found["curves"].values())
    model = make_model(VARIANTS["no-shrink"], SETTINGS.config(2), 1)
    inputs = next(data.batches(1, 2, 32))
    loss, _ = variant_loss(model, inputs, VARIANTS["no-shrink"])
    loss.backward()
    assert found["curves"]["loss"][0] == pytest.approx(float(loss.detach()), rel=1e-4)
    parts = {name: float(gradient.norm()) for name, gradient in gradients(model).items()}
    layers = [
        math.hypot(*(norm for name, norm in parts.items() if name.startswith(f"layers.{layer}."))) for layer in (0, 1)
    ]
    first = {name: curve[0] for name, curve in found["curves"].items()}
    assert first["norm"] == pytest.approx(math.hypot(*parts.values()), rel=1e-3)
    assert first["embedding"] == pytest.approx(parts["word_embeddings.weight"], rel=1e-3)
    assert first["layer_median"] == pytest.approx(sum(layers) / 2, rel=1e-3)
    assert first["layer_largest"] == pytest.approx(max(layers), rel=1e-3)
    losses = found["curves"]["loss"]
    assert losses[-1] < losses[0] and found["parameters"] == SETTINGS.config(2).parameters()


def test_all_variants_see_the_same_data_and_repeat_themselves(data: Data) -> None:
    first, again, other = (next(data.batches(seed, 2, 32)) for seed in (1, 1, 2))
    assert torch.equal(first.ids, again.ids) and not torch.equal(first.ids, other.ids)
    assert invented_documents(20) == invented_documents(20) and len(set(invented_documents(20))) == 20
    runs = [train(Run("pre-ln", 1, 1e-3, 3), VARIANTS["pre-ln"], SETTINGS, data)["curves"] for _ in range(2)]
    assert runs[0] == runs[1]


def test_the_rate_rises_stays_and_falls() -> None:
    shares = [rate_share(step, 100) for step in range(100)]
    assert shares[0] == 0.1 and shares[9:70] == [1.0] * 61 and shares[-1] == pytest.approx(0.13)


# Rules


def made(variant: str, losses: list[float | None], seed: int = 1, **other) -> dict:
    curves = {name: [1.0] * len(losses) for name in CURVES} | {"loss": losses}
    row = {"variant": variant, "depth": 2, "rate": 1e-3, "seed": seed, "curves": curves, "diverged": False}
    row |= {"skipped": 0, "largest_score": 5.0, "hidden": [1.0, 1.0], "parameters": 1, "seconds": 1.0}
    return row | {"settings": {"steps": 1, "rows": 1, "length": 1, "hidden": 1, "heads": 1, "data": "x"}} | other


def test_spikes_are_counted_by_watch() -> None:
    level = [2.0] * 30
    assert rules.spikes(level) == rules.spikes([10.0 / (step + 1) for step in range(60)]) == 0
    assert rules.spikes([*level, 3.0, 3.0, *level]) == 0  # two in a row are none
    assert rules.spikes([*level, 3.0, 3.0, 3.0, *level]) == 1
    assert rules.spikes([*level, *[3.0] * 40]) == 1  # a loss that stays high counts once
    assert rules.spikes([*level, 3.0, 3.0, 3.0, *level, 3.0, 3.0, 3.0, *level]) == 2
    assert rules.spikes([None, *level, None, 3.0, None]) == 0


def test_stuck_is_a_vanished_gradient_of_the_layers() -> None:
    run = made("post-ln", [2.0] * 20)
    assert not rules.stuck(run)
    run["curves"]["layer_median"] = [1.0] * 18 + [0.009] * 2
    assert rules.stuck(run) and not rules.stuck(run | {"diverged": True})


def both_of(stability: str, loss: str) -> str:
    return f"stability: {stability}; final loss: {loss}"


def both(better: list[float], worse: list[float]) -> list[dict]:
    rows = [made("glm-130b", [loss] * 20, seed) for seed, loss in enumerate(better)]
    return rows + [made("pre-ln", [loss] * 20, seed) for seed, loss in enumerate(worse)]


@pytest.mark.parametrize(
    ("better", "worse", "verdict"),
    [
        ([2.0, 2.01], [2.5, 2.51], rules.SHOWS),
        ([2.5, 2.51], [2.0, 2.01], rules.AGAINST),
        ([2.0, 2.4], [2.5, 2.9], rules.NOT),  # t = 1.77, and 4.3 is asked for
        ([2.0, 2.0], [2.01, 2.01], rules.NOT),  # sure, but too small
        ([2.0], [3.0], rules.OPEN),
    ],
)
def test_losses_differ_against_their_spread(better: list[float], worse: list[float], verdict: str) -> None:
    found = rules.compare("a claim", both(better, worse), "glm-130b", "pre-ln")
    assert found is not None and found.verdict == both_of(rules.UNTESTED, verdict)
    assert rules.compare("a claim", both(better, worse), "glm-130b", "post-ln") is None


def test_t_is_the_formula() -> None:
    difference, needed = rules.loss_difference([1.0, 2.0, 3.0], [2.0, 3.0, 4.0])
    assert difference == 1.0 and needed == pytest.approx(2.776 * math.sqrt(2 / 3))
    assert rules.t_limit(7) == rules.t_limit(6) == 2.447 and rules.t_limit(1000) == 2.042


def test_spikes_and_divergence_decide_too_and_cells_may_disagree() -> None:
    spiked = [2.0] * 30 + [3.0] * 3 + [2.0] * 30
    rows = [made("glm-130b", [2.0] * 63), made("pre-ln", spiked + spiked[10:])]
    assert rules.compare("a claim", rows, "glm-130b", "pre-ln").verdict == both_of(rules.SHOWS, rules.OPEN)
    once = [rows[0], made("pre-ln", spiked)]  # one spike is too few to tell
    assert rules.compare("a claim", once, "glm-130b", "pre-ln").verdict == both_of(rules.NOT, rules.OPEN)
    lost = [made("pre-ln", [2.0, *[None] * 20], seed, diverged=True, depth=4) for seed in (1, 2)]
    fine = [made("post-ln", [2.0] * 30, seed, depth=4) for seed in (1, 2)]
    found = rules.compare("a claim", lost + fine, "pre-ln", "post-ln")
    assert found.verdict == both_of(rules.AGAINST, rules.OPEN) and rules.final_loss(lost[0]) is None
    mixed = rules.compare(
        "a claim", rows + [row | {"variant": "glm-130b"} for row in lost] + [row | {"variant": "pre-ln"} for row in fine],
        "glm-130b", "pre-ln",
    )  # fmt: skip
    assert mixed.verdict == both_of(rules.MIXED, rules.OPEN)


def test_the_embeddings_gradient_is_judged_by_its_ratio() -> None:
    def verdict(embedding: list[float]) -> list[str]:
        row = made("no-shrink", [2.0] * len(embedding))
        row["curves"]["embedding"] = embedding
        return [each.verdict for each in rules.verdicts([row])[:2]]

    assert verdict([200.0] * 40) == [rules.SHOWS, rules.NOT]
    assert verdict([50.0] * 40)[0] == rules.PARTLY and verdict([5.0] * 40)[0] == rules.NOT


def test_a_report_of_runs_that_all_diverged(tmp_path: Path) -> None:
    nothing = {name: [None] * 20 for name in CURVES}
    rows = [
        made(name, [None] * 20, curves=nothing, diverged=True, hidden=[None, None], largest_score=None)
        for name in VARIANTS
    ]
    assert [path.name for path in write(rows, tmp_path)] == ["report.md", "report.html", "report.png"]
    text = (tmp_path / "report.md").read_text()
    assert "| none |" in text and "Attention scores grow beyond the range of fp16 (appendix B). | shows" in text


# The command


SMALL = ("--steps", 12, "--rows", 2, "--length", 32, "--hidden", 16, "--heads", 2, "--depths", 2, "--rates", "1e-3")


def test_the_command_and_its_resumption(tmp_path: Path) -> None:
    done = run("engine", "ablate", "--out", tmp_path, *SMALL, "--seeds", 1, 2)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(": loss ") == 10 and len(read_results(tmp_path)) == 10
    assert [Path(line).name for line in done.stdout.split()] == ["report.md", "report.html", "report.png"]
    text, page = ((tmp_path / name).read_text() for name in ("report.md", "report.html"))
    for variant in VARIANTS:
        assert f"| 2 | 0.001 | {variant} | 2 |" in text and f"<td>{variant}</td>" in page
    assert "data:image/png;base64," in page and (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    assert all(rule in text for rule in rules.RULES) and "nan" not in text
    # A killed run: the last line is cut off. One seed more is trained, too, and the others stay as they are.
    results = tmp_path / "results.jsonl"
    before = results.read_text().splitlines()
    results.write_text("\n".join(before)[:-40])
    done = run("engine", "ablate", "--out", tmp_path, *SMALL, "--seeds", 1, 2, 3, "--variants", "fp16-softmax")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(": loss ") == 2
    after = results.read_text().splitlines()
    assert after[:9] == before[:9] and len(after) == 11
    again, was = json.loads(after[9]), json.loads(before[9])
    assert again | {"seconds": 0} == was | {"seconds": 0}
    done = call("engine", "ablate", "--out", tmp_path, *SMALL[2:], "--steps", 13)
    assert (
        done.returncode == 2 and "runs of other settings" in done.stderr and results.read_text().splitlines() == after
    )


def test_data_of_a_folder(tmp_path: Path) -> None:
    folder = write_data(tmp_path / "data")
    data = Data(folder, tmp_path, 312)
    assert [source.name for source in data.sources] == ["instruct/facts", "pretrain/facts"]
    assert next(data.batches(1, 2, 64)).ids.shape == (2, 64)
    with pytest.raises(GLMError, match="No vocabulary of 5000 .* Please set it to a value <= 3"):
        (tmp_path / "other").mkdir()
        Data(folder, tmp_path / "other", 5000)


def test_results_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text('{"variant": "pre-ln"}\n')
    with pytest.raises(GLMError, match="line 1 is not a result"):
        read_results(tmp_path, SETTINGS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--out"),
        (("--steps", "9"), "'9' is not a whole number from 10 on"),
        (("--rates", "0"), "'0' is not a learning rate"),
        (("--rates", "fast"), "'fast' is not a learning rate"),
        (("--depths", "-1"), "--depths"),
        (("--heads", "3"), "even whole number"),
        (("--data", "nowhere"), "There is no folder nowhere"),
        (("--variants", "sandwich-ln"), "'sandwich-ln' is not among them"),
    ],
)
def test_wrong_arguments_are_told_in_a_line(tmp_path: Path, arguments: tuple, words: str) -> None:
    out = () if not arguments else ("--out", tmp_path / "out")
    ended = call("engine", "ablate", *out, *arguments)
    assert ended.returncode == 2 and words in ended.stderr and ended.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
