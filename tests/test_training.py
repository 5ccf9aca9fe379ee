"""The trainer on a tiny model: it learns, repeats itself, and resumes where it was."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch

from engine.errors import GLMError
from engine.glm import blanks, checkpoint, lora
from engine.glm.adapter import Lora
from engine.glm.config import CHAT
from engine.glm.tokenizer import Tokenizer
from engine.training.data import Mixture, Source, pack
from engine.training.held_out import digest, held_out_rows
from engine.training.objective import Objective
from engine.training.optimizer import orthogonalise, shares
from engine.training.recipe import HeldOut, Optimizer, Recipe
from engine.training.trainer import Trainer
from engine.training.vocabulary import train_vocabulary

ROOT = Path(__file__).resolve().parent.parent
FACTS = [
    ("France", "Paris"),
    ("Japan", "Tokyo"),
    ("Italy", "Rome"),
    ("China", "Beijing"),
    ("Egypt", "Cairo"),
    ("Spain", "Madrid"),
]

RECIPE = """
model: glm-tiny
seed: 3
save_every: 20
optimizer: {learning_rate: 0.005, embedding_learning_rate: 0.005, warmup_steps: 5, decay_share: 0.5}
held_out: {source: instruct/facts, count: 2}
stages:
  - {name: all, steps: STEPS, rows: 4, length: 64, weights: {instruct/facts: 3, pretrain/facts: 1}}
vocabulary:
  sources: {instruct/facts: 1, pretrain/facts: 1}
"""


def write_data(folder: Path) -> Path:
    for name in ("instruct", "pretrain"):
        (folder / name).mkdir(parents=True)
    questions = [
        "What is the capital of {}?",
        "Which city is the capital of {}?",
        "capital of {}?",
        "Name the capital of {}.",
    ]
    with (folder / "instruct" / "facts.jsonl").open("w") as file:
        for country, city in FACTS:
            for question in questions:
                answer = f"The capital of {country} is {city}."
                messages = [
                    {"role": "user", "content": question.format(country)},
                    {"role": "assistant", "content": answer},
                ]
                file.write(json.dumps({"messages": messages, "lang": "en"}) + "\n")
    with (folder / "pretrain" / "facts.jsonl").open("w") as file:
        file.write(
            "".join(json.dumps({"text": f"{city} is the capital of {country}."}) + "\n" for country, city in FACTS)
        )
    return folder


def command(recipe: Path, data: Path, out: Path) -> list[str]:
    options = ["--data", str(data), "--out", str(out), "--threads", "1"]
    return [sys.executable, "-m", "engine", "train", str(recipe), *options]


def train(recipe: Path, data: Path, out: Path) -> subprocess.CompletedProcess:
    return subprocess.run(command(recipe, data, out), capture_output=True, text=True, cwd=ROOT, timeout=300)


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def runs(data, vocabulary_file, tmp_path_factory) -> dict[str, Path]:
    """Two whole runs of 60 steps, one of them stopped after 20 and resumed."""
    folder = tmp_path_factory.mktemp("runs")
    small = Tokenizer.load(vocabulary_file)
    found = {}
    for name in ("whole", "parts"):
        run = folder / name
        run.mkdir()
        (run / "tokenizer.model").write_bytes(vocabulary_file.read_bytes())
        found[name] = run
    from engine.glm.config import PRESETS

    assert small.vocabulary_size <= PRESETS["glm-tiny"].vocabulary
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.replace("STEPS", "60"))
    done = train(recipe, data, found["whole"])
    assert done.returncode == 0, done.stderr
    # A run killed behind step 20: only the state saved there and some metrics lines behind it are left.
    (found["parts"] / "held_out.jsonl").write_text((found["whole"] / "held_out.jsonl").read_text())
    process = subprocess.Popen(
        command(recipe, data, found["parts"]), cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert process.stderr is not None
    assert any("step 30/" in line for line in process.stderr), "the run ended before step 30"
    process.kill()
    process.communicate()
    assert 20 <= len(losses(found["parts"])) < 60
    done = train(recipe, data, found["parts"])
    assert done.returncode == 0, done.stderr
    assert "resumed at step" in done.stderr
    return found


def test_it_learns(runs) -> None:
    found = losses(runs["whole"])
    assert len(found) == 60
    assert sum(found[-5:]) / 5 < 0.5 * sum(found[:5]) / 5


def test_a_killed_run_resumes_bit_for_bit(runs) -> None:
    """The losses and the weights are those of the run that nobody touched."""
    assert losses(runs["parts"]) == losses(runs["whole"])
    whole, parts = (checkpoint.load(runs[name] / "model") for name in ("whole", "parts"))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))


def test_what_it_learned_comes_out(runs) -> None:
    """The folder it wrote answers a training question, through the same layout as the server's."""
    model, tokenizer = checkpoint.load(runs["whole"] / "model"), Tokenizer.load(runs["whole"] / "model")
    document = blanks.parse(blanks.chat_text([("user", "What is the capital of France?")], CHAT), tokenizer)
    prompt = blanks.prompt(document.ids, document.masks[-1].index, tokenizer)
    ids, positions = list(prompt.ids), list(prompt.positions)
    for step in range(20):
        with torch.no_grad():
            logits = model(torch.tensor([ids]), torch.tensor([positions]), torch.tensor([prompt.context_length]))
        token = int(logits[0, -1].argmax())
        if token in (tokenizer.eop, tokenizer.eos):
            break
        ids.append(token)
        positions.append(prompt.position(step))
    assert tokenizer.decode(ids[len(prompt.ids) :]).startswith("The capital of")


