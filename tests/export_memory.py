"""How much memory an export takes: `peak(database, file, options)` runs `python -m storage export` in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
# The peak of the process's resident memory goes to the error output, in KiB. (The one of getrusage is inherited from the parent.)
PROGRAM = (
    "import re, sys\n"
    "from storage.__main__ import main\n"
    "status = main(sys.argv[1:])\n"
    "sys.stderr.write(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
    "sys.exit(status)\n"
)


def peak(database: Path, file: Path, *options: str) -> tuple[int, int]:
    """(runs, MiB that the export took at most); the file and its manifest are checked and removed."""
    line = [sys.executable, "-c", PROGRAM, "export", str(file), "--quiet", *options]
    environment = {**os.environ, "GLM_DATABASE": str(database)}
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    manifest = file.with_name(f"{file.name}.manifest.json")
    counts = json.loads(manifest.read_text())
    assert counts["bytes"] == file.stat().st_size
    file.unlink()
    manifest.unlink()
    return counts["runs"], int(done.stderr) >> 10
