"""The kit itself: the three ways to drive it, expected failures, unknown names, strategies, its messages."""

import importlib
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st

import edgekit.testing
from edgekit import encode
from edgekit.errors import UsageError
from edgekit.precision import find_precision
from edgekit.precision._registry import FAMILIES
from edgekit.reference import Traits, reference
from edgekit.testing import (
    CheckFailure,
    Profile,
    _promises,
    formats,
    passes,
    plugins,
    quantizer_checks,
    quantizers,
    run_quantizer_checks,
    runtimes,
    strategies,
)
from edgekit.testing._samples import KINDS, draw, samples
from edgekit.testing._trips import small_config
from edgekit.testing.models import random_model

FAST = Profile("quick", seeds=1, examples=5, rows=3)
INT4 = find_precision("affine:int4-sym-g32")
ALL = [precision for family in FAMILIES.values() for precision in family.catalogue()]


class Right:
    precision, claim, traits = INT4, "exact", Traits()

    def encode(self, x, importance=None):
        return reference(INT4).encode(x, INT4, importance)


class HalfAway(Right):
    """Rounds ties away from zero."""

    def encode(self, x, importance=None):
        parts = super().encode(x)
        if x.shape[1] % 32:
            return parts
        groups = x.reshape(len(x), -1, 32)
        with np.errstate(all="ignore"):
            q = np.nan_to_num(groups / parts["scale"][..., None])
        codes = (np.clip(np.trunc(q + np.copysign(0.5, q)), -7, 7) + 8).astype(np.uint8).reshape(x.shape)
        return {**parts, "codes": codes[:, ::2] | codes[:, 1::2] << 4}


@quantizer_checks(Right(), profile=FAST)
def test_the_decorator_runs_every_check(check):
    check()


def run_pytest(folder, body):
    file = folder / "test_it.py"
    file.write_text(textwrap.dedent(body))
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", str(file)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False).stdout


def test_expected_failures_are_strict_in_pytest(tmp_path):
    said = run_pytest(
        tmp_path,
        """
        import edgekit.testing
        from edgekit.testing import Profile
        from edgekit.reference import Traits, reference
        from edgekit.precision import Precision, find_precision
        P = find_precision("affine:int4-sym-g32")
        class Q:
            precision, claim, traits = P, "exact", Traits()
            def encode(self, x, importance=None):
                parts = reference(P).encode(x, P)
                return {**parts, "scale": parts["scale"] * 2}
        expected = {"check_exact": "doubles its scale", "check_parts": "does not fail", "check_decoding": "no decode"}
        @edgekit.testing.quantizer_checks(Q(), profile="quick", checks=[*expected, "check_zeros"],
                                          expected_failures=expected)
        def test_q(check):
            check()
        """,
    )
    assert "XFAIL" in said
    assert "FAILED test_it.py::test_q[check_parts]" in said
    assert "FAILED test_it.py::test_q[check_decoding]" in said  # what does not apply cannot be expected to fail
    assert "FAILED test_it.py::test_q[check_zeros]" in said
    assert "3 failed, 1 xfailed" in said


def test_expected_failures_are_strict_in_a_plain_call():
    found = {r.check: r for r in run_quantizer_checks(HalfAway(), profile=FAST, expected_failures={
        "check_ties": "rounds half away", "check_parts": "why not"}, checks=["check_ties", "check_parts"])}  # fmt: skip
    assert (found["check_ties"].status, found["check_ties"].message) == ("expected failure", "rounds half away")
    assert found["check_parts"].status == "unexpected pass"
    assert not found["check_parts"].ok
    assert found["check_ties"].ok


@pytest.mark.parametrize("where", ["checks", "expected_failures"])
def test_an_unknown_check_is_an_error(where):
    names = ["check_tyes"] if where == "checks" else {"check_tyes": "a reason"}
    with pytest.raises(UsageError, match=r"no check of quantizers is called 'check_tyes'; did you mean check_ties"):
        quantizer_checks(Right(), **{where: names})


def test_an_expected_failure_wants_a_reason():
    with pytest.raises(UsageError, match="state a measured reason"):
        run_quantizer_checks(Right(), expected_failures={"check_ties": " "})


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (object(), "object has no method encode"),
        (type("Q", (), {"encode": lambda self, x: x})(), "does not say which precision it encodes"),
        (type("Q", (), {"encode": lambda self, x: x, "precision": INT4})(), "claims nothing"),
        (
            type("Q", (), {"encode": lambda self, x: x, "precision": INT4, "claim": "exact"})(),
            "does not state its traits",
        ),
    ],
)
def test_what_is_no_quantizer_is_refused(thing, message):
    with pytest.raises(UsageError, match=message):
        run_quantizer_checks(thing)


