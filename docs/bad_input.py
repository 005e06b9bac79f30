"""The page on bad input: every pathology, given to every precision, and what became of it."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np

import edgekit
from edgekit.precision import Precision, catalogue

Array = np.ndarray
_RNG = np.random.default_rng(3)
_ROWS = _RNG.standard_normal((2, 512)).astype(np.float32)

INTRODUCTION = """\
One outcome for each pathology, the same for every convention unless the format itself forbids it. This table was made
by giving each to every precision of the catalogue; a figure says how many, where a convention's precisions differ.

- *same bytes*: the bytes of the plain array.
- *encoded*: the bytes that the framework gives; no decoded value is NaN, and none is infinite.
- An error is refused input; it names the tensor and the cure, and nothing is written.

`edgekit.quantize(..., nonfinite="keep")` leaves a tensor with NaN or infinity in float and says so in the manifest.
`edgekit.encode(..., strict=False)` gives the framework's bytes for infinities and for scales that overflow too,
whatever they decode to; NaN stays refused.
"""

EXCEPTIONS = """\
## What the frameworks do, and edgekit with them

Bytes are the contract, so a framework's own defects are reproduced where their outcome is a number. Each is pinned by a
strict expected failure in `tests/oracles`.

- MLX stores the exponents of `mxfp4` and `mxfp8` modulo 256: groups below 2^-127 times the largest element decode to
  huge values, in `mxfp8` to infinities. Where that would be NaN (exponent -128) the tensor is refused as too small.
- MLX multiplies in the source's type: a float16 group that spans more than 65,504 may decode to infinities.
- Next to the largest float32 a decoded value may be infinite: a microscaling element times its scale is 2^128, and
  a code times a rounded scale may be as much.
- MLX's `nvfp4` has no scale for the tensor: values beyond 2,688 are cut off, and from 2^25 * 448 on lost: refused.
- OpenVINO, NNCF: a scale below 2^-24 rounds to a float16 subnormal or zero, so tiny groups lose precision or vanish.
- OpenVINO's CPU plugin takes the scales of `mxfp4` and `mxfp8` through float16: from 2^16 on they are infinite there,
  below 2^-24 they vanish. The stored bytes hold them, and edgekit decodes what is stored.
- ggml's `NVFP4` has no scale for the tensor: groups below 6 * 2^-10 become zeros, values beyond 2,688 are cut off.
"""


def pathologies() -> Iterator[tuple[str, Callable[[Precision], Array]]]:
    """Name, and what makes the array for a precision."""
    yield "NaN", lambda p: _with(np.nan)
    yield "infinity", lambda p: _with(-np.inf)
    yield "float64 beyond float32", lambda p: _ROWS.astype(np.float64) * 1e40
    yield "0-d", lambda p: np.float32(1).reshape(())
    yield "empty", lambda p: np.empty((0, 512), np.float32)
    yield "integers", lambda p: np.ones((2, 512), np.int32)
    yield "rows that the block does not divide", lambda p: _ROWS[:, :511]
    yield "not contiguous", lambda p: np.asfortranarray(_ROWS)
    yield "byte-swapped", lambda p: _ROWS.astype(">f4")
    yield "read-only", lambda p: _readonly()
    yield "memory-mapped", lambda p: _mapped()
    yield "zeros of both signs", lambda p: np.where(_ROWS > 0, np.float32(0), np.float32(-0.0))
    yield "a constant", lambda p: np.full_like(_ROWS, 0.1)
    yield "±65,504, the largest float16", lambda p: np.sign(_ROWS) * np.float32(65504)
    yield "±1e9", lambda p: np.sign(_ROWS) * np.float32(1e9)
    yield "±1e19, whose squares overflow", lambda p: np.sign(_ROWS) * np.float32(1e19)
    yield "±3.4e38, whose range overflows", lambda p: np.sign(_ROWS) * np.float32(3.4e38)
    yield "normal numbers times 1e-30", lambda p: _ROWS * np.float32(1e-30)


def _with(bad: float) -> Array:
    x = _ROWS.copy()
    x[1, 70] = bad
    return x


def _readonly() -> Array:
    x = _ROWS.copy()
    x.flags.writeable = False
    return x


def _mapped() -> Array:
    with tempfile.TemporaryFile() as file:
        file.write(_ROWS.tobytes())
        file.flush()
        return np.memmap(file, np.float32, "r", shape=_ROWS.shape)


def outcome(x: Array, precision: Precision) -> str:
    """What becomes of an array."""
    try:
        encoded = edgekit.encode(x, precision)
    except edgekit.EdgekitError as error:
        return f"`{type(error).__name__}`"
    decoded = encoded.dequantize()
    if x.shape == _ROWS.shape and np.array_equal(x, _ROWS):
        plain = edgekit.encode(_ROWS, precision).parts
        return (
            "same bytes" if all(v.tobytes() == plain[k].tobytes() for k, v in encoded.parts.items()) else "other bytes"
        )
    if np.isnan(decoded).any():
        return "NaN"
    return "encoded" if np.isfinite(decoded).all() else "encoded, to infinities"


def page() -> str:
    """The table and what it means."""
    built_in = [p for p in catalogue() if p.convention != "float" and outcome(_ROWS, p) == "same bytes"]
    conventions = list(dict.fromkeys(p.convention for p in built_in))
    lines = ["| | " + " | ".join(conventions) + " |", "|---|" + "---|" * len(conventions)]
    for name, make in pathologies():
        found = [(p.convention, outcome(make(p), p)) for p in built_in]
        lines.append(
            f"| {name} | " + " | ".join(_cell([o for c, o in found if c == each]) for each in conventions) + " |"
        )
    return f"# Bad input\n\n{INTRODUCTION}\n" + "\n".join(lines) + f"\n\n{EXCEPTIONS}"


def _cell(outcomes: list[str]) -> str:
    counted = Counter(outcomes).most_common()
    return counted[0][0] if len(counted) == 1 else "<br>".join(f"{what}: {count}" for what, count in counted)
