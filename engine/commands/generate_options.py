"""What `python -m engine generate` takes: its flags, and those that mean more than one thing."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from engine.errors import GLMError
from engine.glm.cache_precision import KV_CACHES
from engine.glm.config import SERVED_QUANTIZATIONS
from engine.serving import protocol
from engine.serving.options import DEVICES
from engine.serving.run_job import CONFIDENT_BLANKS, ORDERS

_SAMPLING, _BEAMS = "BaseStrategy", "BeamSearchStrategy"  # as GLM-130B's generate.py names them
_FILE_ENDINGS = (".txt", ".tsv", ".csv", ".json", ".jsonl", ".md")


def parser(about: str | None) -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="python -m engine generate", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = found.add_argument
    add("--input-source", default="interactive", metavar="interactive|FILE|TEXT", help="default: interactive")
    add("--output-path", type=Path, metavar="FILE|FOLDER", help="also write results: to one file if the name has an ending "
        "(.txt, .jsonl), else to a folder, one file for each input")  # fmt: skip
    add("--model", default="embedded", help='"embedded" (default) or a model folder')
    add("--chat", action="store_true", help="the input is a user's message; interactively, a conversation")
    add("--json", action="store_true", help="one JSON object a line for each input")
    add("--with-id", action="store_true", help="each input is an id, a tab, and the text; the id names its output")
    add("--max-new-tokens", type=int, help="of each blank (default: 32 for [MASK], 64 for [sMASK], 256 for [gMASK])")
    add("--out-seq-length", type=int, help="tokens of a prompt and its answer together, as in GLM-130B's generate.py")
    add("--min-gen-length", type=int, default=0, help="tokens of each blank, at least")
    add("--temperature", type=float, default=1.0, help="0 takes the most likely token (default: 1)")
    add("--top-k", type=int, default=0, help="choose among so many tokens (default: 0, all)")
    add(
        "--top-p",
        type=float,
        default=1.0,
        help="choose among the likeliest tokens of this total probability (default: 1)",
    )
    add("--repetition-penalty", type=float, default=1.0, help="above 1: tokens that were there are less likely")
    add("--no-repeat-ngram-size", type=int, default=0, help="no sequence of so many tokens comes twice")
    add("--sampling-strategy", choices=(_SAMPLING, _BEAMS), help="token by token, or beam search (default: "
        "beam search with --num-beams, else token by token)")  # fmt: skip
    add("--num-beams", type=int, help="answers that beam search keeps at a time (default: 4)")
    add("--length-penalty", type=float, help="of a beam's score, its log-probability / ((5 + length) / 6) ** penalty "
        "(default: 1; above it favours long answers)")  # fmt: skip
    add("--sampled-beams", action="store_true", help="draw the beams' continuations, as GLM-130B's generate.py does, "
        "instead of taking the best")  # fmt: skip
    add("--print-all-beams", action="store_true", help="print every beam of each blank with its score")
    add("--order", choices=ORDERS, default="left", help="fill the blanks of a text from left to right (the default), or the one "
        f"that the model is surest of first (up to {CONFIDENT_BLANKS} blanks)")  # fmt: skip
    add("--stop", action="append", default=[], metavar="TEXT", help="end a blank before this text; may be given again")
    add("--seed", type=int, help="default: drawn for each input, and shown with --json")
    add("--precision", choices=protocol.PRECISIONS, default="fp32", help="of weights and arithmetic (default: fp32)")
    add(
        "--quantize",
        choices=SERVED_QUANTIZATIONS,
        help="make the weights whole numbers of 8 or 4 bits while they are loaded; w8a8: activations, too",
    )
    add(
        "--offload",
        choices=protocol.OFFLOADS,
        default="none",
        help="where layers wait that --weights-budget has no room for",
    )
    add("--weights-budget", metavar="SIZE", help="memory for each rank's weights, as 12GiB; with --offload")
    add(
        "--tensor-parallel",
        type=int,
        default=1,
        help="processes that share the weights, each on a GPU of its own if there are any",
    )
    add("--device", choices=DEVICES, default="auto", help="default: accelerators if there are any, else the CPU")
    add("--threads", type=int, help="CPU threads of the model")
    add(
        "--batch-invariant",
        action="store_true",
        help="the same numbers for a text, to the bit, whatever runs beside it",
    )
    add(
        "--kv-cache",
        choices=KV_CACHES,
        default="auto",
        help="how keys and values are kept: full, as the arithmetic is; fp16; auto: fp16 with quantised weights in fp32",
    )
    add(
        "--eager",
        action="store_true",
        help="on accelerators run each step operation by operation instead of replaying recorded ones",
    )
    add("--slots", type=int, default=16, help="texts that run at the same time (default: 16)")
    return found


def beams(options: argparse.Namespace) -> protocol.Beams | None:
    """None for choosing token by token. GLMError bad_request for options of the one given with the other."""
    given = {
        "--num-beams": options.num_beams is not None,
        "--length-penalty": options.length_penalty is not None,
        "--sampled-beams": options.sampled_beams,
        "--print-all-beams": options.print_all_beams,
    }
    if options.sampling_strategy != _BEAMS and not (
        options.sampling_strategy is None and options.num_beams is not None
    ):
        for flag in (flag for flag, present in given.items() if present):
            message = f"{flag} belongs to beam search: add --sampling-strategy {_BEAMS}."
            raise GLMError("bad_request", message, field=flag.strip("-").replace("-", "_"))
        return None
    plain = protocol.Beams(sampled=options.sampled_beams)
    count = plain.count if options.num_beams is None else options.num_beams
    penalty = plain.length_penalty if options.length_penalty is None else options.length_penalty
    return replace(plain, count=count, length_penalty=penalty)


def source(value: str) -> Path | str | None:
    """None for interactive, a Path for a file that exists, else the text itself."""
    if value == "interactive":
        return None
    if not value.strip():
        raise GLMError("bad_request", "--input-source is empty.", field="input_source")
    path = Path(value)
    try:
        if path.is_file():
            return path
    except (OSError, ValueError):  # too long for a name: a text
        return value
    if value.endswith(_FILE_ENDINGS) and not any(character.isspace() for character in value):
        raise GLMError("bad_request", f"There is no file {value}.", field="input_source")
    return value
