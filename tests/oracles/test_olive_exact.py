"""Olive's own round-to-nearest quantizer against the reference: every byte.

Olive runs in a process of its own with ``CI=1``, which is what keeps it from sending telemetry; importing it takes
seconds, so one process quantizes every sample.
"""

import os
import subprocess
import sys
from importlib.util import find_spec

import ml_dtypes
import numpy as np
import pytest

import edgekit
from edgekit import sample as sample_model
from edgekit.precision import find_precision
from edgekit.reference import olive as reference

pytestmark = pytest.mark.skipif(find_spec("olive") is None, reason="olive-ai is not installed here")

SOURCES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
ROWS, COLS = 8, 192
NAMES = [
    f"olive:int{bits}-{symmetry}-{where}"
    for bits in (2, 4, 8)
    for symmetry in ("sym", "asym")
    for where in ("g16", "g64", "channel")
]

# Reads samples, writes the buffers of a QuantLinear made of each, or the name of the error that Olive raised.
SCRIPT = """
import sys
import numpy as np
import torch
from olive.common.quant.nn import QuantLinear

torch.set_num_threads(1)
samples, out = np.load(sys.argv[1]), {}
for key in samples.files:
    name, source, _ = key.split("|")
    _, bits, symmetry, where = name.replace(":int", "-").split("-")
    weight = torch.from_numpy(samples[key]).view(getattr(torch, source))
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    group = -1 if where == "channel" else int(where[1:])
    try:
        module = QuantLinear.from_module(linear, bits=int(bits), symmetric=symmetry == "sym", group_size=group)
    except AssertionError as error:
        out[key + "|error"] = np.array(str(error))
        continue
    out[key + "|qweight"] = module.qweight.numpy()
    out[key + "|scales"] = module.scales.view(torch.int32 if source == "float32" else torch.int16).numpy()
    if module.qzeros is not None:
        out[key + "|qzeros"] = module.qzeros.numpy()
    decoded = module.unpack_and_dequantize(module.qweight, module.scales, module.qzeros)
    out[key + "|decoded"] = decoded.to(torch.float32).numpy()
np.savez(sys.argv[2], **out)
"""


def grid(rng, shape, step):
    return rng.integers(-32, 33, shape) * step


def bit_patterns(rng, shape):
    """Any float32, tamed so far that the range of a group does not overflow."""
    values = rng.integers(0, 2**32, shape, np.uint32).view(np.float32)
    return np.where(np.abs(values) < np.finfo(np.float32).max / 4, values, np.float32(1))


DISTRIBUTIONS = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "student-t(2)": lambda rng, shape: rng.standard_t(2, shape),
    "constant": lambda rng, shape: np.broadcast_to(rng.standard_normal((shape[0], 1)), shape),
    "zeros": lambda rng, shape: np.copysign(np.zeros(shape), rng.standard_normal(shape)),
    "subnormal": lambda rng, shape: grid(rng, shape, 1.4e-45 * 97),
    "huge": lambda rng, shape: rng.uniform(-1, 1, shape) * 1.6e38,
    "all positive": lambda rng, shape: np.abs(rng.standard_normal(shape)),
    "all negative": lambda rng, shape: -np.abs(rng.standard_normal(shape)),
    "ties of halves": lambda rng, shape: grid(rng, shape, 0.5),
    "ties of quarters": lambda rng, shape: grid(rng, shape, 0.25),
    "bit patterns": bit_patterns,
}


def sample(distribution, source):
    values = DISTRIBUTIONS[distribution](np.random.default_rng(len(distribution)), (ROWS, COLS))
    if source == "float16" and distribution in ("huge", "bit patterns", "subnormal"):
        with np.errstate(over="ignore"):
            scaled = np.ldexp(values, {"huge": -113, "subnormal": 124}.get(distribution, 0))
        values = np.where(np.abs(scaled) < 30000, scaled, 1)
    return np.ascontiguousarray(values).astype(SOURCES[source])


def real_weights():
    trained = edgekit.open(sample_model.path()).model.tensors
    for name in ("blk.0.attn_q.weight", "blk.2.ffn_up.weight"):
        yield name, trained[name].float32(0, 64)


@pytest.fixture(scope="module")
def samples():
    """(name of the precision, source type, label) to rows."""
    found = {(name, s, d): sample(d, s) for name in NAMES for s in SOURCES for d in DISTRIBUTIONS}
    for label, x in real_weights():
        found |= {(name, s, label): x.astype(SOURCES[s]) for name in NAMES for s in SOURCES}
    # Its scale underflows, and it holds a zero.
    found["olive:int4-asym-g16", "float32", "underflow"] = np.eye(1, 16, dtype=np.float32) * np.float32(3e-45)
    return found


@pytest.fixture(scope="module")
def olive(samples, tmp_path_factory):
    """What Olive made of the samples."""
    folder = tmp_path_factory.mktemp("olive")
    carriers = {"float32": np.float32, "float16": np.int16, "bfloat16": np.int16}
    np.savez(folder / "in.npz", **{"|".join(key): x.view(carriers[key[1]]) for key, x in samples.items()})
    environment = {**os.environ, "CI": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, folder / "in.npz", folder / "out.npz"]
    subprocess.run(command, env=environment, cwd=folder, check=True, timeout=600)
    return np.load(folder / "out.npz")


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", NAMES)
def test_same_bytes(samples, olive, name, source):
    precision = find_precision(name)
    labels = [label for n, s, label in samples if (n, s) == (name, source) and label != "underflow"]
    assert len(labels) >= len(DISTRIBUTIONS)
    for label in labels:
        x, key = samples[name, source, label], f"{name}|{source}|{label}"
        assert f"{key}|error" not in olive, f"{key}: {olive[f'{key}|error']}"
        parts = reference.encode(x, precision)
        assert parts["scales"].dtype == x.dtype
        np.testing.assert_array_equal(parts["qweight"], olive[f"{key}|qweight"], err_msg=key)
        scales = olive[f"{key}|scales"]
        np.testing.assert_array_equal(parts["scales"].view(scales.dtype), scales, err_msg=key)
        assert ("qzeros" in parts) == (f"{key}|qzeros" in olive)
        if "qzeros" in parts:
            np.testing.assert_array_equal(parts["qzeros"], olive[f"{key}|qzeros"], err_msg=key)
        decoded = reference.decode(parts, precision, x.shape)
        np.testing.assert_array_equal(decoded, olive[f"{key}|decoded"], err_msg=key)


def test_olive_refuses_a_zero_in_a_group_whose_scale_underflows(samples, olive):
    key = ("olive:int4-asym-g16", "float32", "underflow")
    assert "must not be less than min quantization value" in str(olive["|".join(key) + "|error"])
    parts = reference.encode(samples[key], find_precision(key[0]))
    np.testing.assert_array_equal(reference.decode(parts, find_precision(key[0]), (1, 16)), 0.0)


def test_a_symmetric_group_without_negatives_reaches_half_way(olive):
    """The library's defect, pinned: the largest value of an all-positive group decodes to about half of itself."""
    x = sample("all positive", "float32")
    decoded = olive["olive:int8-sym-channel|float32|all positive|decoded"]
    ratio = decoded.max(axis=1) / x.max(axis=1)
    np.testing.assert_allclose(ratio, 127 / 255, rtol=1e-6)
