"""What the stored known answers decode to, and how wide their bounds are: every precision, without any framework.

``vectors/decoded.json`` holds, for each stored answer, the CRC-32 of its decoded values and the width of its bound.
The decoders that wrote it are those that tests/oracles holds to the frameworks. After a bound was changed on purpose:

    EDGEKIT_WRITE_DECODED=1 python -m pytest tests/core/test_decoded_answers.py
"""

import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest

from edgekit.precision import find_precision
from edgekit.reference import reference
from edgekit.testing import vectors

STORED = Path(__file__).parent / "vectors" / "decoded.json"
ANSWERS = {f"{a.precision} {a.input}{' weighed' if a.importance is not None else ''}": a for a in vectors.load()}


def decoded(answer):
    """Decoded values [rows, cols] and their bound."""
    precision = find_precision(answer.precision)
    implementation = reference(precision)
    values = implementation.decode(answer.parts, precision, answer.x.shape)
    return values, implementation.bound(answer.x, answer.parts, precision)


def checksum(values):
    return zlib.crc32(np.ascontiguousarray(values, "<f4").tobytes())


def width(answer, bound):
    """Mean bound of each row in units of its largest magnitude, summed: a row of tiny values weighs like any other."""
    largest = np.abs(answer.x.astype(np.float64)).max(axis=1)
    relative = bound.mean(axis=1) / np.where(largest > 0, largest, 1)
    return float(relative[np.isfinite(relative)].sum())


def known():
    if "EDGEKIT_WRITE_DECODED" in os.environ:
        fresh = {key: decoded(answer) for key, answer in ANSWERS.items()}
        lines = [f'"{k}": [{checksum(v)}, {width(ANSWERS[k], b)!r}]' for k, (v, b) in fresh.items()]
        STORED.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    return json.loads(STORED.read_text())


KNOWN = known()


def holds(key, answer):
    """Whether decoded values are the known ones to the bit, within a bound as wide as it is known to be."""
    values, bound = decoded(answer)
    assert (values.dtype, bound.dtype) == (np.float32, np.float64)
    assert values.shape == bound.shape == answer.x.shape
    assert checksum(values) == KNOWN[key][0], "other values"
    assert (np.abs(answer.x.astype(np.float64) - values) <= bound).all(), "beyond the bound"
    np.testing.assert_allclose(width(answer, bound), KNOWN[key][1], rtol=1e-7, err_msg="a bound of another width")


@pytest.mark.parametrize("key", ANSWERS)
def test_known_answers_decode_to_known_values_within_their_bound(key):
    holds(key, ANSWERS[key])


def test_every_answer_has_its_decoded_values():
    assert ANSWERS.keys() == KNOWN.keys()
