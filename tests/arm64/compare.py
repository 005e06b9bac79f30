"""Run `prove.py` here and on an emulated ARM64, and compare what they print.

python tests/arm64/compare.py FOLDER
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from emulated import environment, prepare

PROVE = Path(__file__).parent / "prove.py"


def main() -> int:
    """Compare; gives 1 where a line differs."""
    folder = Path(sys.argv[1]).absolute()
    emulated = prepare(folder)
    here = subprocess.run([sys.executable, str(PROVE)], check=True, stdout=subprocess.PIPE, text=True).stdout
    there = subprocess.run(
        [*emulated, str(PROVE)], check=True, stdout=subprocess.PIPE, text=True, env=environment(folder)
    ).stdout
    print(there, end="")
    if here == there:
        print("the same on both processors")
        return 0
    print(f"on this processor instead:\n{here}", end="")
    return 1


if __name__ == "__main__":
    sys.exit(main())
