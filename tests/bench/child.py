"""Jobs in processes of their own, each of which prints what it measured as a line of JSON at its end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping


def printed(program: str, *arguments: str, environment: Mapping[str, str]) -> dict[str, float]:
    """What a program prints in its last line, run with further variables in its environment."""
    line = [sys.executable, "-W", "ignore", "-c", program, *arguments]
    done = subprocess.run(line, capture_output=True, text=True, env=os.environ | environment, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found