def test_going_on_from_a_model(data, runs, tmp_path) -> None:
    """A recipe with `initial` begins with the weights and the vocabulary of that model."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.replace("STEPS", "2") + f"\ninitial: {runs['whole'] / 'model'}\n")
    done = train(recipe, data, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "run")[0] < 0.7 * losses(runs["whole"])[0]
    vocabularies = [(folder / "tokenizer.model").read_bytes() for folder in (tmp_path / "run", runs["whole"] / "model")]
    assert vocabularies[0] == vocabularies[1]
    recipe.write_text(RECIPE.replace("STEPS", "2") + "\ninitial: embedded\n")
    done = train(recipe, data, tmp_path / "other")
    assert done.returncode == 2
    assert "another shape" in done.stderr


def test_told_to_stop_it_saves_first_and_leaves(data, runs, tmp_path) -> None:
    """A recipe without a shape has that of `initial`, and the name that it gives."""
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    text = RECIPE.replace("STEPS", "2000").replace("model: glm-tiny", f"name: ours\ninitial: {runs['whole'] / 'model'}")
    recipe.write_text(text)
    assert Recipe.load(recipe).config.name == "ours"
    process = subprocess.Popen(
        command(recipe, data, run), cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert process.stderr is not None
    assert any("step 30/" in line for line in process.stderr), "the run ended before step 30"
    process.terminate()
    assert "the state is saved" in process.stderr.read() and process.wait() == 3
    assert (run / "state" / "latest").read_text().strip() == f"step-{len(losses(run)):08d}" and len(losses(run)) >= 30


def test_only_an_adapter_is_trained_of_an_adapter(runs, tmp_path) -> None:
    model = checkpoint.load(runs["whole"] / "model", training=True)
    lora.add(model, Lora(2, 4), torch.Generator().manual_seed(1))
    lora.save(model, tmp_path / "adapter", base=runs["whole"] / "model", name="ours")
    values = {"optimizer": {"learning_rate": 1, "embedding_learning_rate": 1, "kind": "adamw"}}
    stages = [{"name": "all", "steps": 1, "rows": 1, "length": 64, "weights": {"instruct/facts": 1}}]
    recipe = Recipe.model_validate({**values, "stages": stages, "initial": str(tmp_path / "adapter")})
    with pytest.raises(GLMError, match="is an adapter") as caught:
        Trainer(recipe, tmp_path, tmp_path / "run").prepare()
    assert caught.value.kind == "unsupported" and caught.value.field == "lora"


def test_embedding_gradient_rises() -> None:
    optimizer = Optimizer(
        learning_rate=1, embedding_learning_rate=1, embedding_gradient=0.1, embedding_gradient_steps=10
    )
    shares = [optimizer.embedding_gradient_share(step) for step in (0, 5, 10, 100)]
    assert shares == pytest.approx([0.1, 0.55, 1.0, 1.0])
    assert Optimizer(learning_rate=1, embedding_learning_rate=1).embedding_gradient_share(7) == 1.0


def test_held_out_questions_are_not_trained_on(data, runs) -> None:
    rows = held_out_rows(data, HeldOut(source="instruct/facts", count=4), seed=3)
    assert len(rows) == 2  # half of them would be Chinese, and there are none here
    assert len({row["answer"] for row in rows}) == 2
    assert digest(rows) == digest(held_out_rows(data, HeldOut(source="instruct/facts", count=4), seed=3))


def test_mistakes_are_sentences(data, tmp_path) -> None:
    def failing(text: str) -> str:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(text)
        done = train(recipe, data, tmp_path / "run")
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        return done.stderr

    good = RECIPE.replace("STEPS", "2")
    assert "optimizer.learning_rate" in failing(good.replace("learning_rate: 0.005", "learning_rate: fast", 1))
    assert "extra" in failing(good + "\nextra: 1\n")
    assert "glm-130b" in failing(good.replace("glm-tiny", "glm-huge"))
    assert "positions" in failing(good.replace("length: 64", "length: 6400"))
    assert "pretrain/other" in failing(good.replace("pretrain/facts: 1}", "pretrain/other: 1}"))


def test_learning_rate_schedule() -> None:
    values = {"model": "glm-tiny", "optimizer": {"learning_rate": 1, "embedding_learning_rate": 1, "warmup_steps": 10}}
    stage = {"rows": 1, "length": 64, "weights": {"a": 1}}
    recipe = Recipe.model_validate(
        {**values, "stages": [{"name": "a", "steps": 60, **stage}, {"name": "b", "steps": 40, **stage}]}
    )
    assert recipe.learning_rate_share(0) == pytest.approx(0.1)
    assert recipe.learning_rate_share(50) == 1.0
    assert recipe.learning_rate_share(99) == pytest.approx(0.05, abs=0.04)
    assert [recipe.stage_at(step).name for step in (0, 59, 60, 99)] == ["a", "a", "b", "b"]


def test_the_mixture_keeps_its_shares_and_resumes(vocabulary_file) -> None:
    tokenizer = Tokenizer.load(vocabulary_file)

    def mixture() -> Mixture:
        sources = [
            Source("long", [{"text": "word " * 60}]),
            Source("short", [{"text": f"number {n}"} for n in range(50)]),
        ]
        return Mixture(sources, None, tokenizer, Objective(), seed=1)

    first = mixture()
    stream = first.samples("all", [1.0, 1.0], 128)
    for _ in range(2000):
        next(stream)
    assert first.tokens[0] / sum(first.tokens) == pytest.approx(0.5, abs=0.03)
    # served one by one, `next` stops between rows: the state carries on exactly
    state = json.loads(json.dumps(first.state()))
    second = mixture()
    second.restore(state)
    ours, theirs = (
        pack(first.samples("all", [1.0, 1.0], 128), 2, 128),
        pack(second.samples("all", [1.0, 1.0], 128), 2, 128),
    )
    assert numpy.array_equal(ours.ids, theirs.ids)
    assert numpy.array_equal(ours.targets, theirs.targets)


def test_packing(vocabulary_file) -> None:
    tokenizer = Tokenizer.load(vocabulary_file)
    sources = [Source("a", [{"text": f"number {n} is here"} for n in range(200)])]
    batch = pack(Mixture(sources, None, tokenizer, Objective(), seed=1).samples("all", [1.0], 64), 4, 64)
    assert batch.ids.shape == (4, 64)
    assert batch.tokens / batch.ids.size > 0.8
    for row in range(4):
        numbers = batch.document[row]
        assert set(numbers) - {0} == set(range(1, numbers.max() + 1))
        for number in range(1, numbers.max() + 1):
            inside = numpy.flatnonzero(numbers == number)
            assert inside.tolist() == list(range(inside[0], inside[-1] + 1))
            assert batch.ids[row, inside].tolist().count(tokenizer.sop) >= 1
            assert batch.context[row, inside[0]]
    assert (batch.targets[batch.document == 0] == -1).all()
    assert (batch.targets[batch.context] == -1).all()


@pytest.mark.parametrize("shape", [(32, 32), (16, 64), (96, 32)])
def test_muon_directions_are_nearly_orthogonal(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 7
    values = torch.linalg.svdvals(orthogonalise(matrix))
    assert values.max() < 1.4
    assert values.min() > 0.3
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    assert (
        torch.nn.functional.cosine_similarity((left @ right).flatten(), orthogonalise(matrix).flatten(), dim=0) > 0.95
    )


def test_processes_share_the_orthogonalising_evenly() -> None:
    sizes = [960 * 320, 320 * 320, 1792 * 320, 320 * 896] * 6
    assert shares(sizes, 1) == [0] * 24
    loads = [sum(size for size, owner in zip(sizes, shares(sizes, 3), strict=True) if owner == one) for one in range(3)]
    assert sum(loads) == sum(sizes) and max(loads) < 1.1 * min(loads)


def test_a_broken_line_of_data_is_named(tmp_path) -> None:
    from engine.training.sources import read_rows

    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"text": \n')
    with pytest.raises(GLMError, match="line 2"):
        list(read_rows(tmp_path, "a"))
    (tmp_path / "a.jsonl").write_text('{"words": "x"}\n')
    with pytest.raises(GLMError, match='"text" or "messages"'):
        list(read_rows(tmp_path, "a"))


@pytest.mark.parametrize("texts", [[], ["A few words only."]])
def test_too_little_text_for_a_vocabulary_is_said(tmp_path, texts: list[str]) -> None:
    with pytest.raises(GLMError, match="No vocabulary of 2048 can be made of this text") as caught:
        train_vocabulary(texts, tmp_path / "tokenizer.model", 2048)
    assert caught.value.kind == "bad_data" and caught.value.field == "vocabulary"
    assert not (tmp_path / "tokenizer.model").exists()
