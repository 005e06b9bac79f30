"""Importance matrices that no calibration makes."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from edgekit.errors import InvalidFileError
from edgekit_gguf.imatrix import read_imatrix


def imatrix(path: Path, sums: list[float], count: float) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("imatrix")
    writer.add_tensor("blk.0.ffn_up.weight.in_sum2", np.array(sums, np.float32))
    writer.add_tensor("blk.0.ffn_up.weight.counts", np.array([count], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("count", [1e-45, 1e-38, 1e-30])
def test_a_count_near_zero_is_blamed_on_the_file(count: float, tmp_path: Path):
    path = imatrix(tmp_path / "i.gguf", [1e10, 2.0], count)
    with pytest.raises(InvalidFileError) as caught:
        read_imatrix(path)
    assert str(caught.value) == (
        f"{path}: blk.0.ffn_up.weight was counted {np.float32(count):g} times, which makes its importance infinite; "
        "get the file again"
    )


def test_small_sums_and_counts_that_give_a_mean(tmp_path: Path):
    found = read_imatrix(imatrix(tmp_path / "i.gguf", [1e-40, 0.5], 0.5))
    np.testing.assert_allclose(found["blk.0.ffn_up.weight"], [2e-40, 1.0], rtol=1e-4)
