"""Read the recorded reference: models, vocabulary and runs behind fixtures of GLM-130B's original code (see --reference)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

from engine.glm import checkpoint, sat, sentencepiece_file
from engine.glm.blanks import Prompt
from engine.glm.config import Config
from engine.glm.model import GLM
from engine.glm.parallel import SINGLE, Ranks
from engine.glm.sentencepiece_file import NORMAL
from engine.glm.tokenizer import VOCABULARY_FILE, Tokenizer
from engine.serving.protocol import Beams, Limits, Request, Result, Sampling
from engine.serving.runner import Runner
from engine.serving.sampling import Sampler
from engine.serving.scheduler import Scheduler

_UNKNOWN, _CONTROL = 2, 3  # types of sentencepiece's pieces


def values(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def load_config(folder: Path) -> Config:
    """The config of the recorded model."""
    recorded = values(folder)
    return Config(
        "reference",
        recorded["num_layers"],
        recorded["hidden_size"],
        recorded["inner_hidden_size"],
        recorded["num_attention_heads"],
        recorded["vocab_size"],
        recorded["max_sequence_length"],
        recorded["layernorm_epsilon"],
        rotary_precision="fp16",
    )


def load_model(folder: Path) -> GLM:
    """The recorded plain weights, upcast to fp32, from their one-rank checkpoint, by torch's own reader."""
    for name in checkpoints(folder):
        first, *others = rank_files(folder, name)
        tensors = torch.load(first, map_location="cpu", weights_only=True)["module"]
        if others or any(name.endswith(".weight_scale") for name in tensors):
            continue
        model = GLM(load_config(folder))
        state = {
            name.removeprefix("transformer."): tensor.float()
            for name, tensor in tensors.items()
            if not name.endswith("inv_freq")
        }
        model.load_state_dict(state)
        return model.eval()
    raise AssertionError(f"{folder} has no plain checkpoint of one rank")


def checkpoints(folder: Path) -> list[str]:
    """Names of the recorded checkpoints."""
    return sorted(path.name for path in (folder / "checkpoints").iterdir() if (path / "latest").is_file())


def rank_files(folder: Path, name: str) -> list[Path]:
    base = folder / "checkpoints" / name
    return sorted((base / (base / "latest").read_text().strip()).glob("mp_rank_*.pt"))


def logits_key(folder: Path, name: str, converted: Path) -> str | None:
    """Under which logits of a quantised checkpoint are recorded: "logits_int4_mp4"; None for a plain one."""
    quantization = Config.load(converted).quantization
    return None if quantization is None else f"logits_int{quantization.bits}_mp{len(rank_files(folder, name))}"


def convert(folder: Path, name: str, out: Path) -> Path:
    """A recorded checkpoint as a model folder of ours, with a vocabulary of the recorded ids."""
    recorded = values(folder)
    heads, positions = recorded["num_attention_heads"], recorded["max_sequence_length"]
    sat.convert(folder / "checkpoints" / name, out, tokenizer=None, name="reference", heads=heads, positions=positions)
    tokens = recorded["special_tokens"]
    vocabulary = vocabulary_file(tokens)
    (out / VOCABULARY_FILE).write_bytes(vocabulary)
    config = replace(Config.load(out), num_image_tokens=image_tokens(tokens))
    assert config.rotary_precision == "fp16"
    config.save(out)
    tokenizer = Tokenizer.load(out)
    assert {**tokenizer.special, "eos": tokenizer.eos} == tokens
    return out


def image_tokens(tokens: dict[str, int]) -> int:
    """Of a vocabulary in icetk's format with these special tokens: its third piece is eos."""
    return tokens["eos"] - 2


def vocabulary_file(tokens: dict[str, int]) -> bytes:
    """A vocabulary whose id n is the text " n"."""
    first = image_tokens(tokens)
    pieces = [("<unk>", _UNKNOWN), ("<s>", _CONTROL), ("</s>", _CONTROL), ("<n>", NORMAL)]
    pieces += [(f"\u2581{number}", NORMAL) for number in range(first + len(pieces), tokens["[MASK]"])]
    model = b"".join(sentencepiece_file.piece(text, 0.0, kind) for text, kind in pieces)
    normaliser = b"\x0a\x08identity\x18\x01\x20\x01"  # name, a space in front, no more than one
    return model + b"\x1a" + bytes([len(normaliser)]) + normaliser


class PaddedTokenizer(Tokenizer):
    """Of a model that may make any id, rows of its embedding that are padding, too, as the recorded one did."""

    def piece(self, token: int) -> str:
        return super().piece(token) if token < self.vocabulary_size else f"<padding {token}>"


class Engine:
    """Scheduler, runner and sampler of a model: a request at a time, or many together. All ranks do the same."""

    def __init__(self, folder: Path, ranks: Ranks = SINGLE, quantize: str | None = None, slots: int = 8) -> None:
        self.tokenizer = PaddedTokenizer.load(folder)
        self.model = checkpoint.load(folder, ranks=ranks, quantize=quantize).requires_grad_(False)
        config = self.model.config
        self._slots, self._positions = slots, config.positions
        self.limits = Limits(
            "reference", "", "fp32", "cpu", "", config.positions, slots, config.vocabulary, 1, ranks.size
        )
        self._runner = Runner(self.model, slots, config.positions)

    def run(self, prompts: Sequence[Prompt], sampling: Sampling, never: Iterable[int] = ()) -> list[list[Result]]:
        """The results of each prompt, which run together."""
        return self.finish([Request(str(number), prompt, sampling) for number, prompt in enumerate(prompts)], never)

    def finish(self, requests: Sequence[Request], never: Iterable[int] = ()) -> list[list[Result]]:
        """The results of each request, which run together."""
        scheduler = Scheduler(self.limits, self.tokenizer)
        sampler = Sampler(self.limits.vocabulary, list(never), self.tokenizer.eop, torch.device("cpu"))
        for request in requests:
            scheduler.add(request)
        found: dict[str, list[Result]] = {}
        while (plan := scheduler.plan()) is not None:
            outcome = self._runner.run(plan, sampler, self.tokenizer.end_ids)
            for end in scheduler.book(plan, outcome).ends:
                found[end.id] = list(end.results)
        assert scheduler.free_slots == self._slots
        return [found[request.id] for request in requests]


