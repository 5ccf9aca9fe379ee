"""The trainer over processes and memory: the same losses however a step is spread; what is saved survives anything."""

from __future__ import annotations

import json
import math
import resource
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from engine.errors import GLMError
from engine.glm import checkpoint
from engine.glm.config import weights_hash
from engine.training.recipe import Recipe
from engine.training.state import States
from engine.training.watch import Watch
from tests.server import eventually
from tests.test_training import ROOT, write_data

STEPS = 8
RECIPE = """
model: glm-tiny
seed: 3
save_every: 4
optimizer: {kind: adamw, learning_rate: 0.002, embedding_learning_rate: 0.002, warmup_steps: 3, decay_share: 0.5}
stages:
  - {name: all, steps: 8, rows: 4, length: 64, weights: {instruct/facts: 3, pretrain/facts: 1}}
"""
# Losses of the first 20 steps of a tiny model, as this code gave them first: a change of the objective, the data's order,
# the initialisation or the optimiser shows.
GOLDEN = Path(__file__).resolve().parent / "data" / "golden_losses.json"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


class Runs:
    """Trains recipes, each once, in processes of their own; by name."""

    def __init__(self, folder: Path, data: Path, vocabulary: Path) -> None:
        self._folder, self._data, self._vocabulary = folder, data, vocabulary

    def start(
        self, name: str, recipe: str, processes: int = 1, limit: int | None = None, *flags: str
    ) -> subprocess.Popen[str]:
        """limit: bytes that a file may have, as if the disk were full then."""
        run = self._folder / name
        run.mkdir(exist_ok=True)
        (run / "tokenizer.model").write_bytes(self._vocabulary.read_bytes())
        (run / "recipe.yaml").write_text(recipe)
        command = [sys.executable, "-m"]
        if processes > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            command += ["torch.distributed.run", f"--nproc-per-node={processes}", f"--master-port={port}", "-m"]
        command += ["engine", "train", str(run / "recipe.yaml"), "--data", str(self._data), "--out", str(run)]

        def limited() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        return subprocess.Popen(
            [*command, "--threads", "1", *flags],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=limited if limit else None,
        )

    def killed(self, name: str, recipe: str, processes: int) -> Path:
        """A run that was killed behind step 4, its first saved state."""
        process = self.start(name, recipe, processes)
        run = self._folder / name
        eventually((run / "state" / "latest").exists, "the state of step 4")
        process.kill()
        process.communicate()
        eventually(lambda: not still_there(run), "its processes are gone")
        for later in ("state/step-00000008", "model"):  # it may have come so far
            shutil.rmtree(run / later, ignore_errors=True)
        (run / "state" / "latest").write_text("step-00000004\n")
        return run

    def whole(self, name: str, recipe: str, processes: int = 1) -> Path:
        run = self._folder / name
        if not (run / "model" / "config.json").exists():
            process = self.start(name, recipe, processes)
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors
        return run


@pytest.fixture(scope="module")
def runs(data: Path, vocabulary_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"), data, vocabulary_file)


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in lines(run) if "loss" in line]


def scaled(**scale) -> str:
    return RECIPE + "scale: " + json.dumps(scale) + "\n"


@pytest.fixture(scope="module")
def plain(runs: Runs) -> Path:
    return runs.whole("plain", scaled(streams=2))


@pytest.mark.parametrize(
    ("processes", "scale"),
    [
        (1, {"zero": 2, "micro_rows": 1, "checkpointing": True}),
        (1, {"zero": 3, "offload": True}),
        (2, {"zero": 0, "micro_rows": 1}),
        pytest.param(2, {"zero": 1}, marks=pytest.mark.heavy),
        (2, {"zero": 3, "checkpointing": True}),
        (2, {"zero": 0, "tensor_parallel": 2, "checkpointing": True}),
        pytest.param(4, {"zero": 1, "tensor_parallel": 2}, marks=pytest.mark.heavy),
    ],
    ids=str,
)
def test_the_same_run_however_it_is_spread(plain: Path, runs: Runs, processes: int, scale: dict) -> None:
    run = runs.whole(f"{processes} {scale}".replace(" ", ""), scaled(streams=2, **scale), processes)
    assert losses(run) == pytest.approx(losses(plain), abs=3e-4)
    assert [line["tokens"] for line in lines(run)] == [line["tokens"] for line in lines(plain)]
    norms = [line["gradient_norm"] for line in lines(run)]
    assert norms == pytest.approx([line["gradient_norm"] for line in lines(plain)], rel=1e-3)
    expected = dict(checkpoint.load(plain / "model").named_parameters())
    for name, parameter in checkpoint.load(run / "model").named_parameters():
        assert (parameter - expected[name]).abs().max() < 5e-3, name


