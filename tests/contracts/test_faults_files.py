"""The kit is tested by faults: formats, runtimes and passes that are wrong in ways that real projects were."""

import functools
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests are no package; the faults lie beside them
from format_faults import FORMATS
from pass_faults import PASSES, Prune
from runtime_faults import RUNTIMES

from edgekit.testing import Profile, run_format_checks, run_pass_checks, run_runtime_checks
from edgekit.testing import formats as format_kit
from edgekit.testing import passes as pass_kit
from edgekit.testing import runtimes as runtime_kit

pytest.importorskip("tokenizers", reason="runtimes cut text with it; pip install 'edgekit-core[text]'")

FAST = Profile("quick", seeds=1, examples=5, rows=4)


def first_failure(kit, run, subject):
    for name in kit.KIT.checks:
        (result,) = run(subject, checks=[name], profile=FAST)
        if not result.ok:
            return result
    return None


@pytest.mark.parametrize("what", FORMATS)
def test_every_faulty_format_is_named(what):
    wrong, check, says = FORMATS[what]
    found = first_failure(format_kit, functools.partial(run_format_checks, suffix=""), wrong())
    assert found is not None, f"{what}: nobody noticed"
    assert found.check == check, found.message
    assert any(part in found.message for part in says.split("|")), found.message


def test_the_format_of_the_house_passes():
    assert [r.message for r in run_format_checks("hf", profile=FAST) if not r.ok] == []


@pytest.mark.parametrize("what", RUNTIMES)
def test_every_faulty_runtime_is_named(what):
    wrong, checks, says = RUNTIMES[what]
    found = first_failure(runtime_kit, run_runtime_checks, wrong.open)
    assert found is not None, f"{what}: nobody noticed"
    assert found.check in checks, found.message
    assert says in found.message


def test_the_runtime_of_the_house_passes():
    assert [r.message for r in run_runtime_checks("numpy", profile=FAST) if not r.ok] == []


@pytest.mark.parametrize("what", PASSES)
def test_every_faulty_pass_is_named(what):
    wrong, check = PASSES[what]
    found = first_failure(pass_kit, run_pass_checks, wrong())
    assert found is not None, f"{what}: nobody noticed"
    assert found.check == check, found.message


def test_a_right_pass_passes():
    assert [r.message for r in run_pass_checks(Prune(), profile=FAST) if not r.ok] == []