def recorded_prompt(ids: Sequence[int], gmask: bool, mask_position: int) -> Prompt:
    """The prompt of a recorded input, which ends in sop."""
    context = len(ids) - 1
    last = context if gmask else mask_position
    following, step = (len(ids), 1) if gmask else (mask_position, 0)
    return Prompt(tuple(ids), (*range(context), last), context, following, step)


def recorded_sampling(strategy: str, parameters: dict[str, Any], new_tokens: int) -> Sampling:
    """The sampling of a recorded strategy."""
    if strategy == "BaseStrategy":
        assert parameters["top_k"] == 1, "only the most likely tokens can be the same"
        return Sampling(temperature=parameters["temperature"], top_k=1, max_new_tokens=new_tokens, seed=0)
    beams = Beams(
        parameters["num_beams"],
        parameters["length_penalty"],
        sampled=not parameters["deterministic"],
        consider_end=parameters["consider_end"],
    )
    # The recorded code looks for "n-grams" of one token behind the whole text, where none can be: it bans nothing then.
    ngram = parameters["no_repeat_ngram_size"]
    return Sampling(
        max_new_tokens=new_tokens,
        min_new_tokens=min(new_tokens, parameters["min_gen_length"]),
        no_repeat_ngram=ngram if ngram > 1 else 0,
        seed=0,
        beams=beams,
    )


def banned_ids(slices: Iterable[Any], vocabulary: int) -> list[int]:
    """Of recorded `invalid_slices`: [start, stop] pairs or ids."""
    found: list[int] = []
    for part in slices:
        found += [part] if isinstance(part, int) else range(vocabulary)[slice(*part)]
    return found


def with_end(result: Result, ends: Sequence[int]) -> list[list[int]]:
    """What the recorded code would call generated: the end token is part of it, and either may have ended it."""
    return [[*result.ids, end] for end in ends] if result.reason == "stop" else [[*result.ids]]


def logits_of(model: GLM, data: dict[str, torch.Tensor]) -> torch.Tensor:
    """Of a recorded case, the rows that were stored: (rows, vocabulary)."""
    with torch.no_grad():
        logits = model(data["tokens"], data["position_ids"], visible=~data["attention_mask"])
    return stored_rows(logits[:, data["rows"]] if "rows" in data else logits, data)


def stored_rows(logits: torch.Tensor, data: dict[str, torch.Tensor]) -> torch.Tensor:
    """Without padding."""
    return logits[data["valid_rows"].bool()] if "valid_rows" in data else logits.flatten(0, 1)


def generation_cases(folder: Path) -> list[dict[str, Any]]:
    """Greedy and beam cases whose tokens don't hang on rounding."""
    path = folder / "generation.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    return [case for case in (*found.get("greedy", ()), *found.get("beam", ())) if case["robust"]]


def run_case(engine: Engine, case: dict[str, Any]) -> list[Result]:
    """A recorded greedy or beam case."""
    parameters = case.get("params")
    prompt = recorded_prompt(case["input"], case["gmask"], case["mask_position"])
    budget = case["max_total_length"] - len(case["input"])
    if parameters is None:
        sampling, never = Sampling(top_k=1, max_new_tokens=budget, seed=0), []
    else:
        sampling = recorded_sampling("BeamSearchStrategy", parameters, budget)
        never = banned_ids(parameters["invalid_slices"], engine.model.config.vocabulary)
    return engine.run([prompt], sampling, never)[0]


class RankTask(NamedTuple):
    """What ranks are to do with a model folder: `keys` names the recorded logits to compare with."""

    folder: Path
    quantize: str | None
    keys: tuple[str, ...]
    generate: bool = False


def as_rank(
    ranks: Ranks, folder: Path, own: Path, tasks: Sequence[RankTask]
) -> tuple[dict[str, float], dict[str, float], list[tuple[int, ...]]]:
    """One rank's work: the largest differences of its logits from recorded ones, by case and key; those of the first task from
    one rank's logits, which `own` has by case; the tokens of the greedy and of the robust beam cases."""
    recorded, alone, tokens = {}, {}, []
    for number, task in enumerate(tasks):
        engine = Engine(task.folder, ranks, task.quantize)
        for path in sorted((folder / "logits").glob("*.safetensors")):
            data = load_file(path)
            if number and not set(task.keys) & set(data):
                continue
            logits = logits_of(engine.model, data)
            for key in set(task.keys) & set(data):
                difference = (logits - stored_rows(data[key], data)).abs().max()
                recorded[f"{path.stem} {key} from {task.folder.name}"] = float(difference)
            if number == 0:
                alone[path.stem] = float((logits - load_file(own / path.name)["logits"]).abs().max())
        if task.generate:
            for case in generation_cases(folder):
                tokens += [result.ids for result in run_case(engine, case)]
    return recorded, alone, tokens
