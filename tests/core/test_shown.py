"""What a notebook and a prompt show: reprs, tables in HTML, shares of the error, progress."""

import contextlib
import math
import os
import subprocess
import sys
from html.parser import HTMLParser

import attrs
import numpy as np
import pytest

import edgekit as ek
from edgekit import sample
from edgekit.errors import UsageError
from edgekit.evaluation import Evaluation
from edgekit.precision import find_precision
from edgekit.recipe import Assignment, Plan

RECIPE = "affine:int4-sym-g32"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return ek.quantize(sample.path(), RECIPE, to=tmp_path_factory.mktemp("shown") / "small")


@pytest.fixture(scope="module")
def compared(small):
    return ek.compare(sample.path(), small)


@pytest.fixture(scope="module")
def encoded():
    values = np.random.default_rng(0).standard_normal((4, 64), np.float32)
    return attrs.evolve(ek.encode(values, RECIPE), name="blk.0.x")


PLAN = Plan("mine", (Assignment("a.weight", "a.weight", (2, 32), find_precision("Q8_0"), "weight matrix"),))


class Cells(HTMLParser):
    """The text of each cell, row by row; other text apart. Unbalanced tags are an error."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.others, self.open = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        (self.rows[-1] if self.open[-1] in ("td", "th") else self.others).append(data)


def shown(thing):
    return Cells(thing._repr_html_())


def test_reprs_fit_a_line(small, compared, encoded):
    assert repr(small) == f"Artifact({str(small.path)!r}, hf, {len(small.tensors)} tensors)"
    assert repr(encoded) == "QuantizedTensor('blk.0.x', affine:int4-sym-g32, 4 × 64, 5.000 bits a weight, by reference)"
    assert repr(PLAN) == "Plan(mine: 1 tensors, 8.500 bits a weight)"
    assert repr(Evaluation(12.5, 100, 512)) == "Evaluation(perplexity=12.5, tokens=100, context=512)"
    assert repr(compared).startswith("Comparison('model', 'small', ")
    assert repr(compared).endswith(f", relative_rms={compared.relative_rms:.6f}, {len(compared.tensors)} tensors)")


def test_tables_say_what_the_objects_hold(small, compared, encoded):
    assert shown(PLAN).rows == [
        ["tensor", "shape", "precision", "reason"],
        ["a.weight", "2 × 32", "ggml:Q8_0", "weight matrix"],
    ]
    parts = {row[0]: row[1:] for row in shown(encoded).rows[1:]}
    assert parts == {
        n: [" × ".join(map(str, p.shape)), str(p.dtype), f"{p.nbytes:,}"] for n, p in encoded.parts.items()
    }
    table = shown(compared)
    assert table.rows[0] == ["tensor", "precision", "relative RMS", "max error", "SNR dB", "share"]
    assert [row[0] for row in table.rows[1:]] == [error.name for error in compared.tensors][:60]
    assert [row[0] for row in shown(small).rows[1:]] == list(small.tensors)[:60]
    assert shown(Evaluation(12.5, 100, 512)).rows[1:] == [["perplexity", "12.5"], ["tokens", "100"], ["context", "512"]]


def test_long_tables_say_how_much_is_left_out():
    plan = Plan("long", PLAN.assignments * 75)
    table = shown(plan)
    assert len(table.rows) == 1 + 60
    assert table.others[-1] == "… and 15 more rows"


def test_names_from_a_file_are_text_in_html():
    name = "<script>alert('x')</script>&"
    plan = Plan(name, (attrs.evolve(PLAN.assignments[0], name=name, reason=name),))
    table = shown(plan)
    assert table.rows[1][0] == name
    assert "<script" not in plan._repr_html_()


def test_shares_of_the_error_add_up(compared):
    shares = [error.share for error in compared.tensors]
    assert math.fsum(shares) == pytest.approx(1)
    assert all(0 <= share <= 1 for share in shares)
    exact = ek.compare(sample.path(), sample.path())
    assert {error.share for error in exact.tensors} == {0.0}


def test_a_share_is_the_tensors_squared_error_over_all(small, compared):
    source, written = ek.open(sample.path()).model.tensors, small.model.tensors
    squares = {
        name: float(np.sum((source[name].float32().astype(np.float64) - written[name].float32()) ** 2))
        for name in (error.name for error in compared.tensors)
    }
    whole = sum(squares.values())
    for error in compared.tensors:
        assert error.share == pytest.approx(squares[error.name] / whole, rel=1e-9)


def test_by_error_puts_the_largest_share_first(compared):
    every, first = compared.by_error(), compared.by_error(3)
    assert [e.share for e in every.tensors] == sorted((e.share for e in compared.tensors), reverse=True)
    assert set(every.tensors) == set(compared.tensors)
    assert first.tensors == every.tensors[:3]
    assert (first.relative_rms, first.baseline) == (compared.relative_rms, compared.baseline)
    assert f"{first.tensors[0].share:6.1%}" in str(first).splitlines()[6]
    with pytest.raises(UsageError, match=r"^top 0; choose 1 or more$"):
        compared.by_error(0)


def test_true_draws_progress_on_stderr(tmp_path, capfd):
    ek.convert(sample.path(), tmp_path / "copy", progress=True)
    ek.compare(sample.path(), tmp_path / "copy", np.arange(40) % 7, progress=True)
    out, err = capfd.readouterr()
    count = len(ek.open(sample.path()).tensors)
    assert out == ""
    assert f"quantize: {count}/{count}" in err
    assert "compare: 0/" in err


def test_false_and_none_draw_nothing(tmp_path, capfd):
    for number, value in enumerate((False, None)):
        ek.convert(sample.path(), tmp_path / str(number), progress=value)
    assert capfd.readouterr() == ("", "")


BAR = """
import time
from edgekit.pipeline._progress import bar
with bar("work") as report:
    report(1, 2, "half")
    time.sleep(0.5)
"""


def test_a_terminal_gets_a_bar():
    pytest.importorskip("rich", reason="the bar is rich's; pip install 'edgekit-core[progress]'")
    pty = pytest.importorskip("pty", reason="this system has no pseudo-terminals")
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen([sys.executable, "-c", BAR], stderr=theirs, stdout=subprocess.PIPE, env=environment)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the other side is closed
        while part := os.read(ours, 4096):
            shown += part
    os.close(ours)
    assert process.communicate() == (b"", None)
    assert process.returncode == 0
    assert "work half" in shown.decode()
    assert "━" in shown.decode()
