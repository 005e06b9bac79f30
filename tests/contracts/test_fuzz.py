"""Some damaged models and files; `nox -s fuzz` tries as many as there is time for, `nox -s tests` 50,000 files."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tokenizers", reason="text is cut with it; pip install 'edgekit-core[text]'")


def _program(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


_program("damage")  # which the other imports
fuzz = _program("fuzz")

MODELS = 200
#: A short form: `nox -s tests` also runs `fuzz_readers.py`, with 50,000.
FILES = 3_000


def test_damaged_models_give_a_result_or_a_typed_error(tmp_path):
    count, seen, wrong = fuzz.fuzz(tmp_path, 2026, lambda count: count < MODELS)
    assert not wrong, "\n\n".join(wrong)
    assert count == MODELS
    # Damage that everything survived, or that nothing did, would show nothing.
    assert MODELS / 2 < seen.total() < 7 * MODELS
    assert {"InvalidFileError", "UnsupportedModelError", "NonFiniteError"} <= set(seen)


PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import fuzz_readers
from pathlib import Path
seen, wrong = fuzz_readers.fuzz(Path(sys.argv[2]), 2027, range(int(sys.argv[3])))
for name, found in seen.items():
    total = found.total()
    # Damage that everything survived, or that nothing did, would show nothing.
    assert 0 < found[""] < 0.9 * total, (name, found)
    assert found["InvalidFileError"] > 0.1 * total, (name, found)
print(len(seen), "kinds")
sys.exit(chr(10).join(wrong) or None)
"""


def test_damaged_files_give_a_result_or_a_typed_error_within_limits(tmp_path):
    """In a process of its own: one that has loaded less has less that could be reused unseen by a limit on memory."""
    command = [sys.executable, "-W", "error", "-c", PROGRAM, str(Path(__file__).parent), str(tmp_path), str(FILES)]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=500)
    assert done.returncode == 0, done.stderr[-5000:]
    assert int(done.stdout.split()[0]) >= 5  # the kinds of the core, and those of the plugins that are there
