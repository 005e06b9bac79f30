"""llama.cpp's importance matrix files.

| key or tensor           | value                                                                   |
|-------------------------|-------------------------------------------------------------------------|
| ``general.type``        | ``imatrix``                                                             |
| ``imatrix.datasets``    | names of the calibration texts                                          |
| ``imatrix.chunk_count`` | windows of the calibration text (u32)                                   |
| ``imatrix.chunk_size``  | tokens of a window (u32)                                                |
| ``<weight>.in_sum2``    | F32 [cols]: squared inputs of the matrix, summed over the tokens        |
|                         | F32 [experts, cols]: of a stack of experts, over the tokens of each     |
| ``<weight>.counts``     | F32 [1] or [experts, 1]: number of tokens                               |

The importance is ``in_sum2 / counts``, and 1 if the count is 0. llama.cpp does the same for an expert that no token
reached; here its row is 0, so that it can be counted: see `edgekit.quantize` for how it is encoded.

Source: ``tools/imatrix/imatrix.cpp`` (save_imatrix) and ``tools/quantize/quantize.cpp`` (load_imatrix) of llama.cpp,
as of llama-cpp-python 0.3.36.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgekit.errors import InvalidFileError, UsageError
from edgekit.evaluation.calibration import Activations
from edgekit.files.atomic import write_atomic
from edgekit.precision import find_precision
from edgekit.recipe import Assignment, Plan
from edgekit.tensor import AnyTensor
from edgekit.typing import F32
from edgekit_gguf.metadata import Value, text, texts, u32
from edgekit_gguf.reader import read
from edgekit_gguf.types import ALIGNMENT, BY_NAME
from edgekit_gguf.writer import encode_header

_SUMS, _COUNTS = ".in_sum2", ".counts"


def read_imatrix(path: Path) -> dict[str, F32]:
    """Return the importance, float32 [cols], by the name of the weight matrix; of a stack of experts [experts, cols].

    Raises:
        UsageError: another kind of GGUF file, or a file of the old kind, which is not GGUF.
        InvalidFileError: truncated, malformed, or with values that a sum of squares cannot have.
    """
    if path.is_file() and path.suffix in (".dat", ".imatrix"):
        raise UsageError(f"{path}: convert the old file first: llama-imatrix --in-file {path.name} -o imatrix.gguf")
    file = read(path)
    if file.metadata.get("general.type") != "imatrix":
        raise UsageError(f"{path}: a GGUF file, but no importance matrix; make one with `edgekit imatrix`")
    tensors = file.tensors()
    names = [name.removesuffix(_SUMS) for name in tensors if name.endswith(_SUMS)]
    return {name: _mean(name, tensors, path) for name in names}


def _mean(name: str, tensors: Mapping[str, AnyTensor], path: Path) -> F32:
    if name + _COUNTS not in tensors:
        raise InvalidFileError(f"{path}: {name} has sums and no counts; get the file again")
    sums, counts = (tensors[name + suffix].float32() for suffix in (_SUMS, _COUNTS))
    if counts.size != sums.shape[0]:
        raise InvalidFileError(f"{path}: {name} has {sums.shape[0]} rows and {counts.size} counts; get the file again")
    counts = counts.reshape(-1, 1)
    if not (np.isfinite(sums).all() and (sums >= 0).all() and np.isfinite(counts).all() and (counts >= 0).all()):
        raise InvalidFileError(f"{path}: {name} has negative or non-finite sums or counts; get the file again")
    reached = counts > 0
    with np.errstate(over="ignore"):  # counts are whole numbers; one near zero makes the mean infinite
        mean: F32 = (np.where(reached, sums, 0) / np.where(reached, counts, 1)).astype(np.float32)
    if not np.isfinite(mean).all():
        row = int(np.argmin(np.isfinite(mean).all(axis=1)))
        of_expert = f" of expert {row}" if len(mean) > 1 else ""
        raise InvalidFileError(
            f"{path}: {name}{of_expert} was counted {counts[row, 0]:g} times, which makes its importance infinite; "
            "get the file again"
        )
    if len(mean) > 1:
        return mean
    return mean[0] if reached.all() else np.ones(sums.size, np.float32)


def write_imatrix(path: Path, activations: Activations, dataset: str = "") -> None:
    """Write a file that llama.cpp's ``llama-quantize --imatrix`` reads, and `read_imatrix`.

    Raises:
        ResourceError, LockedError: the target cannot be written.
    """
    values: dict[str, F32] = {}
    for name, sums in sorted(activations.sums.items()):
        values[name + _SUMS] = sums.astype(np.float32)
        counts = activations.counts.get(name)
        values[name + _COUNTS] = np.array([activations.tokens] if counts is None else counts[:, None], np.float32)
    float32 = find_precision("float:F32")
    plan = Plan("imatrix", tuple(Assignment(name, name, v.shape, float32, "a sum") for name, v in values.items()))
    header = encode_header(_metadata(activations, dataset), plan, [BY_NAME["F32"]] * len(plan))
    write_atomic(path, header + b"".join(map(_padded, values.values())))


def _metadata(activations: Activations, dataset: str) -> dict[str, Value]:
    return {
        "general.type": text("imatrix"),
        "imatrix.datasets": texts([dataset]),
        "imatrix.chunk_count": u32(activations.tokens // activations.context),
        "imatrix.chunk_size": u32(activations.context),
    }


def _padded(values: F32) -> bytes:
    data = values.astype("<f4").tobytes()
    return data + bytes(-len(data) % ALIGNMENT)


__all__ = ["read_imatrix", "write_imatrix"]