def test_half_precision_learns_as_well(plain: Path, runs: Runs) -> None:
    found = losses(runs.whole("bf16", scaled(streams=2, zero=1, precision="bf16")))
    assert found == pytest.approx(losses(plain), rel=0.02) and found != losses(plain)


@pytest.mark.parametrize("zero", [1, pytest.param(3, marks=pytest.mark.heavy)])
def test_fp16_with_its_loss_scale(plain: Path, runs: Runs, zero: int) -> None:
    from deepspeed.accelerator import get_accelerator

    if not get_accelerator().is_fp16_supported():
        pytest.skip("DeepSpeed says that this processor has no fp16")
    run = runs.whole(f"fp16-{zero}", scaled(streams=2, zero=zero, precision="fp16"))
    assert all(line["loss_scale"] >= 1 for line in lines(run))
    assert losses(run)[-1] == pytest.approx(losses(plain)[-1], rel=0.05)


@pytest.mark.parametrize(
    ("processes", "scale"),
    [
        (1, {"zero": 1}),
        pytest.param(1, {"zero": 3}, marks=pytest.mark.heavy),
        pytest.param(2, {"zero": 0, "tensor_parallel": 2}, marks=pytest.mark.heavy),
        pytest.param(2, {"zero": 1, "tensor_parallel": 2}, marks=pytest.mark.heavy),
    ],
    ids=str,
)
def test_a_killed_partitioned_run_resumes_where_it_was_saved(runs: Runs, processes: int, scale: dict) -> None:
    recipe = scaled(**scale)
    name = f"killed{scale}".replace(" ", "")
    whole = runs.whole(f"whole{scale}".replace(" ", ""), recipe, processes)
    run = runs.killed(name, recipe, processes)
    assert losses(runs.whole(name, recipe, processes)) == losses(whole)
    found, expected = (checkpoint.load(each / "model").state_dict() for each in (run, whole))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


@pytest.mark.parametrize(
    ("zero", "before", "after"),
    [
        pytest.param(0, 2, 1, marks=pytest.mark.heavy),
        (1, 1, 2),
        pytest.param(2, 2, 1, marks=pytest.mark.heavy),
        pytest.param(3, 2, 1, marks=pytest.mark.heavy),
    ],
)
def test_a_state_loads_in_another_number_of_processes(
    plain: Path, runs: Runs, zero: int, before: int, after: int
) -> None:
    """The second half of a run, with as many processes as it did not begin with."""
    recipe = scaled(streams=2, zero=zero)
    name = f"moved{zero}"
    run = runs.killed(name, recipe.replace("save_every: 4", "save_every: 4\nsnapshot_every: 4"), before)
    assert losses(runs.whole(name, recipe, after)) == pytest.approx(losses(plain), abs=3e-4)
    assert (run / "state" / "step-00000004" / "universal").exists() == (zero > 0)
    checkpoint.load(run / "checkpoints" / "step-00000004")


@pytest.mark.parametrize(
    ("before", "after", "processes"),
    [
        (2, 1, 1),
        pytest.param(1, 2, 2, marks=pytest.mark.heavy),
        pytest.param(2, 4, 4, marks=pytest.mark.heavy),
    ],
)
def test_a_state_loads_over_another_number_of_ranks(
    plain: Path, runs: Runs, before: int, after: int, processes: int
) -> None:
    """Weights and the optimiser's states are joined and cut anew. 2 and 4: two copies' worth of processes in one copy."""
    name = f"ranks{before}{after}"
    run = runs.killed(name, scaled(streams=2, tensor_parallel=before), before)
    assert losses(runs.whole(name, scaled(streams=2, tensor_parallel=after), processes)) == pytest.approx(
        losses(plain), abs=3e-4
    )
    expected = dict(checkpoint.load(plain / "model").named_parameters())
    for name, parameter in checkpoint.load(run / "model").named_parameters():
        assert (parameter - expected[name]).abs().max() < 5e-3, name


def still_there(run: Path) -> list[psutil.Process]:
    return [each for each in psutil.process_iter(["cmdline"]) if str(run) in (each.info["cmdline"] or [])]