def test_the_plain_call_imports_no_pytest():
    code = (
        "import sys; from edgekit.testing import run_quantizer_checks as run; "
        "found = run('affine:int4-sym-g32', profile='quick'); "
        "print(len(found), [r for r in found if not r.ok], 'pytest' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split(maxsplit=1)[1].strip() == "[] False"
    assert int(done.stdout.split()[0]) >= 25


def test_the_message_names_everything():
    (found,) = run_quantizer_checks(HalfAway(), profile=FAST, checks=["check_ties"])
    first, *lines = found.message.splitlines()
    assert first.startswith("quantizer 'HalfAway' (affine:int4-sym-g32), check_ties: it claims exact, and its bytes")
    assert "part 'codes'" in first
    assert "rounding" in first
    assert "smallest block [1, 32]" in lines[0]
    assert any("expected" in line for line in lines)
    assert any("actual" in line for line in lines)
    shown = lines[0].partition(": ")[2]
    assert shown.count(" 0") >= 8, shown  # shrunk: what does not matter is zero


def test_a_check_that_raises_names_the_quantizer():
    class Broken(Right):
        def encode(self, x, importance=None):
            raise IndexError("list index out of range")

    (found,) = run_quantizer_checks(Broken(), checks=["check_parts"], profile=FAST)
    assert found.message == (
        "quantizer 'Broken' (affine:int4-sym-g32), check_parts: it raised IndexError: list index out of range"
    )


ELSEWHERE = """
import edgekit as ek
from edgekit.reference import Traits

class Seeded:
    precision, claim, traits = "affine:int8-sym-g32", "exact", Traits()

    def encode(self, x, importance=None):
        parts = dict(ek.encode(x, self.precision, backend="reference").parts)
        if {WHEN}:
            parts["scale"] = parts["scale"] * 2
        return parts
"""


@pytest.mark.parametrize(
    ("when", "status"), [("False", "passed"), ("__import__('os').environ.get('PYTHONHASHSEED') == '1234'", "failed")]
)
def test_another_process_gives_the_same_bytes(tmp_path, monkeypatch, when, status):
    name = f"elsewhere_{status}"
    (tmp_path / f"{name}.py").write_text(ELSEWHERE.replace("{WHEN}", when))
    monkeypatch.syspath_prepend(str(tmp_path))
    quantizer = importlib.import_module(name).Seeded()
    (found,) = run_quantizer_checks(quantizer, checks=["check_processes"], profile="default")
    assert found.status == status, found.message
    assert status == "passed" or "another hash seed, encodes otherwise: part 'scale'" in found.message


def test_what_cannot_be_sent_to_another_process_is_skipped():
    local = type("Local", (Right,), {})
    (found,) = run_quantizer_checks(local(), checks=["check_processes"], profile="default")
    assert found.status == "skipped"
    assert found.message.startswith("it cannot be sent to another process (")


@pytest.mark.parametrize("module", [formats, passes, plugins, quantizers, runtimes])
def test_every_check_is_described(module):
    for name, check in module.KIT.checks.items():
        assert name.startswith("check_")
        assert len(check.summary) > 20, name


def test_the_public_names_are_there():
    for name in edgekit.testing.__all__:
        assert getattr(edgekit.testing, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'quantiser_checks'"):
        _ = edgekit.testing.quantiser_checks


def test_samples_are_the_same_everywhere():
    """The first bytes of every label, so that a check that failed yesterday fails today."""
    for family in KINDS.values():
        for label in family:
            x = draw(label, 3, (2, 64))
            assert (x.dtype, x.shape) == (np.float32, (2, 64))
            assert np.isfinite(x).all()
            np.testing.assert_array_equal(x, draw(label, 3, (2, 64)))
    assert draw("normal", 0, (1, 2)).view(np.uint32).tolist() == [[3208974682, 1059118628]]


@pytest.mark.parametrize("precision", ALL[:: max(1, len(ALL) // 60)], ids=str)
def test_what_a_format_promises_its_reference_keeps(precision):
    names = ["check_idempotent", "check_signs", "check_order"]
    found = run_quantizer_checks(precision.name, checks=names, profile=FAST)
    assert [r.message for r in found if not r.ok] == []
    promised = [_promises.idempotent(precision), _promises.signs(precision), _promises.order(precision)]
    assert [r.status == "passed" for r in found] == promised_in_order(found, promised)


def promised_in_order(found, promised):
    by_name = dict(zip(["check_idempotent", "check_signs", "check_order"], promised, strict=True))
    return [by_name[r.check] for r in found]


@pytest.mark.parametrize("precision", ["ggml:Q4_0", "affine:int4-asym-g32", "mlx:int8-g64"])
def test_ties_are_ties(precision):
    """Some values lie exactly half way: the two roundings give different codes for them."""
    found = find_precision(precision)
    drawn = [s.x for s in samples(found, "ties", 6, 2)]
    assert len(drawn) >= 8
    halves = sum(int((np.abs(x * 2 % 2) == 1).sum()) for x in drawn)
    assert halves > 100


# Strategies.


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_drawn_tensors_fit_their_precision(data):
    precision = data.draw(st.sampled_from(["ggml:Q4_K", "affine:int3-asym-g7", "olive:int4-sym-channel"]))
    x = data.draw(strategies.tensors(precision))
    assert x.dtype == np.float32
    assert np.isfinite(x).all()
    assert x.flags.c_contiguous
    block = find_precision(precision).block
    assert precision != "ggml:Q4_K" or x.shape[1] % block == 0


@settings(max_examples=25, deadline=None)
@given(strategies.ties("ggml:Q8_0"), strategies.adversarial_blocks("ggml:Q4_0"))
def test_ties_and_blocks_are_rows(ties, block):
    assert ties.shape[1] % 32 == 0
    assert block.shape == (1, 32)


@settings(max_examples=10, deadline=None)
@given(strategies.weights_like(random_model(small_config())), strategies.recipes(), strategies.artifacts())
def test_weights_recipes_and_artifacts(weights, recipe, artifact):
    name, x = weights
    assert x.shape[1] in (64, 32)
    assert name.endswith(".weight")
    assert recipe.name == recipe.precision.name
    assert set(artifact.model.tensors) >= {"token_embd.weight", "blk.0.attn_q.weight"}


def test_a_fault_shrinks_to_one_small_block():
    """Zeros, and the single value that shows the fault."""

    def shows(x):
        return bool((x == np.float32(2.5)).any())

    chosen = settings(max_examples=2000, database=None, derandomize=True)
    small = find(strategies.adversarial_blocks(INT4), shows, settings=chosen)
    assert small.shape == (1, 32)
    assert np.count_nonzero(small) == 1


def test_failures_are_assertion_errors():
    assert issubclass(CheckFailure, AssertionError)


TEST_OF_A_PLUGIN = """
import edgekit as ek
import edgekit.testing
from edgekit.reference import Traits

class Swapped:
    precision, claim, traits = "onnx:int4-sym-g32", "exact", Traits()

    def encode(self, x, importance=None):
        parts = dict(ek.encode(x, self.precision, backend="reference").parts)
        parts["B"] = parts["B"] << 4 | parts["B"] >> 4
        return parts

class Crashing(Swapped):
    def encode(self, x, importance=None):
        return self.native(x)

    def native(self, x):
        raise OSError("no such kernel")

@edgekit.testing.quantizer_checks(Swapped(), checks=["check_exact"], profile="quick")
def test_swapped(check):
    check()

@edgekit.testing.quantizer_checks(Crashing(), checks=["check_parts"], profile="quick")
def test_crashing(check):
    check()
"""


def test_a_failing_check_prints_the_block_and_no_frame_of_the_kit(tmp_path):
    (tmp_path / "test_mine.py").write_text(TEST_OF_A_PLUGIN)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path]
    plain = {
        name: value for name, value in os.environ.items() if name not in ("CI", "BUILD_NUMBER")
    }  # else pytest adds
    shown = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=plain).stdout
    assert "smallest block [1, 32]" in shown
    assert "expected 88 88" in shown
    assert "part 'B': the two codes of every byte are swapped" in shown
    assert 'raise OSError("no such kernel")' in shown  # the subject's own frame
    assert "it raised OSError: no such kernel" in shown
    frames = [line for line in shown.splitlines() if ".py:" in line]
    assert frames
    assert not [line for line in frames if "edgekit" in line.partition(".py:")[0]]
    assert len(shown.splitlines()) < 60


@pytest.mark.parametrize(
    "precision", ["ggml:Q8_0", "ggml:Q4_K", "openvino:int4-asym-g32", "mlx:mxfp4", "float:F16", INT4]
)
def test_strategies_draw_what_encode_accepts(precision):
    drawn = strategies.tensors(precision) | strategies.ties(precision) | strategies.adversarial_blocks(precision)

    @settings(max_examples=150, database=None, derandomize=True, deadline=None)
    @given(drawn)
    def accepted(x):
        assert encode(x, precision).shape == x.shape

    accepted()


def test_recipes_draw_precisions_that_encode():
    @settings(max_examples=60, database=None, derandomize=True, deadline=None)
    @given(strategies.recipes())
    def encodes(recipe):
        cols = recipe.precision.block or 32
        assert (
            encode(np.ones((2, cols), np.float32), recipe.precision, backend="reference").precision == recipe.precision
        )

    encodes()


PAGES = Path(__file__).parents[2] / "docs" / "reference" / "checks"


@pytest.mark.skipif(not PAGES.exists(), reason="the documentation is not beside the tests")
@pytest.mark.parametrize("module", [formats, passes, plugins, quantizers, runtimes])
def test_every_check_has_a_section_in_the_docs(module):
    """Generated from its docstring; `docs/generate.py --check` says whether they are current."""
    page = (PAGES / f"{module.KIT.role}.md").read_text("utf-8")
    assert re.findall(r"^## (\w+)$", page, re.MULTILINE) == list(module.KIT.checks)
