"""What each command of the README takes: processor time and time by the clock, start-up included.

python tests/bench/commands.py [--quick]
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

README = Path(__file__).parents[2] / "README.md"
SECTION = "## From the command line"
ROUNDS = 3


def commands() -> list[str]:
    """The commands of the README's section, in order; later ones use what earlier ones make."""
    block = re.search(r"```console\n(.*?)```", README.read_text("utf-8").split(SECTION)[1], re.DOTALL)
    assert block is not None, f"{README} has no commands under {SECTION!r}"
    return [line.removeprefix("$ ") for line in block[1].splitlines() if line.startswith("$ ")]


def report(quick: bool) -> Iterator[str]:
    """Medians of three runs; of the demo, which is the first, one."""
    yield "| command | processor s | s by the clock |"
    yield "|---|---|---|"
    with tempfile.TemporaryDirectory() as folder:
        for number, command in enumerate(commands()):
            runs = [cost(command, folder) for _ in range(1 if quick or not number else ROUNDS)]
            processor, clock = (median(column) for column in zip(*runs, strict=True))
            yield f"| `{command}` | {processor:.1f} | {clock:.1f} |"


def cost(command: str, folder: str) -> tuple[float, float]:
    """Seconds of a processor and by the clock, of the command and of what it starts; it has to succeed."""
    program, *arguments = shlex.split(command)
    assert program == "edgekit", command
    before, start = os.times(), time.monotonic()
    line = [sys.executable, "-m", program, *arguments, *(["--force"] if "--to" in arguments else [])]
    subprocess.run(line, cwd=folder, check=True, capture_output=True)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return used, time.monotonic() - start


if __name__ == "__main__":
    print(*report("--quick" in sys.argv), sep="\n")
