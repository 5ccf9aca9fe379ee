"""The engine against what people would use instead, at the same shape, in turns in the same run: prefill and decode, with ratios.

    python -m tests.benchmarks.peers --peer-python OTHER/bin/python --llama F32 Q8_0 Q4_0 --rounds 3

The peers aren't installed with this project: --peer-python names a Python that has transformers and torch (tried with
transformers 5.23.0), and for --llama llama-cpp-python and gguf (llama_peer.py; tried with 0.3.36). Both models have the same
matrices; they compute RMS norms and silu where GLM-130B has layer norms and gelu. Figures of llama.cpp on another machine are in
llama_cpp.json.

Every contender is a process of its own, which stays loaded and waits for its turn, so that nobody else runs meanwhile. Weights
are random.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RECORD = Path(__file__).with_name("llama_cpp.json")
# glm-330m; transformers' Glm is given the same
SHAPE = {"layers": 24, "hidden": 1024, "heads": 16, "inner": 2816, "vocabulary": 20000}
ENGINE = ("fp32", "int8", "int4", "w8a8")
TRANSFORMERS = ("fp32", "bf16")
LLAMA = ("F32", "F16", "Q8_0", "Q4_0")
AGAINST = ("transformers fp32", "llama F32", "llama Q8_0", "llama Q4_0")  # whom the table has ratios to
BATCHES = (1, 4, 16)


class EngineContender:
    """This project, as a worker runs it."""

    def __init__(self, precision: str) -> None:
        from engine.glm.allocator import keep_freed_memory
        from engine.glm.config import PRESETS
        from engine.serving import speed

        config = PRESETS["glm-330m"]
        assert {name: getattr(config, name) for name in SHAPE} == SHAPE
        self._speed, self._model = speed, speed.load("glm-330m", None, precision)
        keep_freed_memory()

    def prefill(self, prompt: int) -> float:
        return self._speed.prefill_seconds(self._model, prompt)[0]

    def step(self, batch: int, prompt: int, new: int) -> float:
        return self._speed.step_seconds(self._model, batch, prompt, new)


class TransformersContender:
    """A greedy loop over transformers' Glm with its cache, without the bookkeeping of generate()."""

    def __init__(self, precision: str) -> None:
        import torch
        from transformers import GlmConfig, GlmForCausalLM

        config = GlmConfig(
            vocab_size=SHAPE["vocabulary"],
            hidden_size=SHAPE["hidden"],
            intermediate_size=SHAPE["inner"],
            num_hidden_layers=SHAPE["layers"],
            num_attention_heads=SHAPE["heads"],
            num_key_value_heads=SHAPE["heads"],
            head_dim=SHAPE["hidden"] // SHAPE["heads"],
            attention_bias=True,
            tie_word_embeddings=True,
            pad_token_id=0,
            attn_implementation="sdpa",
        )
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        self._torch, self._model = torch, GlmForCausalLM(config).to(dtype).eval()

    def _read(self, prompt: int) -> Any:
        ids = self._torch.randint(300, SHAPE["vocabulary"], (1, prompt))
        return self._model(input_ids=ids, use_cache=True, logits_to_keep=1)

    def prefill(self, prompt: int) -> float:
        with self._torch.inference_mode():
            seconds = []
            for _ in range(4):
                began = time.perf_counter()
                self._read(prompt)
                seconds.append(time.perf_counter() - began)
        return statistics.median(seconds[1:])

    def step(self, batch: int, prompt: int, new: int) -> float:
        with self._torch.inference_mode():
            read = self._read(prompt)
            cache = read.past_key_values
            cache.batch_repeat_interleave(batch)
            tokens = read.logits[:, -1].argmax(dim=-1, keepdim=True).expand(batch, 1)
            seconds = []
            for _ in range(new):
                began = time.perf_counter()
                found = self._model(input_ids=tokens, past_key_values=cache, use_cache=True)
                tokens = found.logits[:, -1].argmax(dim=-1, keepdim=True)
                tokens.tolist()
                seconds.append(time.perf_counter() - began)
        return statistics.median(seconds)


def contend(kind: str, precision: str, threads: int, folder: Path) -> int:
    """A contender's process: a task a line, its seconds a line."""
    contender: Any
    if kind == "llama":
        from tests.benchmarks.llama_peer import LlamaContender

        contender = LlamaContender(precision, SHAPE, folder, threads)
    else:
        import torch

        torch.set_num_threads(threads)
        contender = EngineContender(precision) if kind == "engine" else TransformersContender(precision)
    print("ready", flush=True)
    for line in sys.stdin:
        what, *numbers = json.loads(line)
        print(json.dumps(getattr(contender, what)(*numbers)), flush=True)
    return 0


