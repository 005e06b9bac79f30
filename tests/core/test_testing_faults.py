"""The kit is tested by faults: the first check that fails names what is wrong with a quantizer."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests are no package; the faults lie beside them
from quantizer_faults import AFFINE, ASYM, Faulty, right
from quantizer_faults_outside import FAULTS

from edgekit.testing import Profile, run_quantizer_checks
from edgekit.testing._process import _restored
from edgekit.testing.quantizers import KIT

FAST = Profile("quick", seeds=1, examples=10, rows=4)


def first_failure(quantizer):
    """The first check that fails, as `edgekit verify` would name it."""
    for name in KIT.checks:
        (result,) = run_quantizer_checks(quantizer, checks=[name], profile=FAST)
        if not result.ok:
            return result
    return None


@pytest.mark.parametrize("what", FAULTS)
def test_every_fault_is_named_by_the_right_check(what):
    quantizer, checks, says = FAULTS[what]
    found = first_failure(quantizer)
    assert found is not None, f"{what}: nobody noticed"
    assert found.check in checks, found.message
    assert says in found.message
    assert getattr(quantizer.precision, "name", quantizer.precision) in found.message
    assert found.check in found.message


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Some faults write where they are, and some leave settings behind, which processes of later tests would inherit."""
    monkeypatch.chdir(tmp_path)
    with _restored():
        yield


def test_there_are_faults_enough():
    assert len(FAULTS) >= 40


@pytest.mark.parametrize("precision", [AFFINE, ASYM, "ggml:Q4_0", "mlx:int4-g32"])
def test_the_right_quantizer_passes(precision):
    found = run_quantizer_checks(Faulty(right, precision), profile=FAST)
    assert [result.message for result in found if not result.ok] == []
    assert sum(result.status == "passed" for result in found) >= 20