def test_an_adapter_is_trained_over_a_frozen_base(plain: Path, runs: Runs) -> None:
    """The base doesn't change, a killed run goes on, and what comes out is served over the base or merged into it."""
    recipe = (
        RECIPE.replace("learning_rate: 0.002", "learning_rate: 0.02")
        + f"initial: {plain / 'model'}\nlora: {{rank: 4}}\n"
    )
    before = weights_hash(plain / "model")
    run = runs.whole("adapter", recipe)
    assert weights_hash(plain / "model") == before
    assert losses(run)[-1] < losses(run)[0] - 0.1
    assert {path.name for path in (run / "model").iterdir()} == {
        "adapter.json", "adapter.safetensors", "config.json", "tokenizer.model"
    }  # fmt: skip
    process = runs.start("adapter killed", recipe)
    killed = plain.parent / "adapter killed"
    eventually((killed / "state" / "latest").exists, "the state of step 4")
    process.kill()
    process.communicate()
    assert losses(runs.whole("adapter killed", recipe)) == losses(run)
    base, adapted = checkpoint.load(plain / "model"), checkpoint.load(run / "model")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        first, second = (model(ids, ids, torch.tensor([10])) for model in (base, adapted))
    assert not torch.equal(first, second)


def test_instructions_among_documents_tokenised_beforehand(runs: Runs, data: Path) -> None:
    """A share of instruction rows; one is too long and is named; the same run on memory-mapped tokens."""
    long = {"messages": [{"role": "user", "content": "word " * 200}, {"role": "assistant", "content": "Yes."}]}
    (data / "instruct" / "long.jsonl").write_text(
        json.dumps(long) + "\n" + json.dumps({"text": "a [MASK]", "answers": ["b"]})
    )
    weights = "weights: {instruct/facts: 3, pretrain/facts: 1}"
    assert weights in RECIPE
    recipe = RECIPE.replace(
        weights, "weights: {pretrain/facts: 1}, multitask: {share: 0.3, sources: [instruct/facts, instruct/long]}"
    )
    process = runs.start("multitask", recipe, 1, None, "--prepare")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert not (Path(runs._folder) / "multitask" / "state").exists()
    run = runs.whole("multitask", recipe)
    [entry] = json.loads((run / "left_out.json").read_text())
    assert (entry["source"], entry["reason"]) == ("instruct/long", "too long") and entry["rows"] >= 1
    assert "long.jsonl" in entry["first"][0]
    other = run.parent / "multitask tokens"
    command = [sys.executable, "-m", "engine", "tokenize", str(run / "recipe.yaml"), "--data", str(data)]
    command += ["--out", str(other / "tokens"), "--tokenizer", str(run), "--workers", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (other / "tokens" / "pretrain" / "facts.tokens" / "tokens.json").exists()
    assert losses(runs.whole("multitask tokens", recipe)) == losses(run)


def test_a_full_disk_ends_a_run_that_goes_on_later(plain: Path, runs: Runs) -> None:
    """The metrics fit, a state doesn't."""
    recipe = scaled(streams=2)
    process = runs.start("full", recipe, limit=500_000)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1 and "can't be saved" in errors and "Traceback" not in errors
    run = plain.parent / "full"
    assert len(losses(run)) == 4 and not list((run / "state").iterdir())
    assert losses(runs.whole("full", recipe)) == losses(plain)


def test_a_run_that_can_not_come_to_rest_says_so(runs: Runs) -> None:
    """Each return is written down, goes back to the saved weights, and takes other data."""
    recipe = RECIPE.replace("save_every: 4", "save_every: 1").replace("steps: 8", "steps: 200")
    recipe = recipe.replace("learning_rate: 0.002", "learning_rate: 3.0").replace("warmup_steps: 3", "warmup_steps: 30")
    recipe += "guard: {factor: 1.2, window: 6, patience: 2, rewinds: 2}\n"
    process = runs.start("wild", recipe)
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 1 and not output
    assert "after 2 returns to a saved state" in errors and "Traceback" not in errors
    run = Path(runs._folder) / "wild"
    events = [line for line in lines(run) if line.get("event") == "rewind"]
    assert len(events) == 2 and all(line["to"] <= line["step"] for line in events)


@pytest.mark.heavy
def test_muon_gives_the_same_in_several_processes(runs: Runs) -> None:
    """Each orthogonalises some of the matrices; states saved by one process go on in two, with every momentum."""
    recipe = scaled(streams=2).replace("kind: adamw", "kind: muon")
    alone, two = runs.whole("muon-1", recipe), runs.whole("muon-2", recipe, 2)
    assert losses(two) == pytest.approx(losses(alone), abs=3e-4)
    changed = runs.killed("muon-changed", recipe, 2)
    process = runs.start("muon-changed", recipe, 1)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert losses(changed) == pytest.approx(losses(alone), abs=3e-4)
    expected = dict(checkpoint.load(alone / "model").named_parameters())
    for name, parameter in checkpoint.load(changed / "model").named_parameters():
        assert (parameter - expected[name]).abs().max() < 5e-3, name


def test_a_state_belongs_to_its_kind_of_run(plain: Path, runs: Runs) -> None:
    process = runs.start("plain", scaled(streams=2, zero=1))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2 and "another ZeRO stage" in errors


def test_golden_losses(runs: Runs) -> None:
    recipe = RECIPE.replace("steps: 8", "steps: 20").replace("kind: adamw", "kind: muon")
    found = losses(runs.whole("golden", recipe))
    expected = json.loads(GOLDEN.read_text())
    assert found == pytest.approx(expected, abs=2e-3)


# The parts


def test_watch_tells_spikes_from_noise() -> None:
    watch = Watch(factor=1.5, window=10, patience=3)
    assert [watch.after(2.0 + 0.1 * (step % 3), 1.0) for step in range(20)] == ["good"] * 20
    assert [watch.after(loss, 1.0) for loss in (4.0, 4.0, 2.0)] == ["good"] * 3  # two high ones are no spike
    assert [watch.after(loss, 1.0) for loss in (4.0, 4.0, 4.0)] == ["good", "good", "rewind"]
    assert watch.after(math.nan, 1.0) == watch.after(2.0, math.inf) == "rewind"
    assert watch.before(math.inf, None) == watch.before(1.0, math.nan) == "skip" and watch.before(1.0, None) == "good"
    watch.forget([2.0] * 10)
    assert watch.after(4.0, 1.0) == "good"


def test_a_falling_loss_is_no_spike() -> None:
    watch = Watch(factor=1.2, window=10, patience=1)
    assert all(watch.after(10.0 / (step + 1), None) == "good" for step in range(50))


def test_states_are_whole_or_not_there(tmp_path: Path) -> None:
    states = States(tmp_path / "state", keep=2, rank=0, barrier=lambda: None)
    assert states.latest() is None
    for step in (1, 2, 3):
        states.save(step, lambda folder: (folder / "weights").write_bytes(b"x"))
    assert sorted(path.name for path in states.folder.iterdir()) == ["latest", "step-00000002", "step-00000003"]

    def fail(folder: Path) -> None:
        (folder / "weights").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(GLMError) as caught:
        states.save(4, fail)
    assert caught.value.kind == "overloaded" and "No space left" in str(caught.value)
    assert states.latest() == states.folder / "step-00000003"
    assert sorted(path.name for path in states.folder.iterdir()) == ["latest", "step-00000002", "step-00000003"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("scale: {zero: 1}\noptimizer: {learning_rate: 1, embedding_learning_rate: 1}", "Muon needs whole matrices"),
        ("scale: {precision: bf16}", "need scale.zero 1"),
        ("scale: {zero: 4}", "scale.zero"),
        ("ramp: {share: 0, steps: 3}", "ramp.share"),
        ("guard: {factor: 1}", "guard.factor"),
        ("scale: {tensor_parallel: 2, zero: 2}", "tensor_parallel goes with"),
        ("lora: {rank: 4}", "lora needs initial"),
        ("stages: [{name: a, steps: 1, rows: 4, length: 64, weights: {x: 1}, multitask: {sources: []}}]", "multitask"),
        ("lora: {rank: 0}\ninitial: embedded", "lora.rank"),
    ],
)
def test_what_does_not_go_together(tmp_path: Path, text: str, words: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    own = text.partition(":")[0] if "stages" in text else "optimizer" if "optimizer" in text else "-"
    lines = [line for line in RECIPE.splitlines() if not line.startswith((own, "  - ") if own == "stages" else own)]
    recipe.write_text("\n".join(lines) + "\n" + text + "\n")
    with pytest.raises(GLMError) as caught:
        Recipe.load(recipe)
    assert caught.value.kind == "bad_data" and words in str(caught.value)


def test_cosine_and_ramp(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    text = (
        RECIPE.replace("steps: 8", "steps: 100")
        .replace("rows: 4", "rows: 64")
        .replace("decay_share: 0.5", "decay_share: 1")
    )
    recipe.write_text(
        text.replace("kind: adamw", "kind: adamw, decay: cosine, final_share: 0.1") + "ramp: {share: 0.25, steps: 40}\n"
    )
    found = Recipe.load(recipe)
    assert found.learning_rate_share(0) == pytest.approx(1 / 3)
    assert found.learning_rate_share(50) == pytest.approx(0.55)
    assert found.learning_rate_share(100) == pytest.approx(0.1)
    rows = [found.rows_at(step, 4) for step in range(100)]
    assert rows[0] == 16 and rows[40:] == [64] * 60 and rows == sorted(rows) and all(count % 4 == 0 for count in rows)


def test_processes_must_divide(runs: Runs) -> None:
    process = runs.start("three", scaled(tensor_parallel=3))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2 and "1 processes can't be divided into copies of 3" in errors


def test_streams_must_divide(runs: Runs) -> None:
    process = runs.start("uneven", RECIPE + "scale: {streams: 3}\n")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2 and "4 rows a step can't be divided" in errors
