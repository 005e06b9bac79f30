"""What tests of the forward pass share: how far float32 lets results lie apart."""

import ctypes
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def rounding():
    """``rounding(config, values)``: how far logits (or states) may differ between two orders of summation.

    Which order BLAS takes depends on the processor and on the number of rows. A float32 product of n terms is then off
    by about sqrt(n) roundings of 2^-24, by more than four times that in one of thousands (Higham and Mary 2019, the
    probabilistic bound); there are seven products a layer and two in its attention, and one at the end, whose errors
    add up as random ones do. They are relative to the magnitude of what is summed, the largest of `values`. Measured
    over all families and five sets of OpenBLAS kernels: at most 0.28 of it.
    """

    def bound(config, values):
        products = 9 * config.layers + 1
        terms = max(config.width, config.ffn, config.heads * config.head_dim)
        return float(4 * np.sqrt(products * terms) * 2.0**-24 * np.abs(values).max())

    return bound


def pytest_report_header():
    """Which kernels numpy's BLAS uses here: float32 products are rounded otherwise by others."""
    return f"BLAS kernels: {blas_kernels()}"


def blas_kernels():
    """The name of the processor that numpy's OpenBLAS computes for, or that it is another library."""
    libraries = [*Path(np.__file__).parents[1].glob("numpy.libs/libscipy_openblas64_*")]
    if not libraries:
        return "not the OpenBLAS of numpy's wheels"
    name = ctypes.CDLL(str(libraries[0])).scipy_openblas_get_corename64_
    name.restype = ctypes.c_char_p
    return name().decode()
