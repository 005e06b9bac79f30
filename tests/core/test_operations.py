"""The conformance kit of operations: numpy's pass their own checks, and a wrong one fails."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.architectures import FAMILIES
from edgekit.architectures.blocks import calls
from edgekit.architectures.numpy_ops import NumpyOps
from edgekit.architectures.ops import OPERATIONS, refuse_missing
from edgekit.errors import UnsupportedModelError
from edgekit.testing._trips import small_config
from edgekit.testing.operations import OpsSubject, numpy_compute, ops_checks, run_ops_checks

NUMPY = OpsSubject("numpy", OPERATIONS, numpy_compute)


@ops_checks(NUMPY)
def test_numpy_has_every_operation(check):
    check()


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_wrong_operation_is_found(operation):
    right = getattr(NumpyOps, operation)

    def wrong(self, *arguments, **named):
        found = right(self, *arguments, **named)
        return tuple(x * 1.001 for x in found) if isinstance(found, tuple) else _scaled(found)

    def compute(program, weights, steps):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(NumpyOps, operation, wrong)
            return numpy_compute(program, weights, steps)

    (result,) = run_ops_checks(OpsSubject("wrong", OPERATIONS, compute), checks=[f"check_{operation}"])
    assert result.status == "failed"
    assert f"wrong, check_{operation}: {operation}, " in result.message


def _scaled(x):
    return [each * np.float32(1.001) for each in x] if isinstance(x, list) else x * np.float32(1.001)


def test_what_is_lacking_is_skipped():
    (result,) = run_ops_checks(OpsSubject("small", ("embed",), numpy_compute), checks=["check_scan"])
    assert (result.status, result.message) == ("skipped", "it has no operation scan")


def test_a_runtime_that_lacks_an_operation_says_so_with_mixer_and_family():
    used = calls(FAMILIES["llama"].network(small_config()))
    refuse_missing(used, OPERATIONS, "llama", "small")
    with pytest.raises(UnsupportedModelError) as caught:
        refuse_missing(used, set(OPERATIONS) - {"rotate"}, "llama", "small")
    assert str(caught.value) == (
        "runtime small cannot run llama models: their attention needs the operation rotate, which it lacks; "
        "use runtime numpy, or llamacpp with a GGUF file"
    )
