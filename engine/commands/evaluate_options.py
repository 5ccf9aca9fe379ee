"""What `python -m engine evaluate` takes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from engine.errors import GLMError
from engine.glm.cache_precision import KV_CACHES
from engine.glm.config import EMBEDDED, SERVED_QUANTIZATIONS
from engine.serving.options import DEVICES
from engine.serving.protocol import OFFLOADS, PRECISIONS

KEY_VARIABLE = "GLM_ADMIN_KEY"
OUT = Path("evaluations")
# Options of a pool of our own, which a server has had already.
_OWN = ("replicas", "slots", "threads", "precision", "quantize", "tensor_parallel", "device", "offload", "weights_budget",
    "batch_invariant", "kv_cache", "eager")  # fmt: skip


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def parser(about: str | None) -> argparse.ArgumentParser:
    found = _Parser(
        prog="python -m engine evaluate", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = found.add_argument
    add("tasks", nargs="*", metavar="TASK", help="task files (YAML), folders of them, or names of those that come with "
        "the program, as mmlu, chinese/clue or lambada/lambada.yaml")  # fmt: skip
    add("--data", type=Path, metavar="DIR", help="the folder that the tasks' paths begin in")
    add("--out", type=Path, default=OUT, metavar="DIR", help="where rows and results are kept, and found again by the next run "
        "(default: evaluations)")  # fmt: skip
    add(
        "--json",
        action="store_true",
        help="JSON lines on the standard output instead of the table: progress, files, results",
    )
    add("--limit", type=_count, metavar="N", help="only the first N rows of each file, or lines of a plain text")
    add(
        "--parallel",
        type=_count,
        metavar="N",
        help="questions asked at the same time (default: by the replicas' slots)",
    )
    add("--report", action="store_true", help="without tasks: only write report.md and report.html of what --out holds")
    add("--prepare", nargs="+", metavar=("NAME", "SOURCE"), help="make a benchmark's rows of its published files, under --data; "
        "the name `list`, alone, lists the benchmarks")  # fmt: skip
    ask = found.add_argument_group("who answers")
    ask.add_argument("--model", help=f'"{EMBEDDED}" (default) or a model folder, loaded here')
    ask.add_argument("--server", metavar="URL", help="a running server, as http://localhost:8000: its replicas answer")
    ask.add_argument("--key-file", type=Path, metavar="FILE", help=f"holds an administrator's key for it (default: the variable "
        f"{KEY_VARIABLE})")  # fmt: skip
    own = found.add_argument_group("how a model that is loaded here runs")
    own.add_argument("--replicas", type=int, help="copies of it, each with its own processes (default: 1)")
    own.add_argument("--slots", type=int, help="texts that one replica writes at the same time (default: 16)")
    own.add_argument("--threads", type=int, help="CPU threads of one process")
    own.add_argument("--precision", choices=PRECISIONS, help="of weights and arithmetic (default: fp32)")
    own.add_argument(
        "--quantize", choices=SERVED_QUANTIZATIONS, help="make the weights whole numbers while they are loaded"
    )
    own.add_argument("--tensor-parallel", type=int, metavar="N", help="processes that share the weights of a replica")
    own.add_argument("--device", choices=DEVICES, help="default: accelerators if there are any, else the CPU")
    own.add_argument("--offload", choices=OFFLOADS, help="where layers wait that --weights-budget has no room for")
    own.add_argument(
        "--weights-budget", metavar="SIZE", help="memory for each process's weights, as 12GiB; with --offload"
    )
    own.add_argument("--batch-invariant", action="store_true", default=None, help="the same numbers for a row, to the bit, "
        "whatever runs beside it; slower")  # fmt: skip
    own.add_argument("--eager", action="store_true", default=None, help="on accelerators run each step operation by operation "
        "instead of replaying recorded ones; slower")  # fmt: skip
    own.add_argument("--kv-cache", choices=KV_CACHES, help="how keys and values are kept: full, as the arithmetic is; fp16; auto: "
        "fp16 with quantised weights in fp32")  # fmt: skip
    return found


def check(options: argparse.Namespace) -> None:
    """GLMError bad_request for options that don't go together, or lack something."""
    work = [bool(options.tasks), options.report, options.prepare is not None]
    if sum(work) != 1:
        message = "Say what to do: name tasks, or give --report, or --prepare NAME SOURCE."
        raise GLMError("bad_request", message if not any(work) else f"{message} One of them.", field="tasks")
    if options.report:
        return
    listing = options.prepare == ["list"]
    if options.prepare is not None and not listing and len(options.prepare) != 2:
        raise GLMError("bad_request", "--prepare takes a NAME and a SOURCE, or `list` alone.", field="prepare")
    if options.data is None and not listing:
        raise GLMError("bad_request", "Say with --data in which folder the rows are.", field="data")
    if options.tasks and not options.data.is_dir():
        raise GLMError("bad_request", f"There is no folder {options.data} (--data).", field="data")
    given = [name for name in ("model", *_OWN) if getattr(options, name) is not None]
    if options.server is not None and given:
        flag = "--" + given[0].replace("_", "-")
        message = f"With --server the model and how it runs are the server's: leave {flag} out."
        raise GLMError("bad_request", message, field=given[0])
    if options.key_file is not None and options.server is None:
        raise GLMError("bad_request", "--key-file is for --server.", field="key_file")


def pool_options(options: argparse.Namespace) -> dict[str, object]:
    """What pool.Pool takes of them."""
    from engine.glm.size import parse_size

    found = {name: getattr(options, name) for name in _OWN if getattr(options, name) is not None}
    if "weights_budget" in found:
        found["weights_budget"] = parse_size(found["weights_budget"])
    return found


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)
