"""Train the variants of an ablation one after the other, in fp32 on the CPU; each one's curves are a line of results.jsonl.

All runs of a seed see the same batches in the same order and begin with the same random numbers. A folder that already holds a
run's line is not asked to train it again. Without data, documents of a small invented language are trained on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from time import perf_counter

import torch
from torch import Tensor

from engine.errors import GLMError
from engine.glm.config import CHAT, Config
from engine.glm.model import GLM
from engine.glm.tokenizer import VOCABULARY_FILE, Tokenizer
from engine.training.ablations import VARIANTS, Inputs, Variant, find_variant, look_inside, make_model, variant_loss
from engine.training.data import Mixture, Source, load_source, pack
from engine.training.objective import Objective
from engine.training.optimizer import adamw_groups
from engine.training.row_files import EXTENSIONS
from engine.training.sources import read_rows, row_text
from engine.training.vocabulary import train_vocabulary
from engine.training.whole_file import write_bytes

RESULTS = "results.jsonl"
MEGABYTES = 4  # read of each source
_DOCUMENTS = 4000  # of the invented language
_CLIP, _DECAY, _WARMUP, _FALL = 1.0, 0.1, 0.1, 0.3  # norm; weight decay; shares of the steps up and down at the ends
_FIRST_SCALE = 2.0**16  # of the loss where gradients pass through fp16: halved when they overflow
_PATIENCE = 20  # steps in a row without a number, after which a run has diverged


@dataclass(frozen=True, slots=True)
class Settings:
    """What all runs of a folder have in common. data: what it was, and a digest of the vocabulary."""

    steps: int
    rows: int
    length: int
    hidden: int
    heads: int
    vocabulary: int
    data: str

    def config(self, depth: int) -> Config:
        """inner is about 8/3 of hidden, as in GLM-130B."""
        inner = max(8, round(self.hidden * 8 / 3 / 8) * 8)
        return Config(f"depth {depth}", depth, self.hidden, inner, self.heads, self.vocabulary, self.length, chat=CHAT)


@dataclass(frozen=True, slots=True)
class Run:
    """Which one."""

    variant: str
    depth: int
    rate: float
    seed: int


def invented_documents(count: int, seed: int = 7) -> list[str]:
    """Documents of a small language: the verb agrees with its subject's ending, and what a sentence was about begins the next one.
    The same for a seed everywhere."""
    random = Random(seed)
    made: set[str] = set()

    def words(number: int, endings: str) -> list[str]:
        found: list[str] = []
        while len(found) < number:
            syllables = (
                random.choice("bdfgklmnprstvz") + random.choice("aeiou") for _ in range(random.choice((1, 2, 2)))
            )
            word = "".join(syllables) + random.choice(endings)
            if word not in made:
                made.add(word)
                found.append(word)
        return found

    nouns, verbs, adjectives = words(150, "nr"), words(80, "t"), words(60, "s")
    weights = [[1 / (place + 1) for place in range(len(kind))] for kind in (nouns, verbs, adjectives)]

    def pick(kind: int) -> str:
        return random.choices((nouns, verbs, adjectives)[kind], weights[kind])[0]

    documents = []
    for _ in range(count):
        subject, sentences = pick(0), []
        for _ in range(random.randint(3, 7)):
            thing = pick(0)
            verb = pick(1) + ("a" if subject.endswith("n") else "o")
            sentences.append(f"{pick(2)} {subject} {verb} {pick(2)} {thing}.")
            subject = thing
        documents.append(" ".join(sentences))
    return documents


class Data:
    """The sources of a folder, or the invented language, under a vocabulary that is trained once and kept in `out`."""

    def __init__(self, folder: Path | None, out: Path, vocabulary: int) -> None:
        """GLMError bad_data for a folder without rows, or with too little text, or too many characters, for the vocabulary."""
        names = _names(folder) if folder is not None else []
        file = out / VOCABULARY_FILE
        if not file.exists():
            if folder is None:
                texts = iter(invented_documents(_DOCUMENTS))
            else:
                texts = (row_text(row) for name in names for row in read_rows(folder, name, MEGABYTES * 10**6))
            try:
                train_vocabulary(texts, file, vocabulary, threads=1)
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[-1].split("] ")[-1]  # behind the place in its code
                message = f"No vocabulary of {vocabulary} can be trained on the data: {reason}"
                raise GLMError("bad_data", message, field="vocabulary") from error
        self.tokenizer = Tokenizer.load(file)
        if folder is None:
            rows = [{"ids": self.tokenizer.encode_plain(text)} for text in invented_documents(_DOCUMENTS)]
            self.sources = [Source("invented", rows)]
            self.about = "an invented language"
        else:
            options = {"limit_megabytes": MEGABYTES}
            self.sources = [load_source(folder, name, options, self.tokenizer, frozenset()) for name in names]
            self.about = ", ".join(names)

    def batches(self, seed: int, rows: int, length: int) -> Iterator[Inputs]:
        """Without end; the sources have equal shares of the tokens."""
        mixture = Mixture(self.sources, CHAT, self.tokenizer, Objective(), seed)
        samples = mixture.samples("all", [1.0] * len(self.sources), length)
        while True:
            yield Inputs.of(pack(samples, rows, length))


def _names(folder: Path) -> list[str]:
    names = set()
    for path in folder.rglob("*"):
        for extension in EXTENSIONS:
            if path.is_file() and path.name.endswith(extension):
                names.add(str(path.relative_to(folder).as_posix())[: -len(extension)])
    if not names:
        raise GLMError("bad_data", f"There are no rows ({', '.join(EXTENSIONS)}) in {folder}.", field="data")
    return sorted(names)


def rate_share(step: int, steps: int) -> float:
    """Warm-up over a tenth of the steps, a plateau, a linear fall to a tenth over the last 30%."""
    warm = min(1.0, (step + 1) / max(1.0, steps * _WARMUP))
    late = max(0.0, (step - steps * (1 - _FALL)) / (steps * _FALL))
    return warm * (1 - 0.9 * late)


class GradientNorms:
    """Of a model after backward: the whole, the embedding, the part of it that came through the lookups, and each layer."""

    def __init__(self, model: GLM) -> None:
        named = list(model.named_parameters())
        self.parameters = [parameter for _, parameter in named]
        self._embedding = [name for name, _ in named].index("word_embeddings.weight")
        layers = [int(name.split(".")[1]) if name.startswith("layers.") else -1 for name, _ in named]
        self._layers = torch.tensor(layers)
        self._count = len(model.layers)

    def __call__(self, ids: Tensor, looked_up: Tensor) -> dict[str, float]:
        """looked_up: with its gradient, at scale 1."""
        gradients = [parameter.grad for parameter in self.parameters]
        squares = torch.stack(torch._foreach_norm(gradients)).double().square()
        inside = self._layers >= 0
        layers = torch.zeros(self._count, dtype=torch.float64)
        layers.index_add_(0, self._layers[inside], squares[inside])
        layers = layers.sqrt()
        embedding = self.parameters[self._embedding]
        lookup = torch.zeros_like(embedding).index_add_(0, ids.flatten(), looked_up.grad.flatten(0, 1))
        return {
            "norm": float(squares.sum().sqrt()),
            "embedding": float(squares[self._embedding].sqrt()),
            "lookup": float(lookup.norm()),
            "layer_median": float(layers.quantile(0.5)),
            "layer_largest": float(layers.max()),
        }


CURVES = ("loss", "norm", "embedding", "lookup", "layer_median", "layer_largest")


def train(run: Run, variant: Variant, settings: Settings, data: Data) -> dict:
    """One run. Returns its curves, one number a step, null where there was none, and what `look_inside` finds at the end."""
    started = perf_counter()
    config = settings.config(run.depth)
    model = make_model(variant, config, run.seed)
    optimizer = torch.optim.AdamW(
        adamw_groups(model, run.rate, run.rate, _DECAY), run.rate, betas=(0.9, 0.95), fused=True
    )
    norms = GradientNorms(model)
    curves: dict[str, list[float | None]] = {name: [] for name in CURVES}
    scale = _FIRST_SCALE if variant.softmax == "fp16" else 1.0
    skipped = barren = 0
    batches = data.batches(run.seed, settings.rows, settings.length)
    inputs = next(batches)
    for step in range(settings.steps):
        loss, looked_up = variant_loss(model, inputs, variant)
        looked_up.retain_grad()
        (loss * scale).backward()
        if scale != 1.0:
            torch._foreach_mul_([*(parameter.grad for parameter in norms.parameters), looked_up.grad], 1 / scale)
        found = {"loss": float(loss.detach()), **norms(inputs.ids, looked_up)}
        for name in CURVES:
            curves[name].append(_rounded(found[name]))
        if math.isfinite(found["loss"]) and math.isfinite(found["norm"]):
            barren = 0
            if found["norm"] > _CLIP:
                torch._foreach_mul_([parameter.grad for parameter in norms.parameters], _CLIP / found["norm"])
            for group in optimizer.param_groups:
                group["lr"] = run.rate * rate_share(step, settings.steps)
            optimizer.step()
        else:
            skipped, barren = skipped + 1, barren + 1
            scale = max(1.0, scale / 2)
        optimizer.zero_grad(set_to_none=True)
        if barren == _PATIENCE:
            break
        inputs = next(batches)
    inside = look_inside(model, inputs)
    return {
        **asdict(run),
        "settings": asdict(settings),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "curves": curves,
        "skipped": skipped,
        "diverged": barren == _PATIENCE,
        "largest_score": _rounded(inside["largest_score"]),
        "hidden": [_rounded(size) for size in inside["hidden"]],
        "seconds": round(perf_counter() - started, 2),
    }


def _rounded(number: float) -> float | None:
    """Six digits; None for inf and nan, which JSON has not."""
    return float(f"{number:.6g}") if math.isfinite(number) else None


def read_results(out: Path, settings: Settings | None = None) -> list[dict]:
    """The finished runs of a folder. A line that was cut off is dropped. GLMError bad_data for runs of other settings."""
    path, rows = out / RESULTS, []
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        if number == len(lines) and not line.endswith("\n"):
            write_bytes(path, "".join(lines[:-1]).encode())
            break
        try:
            row = json.loads(line)
            other = settings is not None and row["settings"] != asdict(settings)
            Run(find_variant(row["variant"]).name, row["depth"], row["rate"], row["seed"])
        except (ValueError, TypeError, KeyError, GLMError) as error:
            raise GLMError("bad_data", f"{path}, line {number} is not a result: remove it.", field="out") from error
        if other:
            message = f"{path} holds runs of other settings: they can't be compared. Take a new folder."
            raise GLMError("bad_data", message, field="out")
        rows.append(row)
    return rows


def run_all(runs: list[Run], settings: Settings, data: Data, out: Path, tell: Callable[[str], None]) -> list[dict]:
    """Train those of the runs that `out` lacks. Returns the results of all that it then holds, in order."""
    done = {_key(row): row for row in read_results(out, settings)}
    for number, run in enumerate(runs, start=1):
        key = (run.variant, run.depth, run.rate, run.seed)
        if key not in done:
            done[key] = train(run, find_variant(run.variant), settings, data)
            with (out / RESULTS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(done[key], separators=(",", ":")) + "\n")
            last = next((loss for loss in reversed(done[key]["curves"]["loss"]) if loss is not None), math.nan)
            about = f"{run.variant}, {run.depth} layers, rate {run.rate:g}, seed {run.seed}"
            tell(f"{number}/{len(runs)} {about}: loss {last:.4f}, {done[key]['seconds']:.1f} s")
    order = list(VARIANTS)
    return sorted(done.values(), key=lambda row: (row["depth"], row["rate"], order.index(row["variant"]), row["seed"]))


def _key(row: dict) -> tuple:
    return row["variant"], row["depth"], row["rate"], row["seed"]
