"""The fault table: fault, the check that named it, seconds; and the score. Exits with 1 below 95 %.

python tests/contracts/fault_table.py
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

HERE = Path(__file__).parent


def module(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    found = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = found
    spec.loader.exec_module(found)
    return found


plugin_faults = module(HERE / "plugin_faults.py")


def faults():
    """Pairs of role and fault, each with the names of the right checks, and what finds the first that fails."""
    arrays = module(HERE.parent / "core" / "test_testing_faults.py")
    files = module(HERE / "test_faults_files.py")
    for what, (quantizer, checks, _) in arrays.FAULTS.items():
        yield "quantizer", what, checks, partial(arrays.first_failure, quantizer)
    for what, (wrong, check, _) in files.FORMATS.items():
        run = partial(files.run_format_checks, suffix="")
        yield "format", what, {check}, partial(files.first_failure, files.format_kit, run, wrong())
    for what, (wrong, checks, _) in files.RUNTIMES.items():
        found = partial(files.first_failure, files.runtime_kit, files.run_runtime_checks, wrong.open)
        yield "runtime", what, checks, found
    for what, (wrong, check) in files.PASSES.items():
        yield "pass", what, {check}, partial(files.first_failure, files.pass_kit, files.run_pass_checks, wrong())
    for what, (written, checks, _) in plugin_faults.FAULTS.items():
        yield "plugin", what, {checks} if isinstance(checks, str) else set(checks), partial(in_a_folder, written)


def in_a_folder(written):
    """The first check that fails of a plugin that is on the path meanwhile."""
    with tempfile.TemporaryDirectory() as folder:
        sys.path.insert(0, folder)
        try:
            return plugin_faults.first_failure(plugin_faults.put(Path(folder), f"faulty{Path(folder).name}", **written))
        finally:
            sys.path.remove(folder)


def main() -> int:
    """Print a line for each fault, then the score."""
    right = total = 0
    for role, what, checks, find in faults():
        began = time.perf_counter()
        found = find()
        name, seconds = found.check if found else "(nobody noticed)", time.perf_counter() - began
        total, right = total + 1, right + (name in checks)
        print(f"{role:9}  {what:75}  {name:26}  {seconds:5.2f} s{'' if name in checks else '  WRONG CHECK'}")
    print(f"\n{right} of {total} faults named by the right check: {100 * right / total:.1f} %")
    return int(right < 0.95 * total)


if __name__ == "__main__":
    sys.exit(main())