class Contender:
    """A contender's process, seen from outside."""

    def __init__(self, kind: str, precision: str, python: str, threads: int, folder: Path) -> None:
        from engine.glm.allocator import with_large_pages

        self.name = f"{kind} {precision}"
        # The peer runs as its users run it; a worker of this project starts with these settings.
        environment = dict(os.environ) if kind != "engine" else with_large_pages(os.environ)
        environment |= {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [python, __file__, "--contender", kind, precision, "--threads", str(threads), "--folder", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        self._said("ready")

    def ask(self, *task: Any) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        return float(self._said())

    def _said(self, expected: str | None = None) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line or (expected and line != expected):
            raise SystemExit(f"{self.name} ended: is what it needs installed?")
        return line

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Medians over the rounds: {contender: {"prefill_ms", "tokens_per_second": {batch}}}, and what the machine can do."""
    import torch

    from engine.glm.machine import measure_machine

    torch.set_num_threads(options.threads)
    peers = {"transformers": options.peers, "llama": options.llama} if options.peer_python else {}
    contenders = [
        Contender(
            kind, one, sys.executable if kind == "engine" else options.peer_python, options.threads, options.folder
        )
        for kind, several in ({"engine": options.engine} | peers).items()
        for one in several
    ]
    machines = [measure_machine(torch.device("cpu"))]
    found: dict[str, dict[str, list[float]]] = {one.name: {} for one in contenders}
    try:
        for number in range(options.rounds):
            for task in (
                ("prefill", options.prompt),
                *(("step", batch, options.prompt, options.new) for batch in BATCHES),
            ):
                for one in contenders:
                    key = "prefill" if task[0] == "prefill" else str(task[1])
                    found[one.name].setdefault(key, []).append(one.ask(*task))
            sys.stderr.write(f"round {number + 1} of {options.rounds}\n")
            machines.append(measure_machine(torch.device("cpu")))
    finally:
        for one in contenders:
            one.close()
    return {
        "cpu": cpu(),
        "threads": options.threads,
        "prompt": options.prompt,
        "flops": statistics.median(one.flops for one in machines),
        "bandwidth": statistics.median(one.bandwidth for one in machines),
        "contenders": {
            name: {
                "prefill_ms": 1000 * statistics.median(each["prefill"]),
                "tokens_per_second": {str(batch): batch / statistics.median(each[str(batch)]) for batch in BATCHES},
            }
            for name, each in found.items()
        },
    }


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    features = sorted(
        {word for line in lines if line.startswith("flags") for word in line.split() if word in _FEATURES}
    )
    return f"{names[0] if names else 'unknown'} ({', '.join(features) or 'no AVX2'})"


_FEATURES = {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile"}


def table(found: dict[str, Any]) -> str:
    head = ["", f"prefill of {found['prompt']}, ms", *(f"tokens/s, batch {batch}" for batch in BATCHES)]
    lines = [
        f"{found['cpu']}, {found['threads']} threads, fp32 matmul peak {found['flops'] / 1e9:.0f} GFLOP/s, memory read at "
        f"{found['bandwidth'] / 1e9:.1f} GB/s",
        "",
        f"| {' | '.join(head)} |",
        f"|---|{'---:|' * (len(head) - 1)}",
    ]
    contenders = found["contenders"]
    for name, one in contenders.items():
        row = [name, f"{one['prefill_ms']:.0f}", *(f"{one['tokens_per_second'][str(batch)]:.1f}" for batch in BATCHES)]
        lines.append(f"| {' | '.join(row)} |")
    for against in AGAINST:
        base = contenders.get(against)
        for name, one in contenders.items() if base else ():
            if name.startswith("engine"):
                row = [f"{name} / {against}", f"{base['prefill_ms'] / one['prefill_ms']:.2f}x"]
                rates = (
                    (one["tokens_per_second"][str(batch)], base["tokens_per_second"][str(batch)]) for batch in BATCHES
                )
                lines.append(f"| {' | '.join([*row, *(f'{ours / theirs:.2f}x' for ours, theirs in rates)])} |")
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    lines += ["", f"llama.cpp, recorded: {record['version']} on {record['machine']}", ""]
    for name, one in record["figures"].items():
        rates = ", ".join(f"{one['tokens_per_second'][str(batch)]:g} at batch {batch}" for batch in BATCHES)
        lines.append(f"- {name}: prefill {one['prefill_ms']:g} ms; tokens/s {rates}")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.peers", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--peer-python", metavar="PATH", help="a Python that has transformers and torch (default: the engine alone)")
    add("--engine", nargs="+", choices=ENGINE, default=list(ENGINE), help="precisions of the engine")
    add("--peers", nargs="*", choices=TRANSFORMERS, default=["fp32"], help="precisions of transformers (default: fp32)")
    add("--llama", nargs="*", choices=LLAMA, default=[], help="kinds of llama.cpp's weights (default: none)")
    add("--folder", type=Path, default=Path("runs/llama"), help="for llama.cpp's model files (default: runs/llama)")
    add("--prompt", type=int, default=128)
    add("--new", type=int, default=32, help="steps that are measured each time")
    add("--rounds", type=int, default=3)
    add("--threads", type=int, default=os.cpu_count() or 1)
    add("--json", action="store_true")
    add("--contender", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.contender:
        return contend(*options.contender, options.threads, options.folder)
    options.folder = options.folder.resolve()
    if options.llama:
        options.folder.mkdir(parents=True, exist_ok=True)
    found = run(options)
    sys.stdout.write(json.dumps(found) + "\n" if options.json else table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
