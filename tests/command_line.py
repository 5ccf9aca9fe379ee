"""Commands as a person types them: `run` in a process of their own; `call` in this one, seconds less each, for what ends before
anything is computed, such as help and mistakes. Each command has tests of the first kind beside those of the second."""

from __future__ import annotations

import contextlib
import io
import logging
import runpy
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent


def run(module: str, *arguments: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """`python -m MODULE ARGUMENTS`, at the root of the repository."""
    line = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT, timeout=timeout)


def call(module: str, *arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """The same here, in any thread; an exception that would be a traceback there is raised. What a command sets for the whole
    process is put back: threads, the log, the answer to SIGTERM."""
    out, err, line = io.StringIO(), io.StringIO(), [module, *map(str, arguments)]
    threads, on_termination = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    log, level = logging.root.handlers[:], logging.root.level
    argv, streams = sys.argv, sys.stdin
    sys.argv, sys.stdin = line[:], io.StringIO(stdin)
    status: object = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # runpy's, of modules that were imported before
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code
    finally:
        sys.argv, sys.stdin = argv, streams
        torch.set_num_threads(threads)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_termination)
        logging.root.handlers[:] = log
        logging.root.setLevel(level)
    if isinstance(status, str):  # sys.exit("a sentence")
        err.write(f"{status}\n")
        status = 1
    return subprocess.CompletedProcess(line, status or 0, out.getvalue(), err.getvalue())
