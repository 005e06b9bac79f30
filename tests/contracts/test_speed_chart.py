"""The fast path's table and picture are made of the benchmark's report, and that report holds what was promised."""

import importlib.util
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("chart", Path(__file__).parents[1] / "bench" / "chart.py")
chart = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(chart)

#: Times ggml's own speed, one thread against one, on AVX-512; half of that on AVX2.
MARKS = {"Q4_K": 8, "Q5_K": 8, "Q6_K": 6, "Q2_K": 6, "Q3_K": 3, "Q8_0": 8, "Q4_0": 2}


@pytest.fixture(scope="module")
def found():
    return chart.ratios(chart.SOURCE.read_text("utf-8"))


def test_table_and_picture_are_current(found):
    cure = "run python tests/bench/chart.py"
    assert chart.TABLE.read_text("utf-8") == chart.table(found), cure
    assert chart.PICTURE.read_text("utf-8") == chart.picture(found), cure


@pytest.mark.parametrize("kind", MARKS)
def test_the_published_run_reached_the_marks(kind, found):
    """Of the run that the documentation quotes; `nox -s bench` measures another."""
    assert found["AVX-512"][kind][2] >= MARKS[kind]
    assert found["two threads"][kind][2] >= MARKS[kind]
    assert found["AVX2"][kind][2] >= MARKS[kind] / 2
