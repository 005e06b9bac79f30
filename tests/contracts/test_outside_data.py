"""Data from outside the repository comes from the fixtures of `tests/conftest.py`, which skip where there is none."""

import os
import re
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
# In pieces, so that this file does not name them itself.
NAMES = re.compile(
    "EDGEKIT_TEST_" + "DATA|stories" + "260K|stories-" + "sample|wikitext2-" + r"test-head|shared\W+data"
)


def test_no_other_file_names_it():
    files = [path for path in TESTS.rglob("*.py") if "bench" not in path.parts]
    assert len(files) > 100
    naming = [str(path.relative_to(TESTS)) for path in files if NAMES.search(path.read_text("utf-8"))]
    assert naming == ["conftest.py"]


def test_without_it_tests_are_skipped_and_say_why(tmp_path):
    """A test of each fixture; one of them on the sample model too."""
    tests = tmp_path / "test_uses.py"
    tests.write_text("def test_a(stories, stories_text, wikitext): ...\ndef test_b(sample_text): assert sample_text\n")
    (tmp_path / "conftest.py").write_bytes((TESTS / "conftest.py").read_bytes())
    environment = {**os.environ, "EDGEKIT_TEST_" + "DATA": str(tmp_path / "nothing")}
    line = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", tests]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "1 passed, 1 skipped" in done.stdout
    assert "is not there; set EDGEKIT_TEST_" + "DATA to a folder" in done.stdout
