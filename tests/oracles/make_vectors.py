"""Write the known-answer corpus of `edgekit.testing.vectors` with the frameworks' own code.

python tests/oracles/make_vectors.py

Every answer comes from the framework that defines the convention; where it has no encoder for a format (or cannot
be run here), `by` says so. Nothing is written where edgekit's reference disagrees with a framework.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import ml_dtypes
import numpy as np

from edgekit.precision import catalogue
from edgekit.reference import reference
from edgekit.testing import vectors
from edgekit.testing._explain import diagnose, same_parts

HERE = Path(__file__).parent


def module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def same(ours, theirs):
    """Bytes of the framework in the dtypes and shapes of the reference's parts."""
    assert ours.keys() == theirs.keys(), (list(ours), list(theirs))
    return {key: np.frombuffer(theirs[key], part.dtype).reshape(part.shape) for key, part in ours.items()}


def floats(precision):
    def encode(x, importance):
        if precision.kind == "BF16":
            return {"values": x.astype(ml_dtypes.bfloat16).view(np.uint16)}
        return {"values": x.astype({"F32": np.float32, "F16": np.float16}[precision.kind])}

    return encode, f"numpy {np.__version__}, ml_dtypes {ml_dtypes.__version__}"


def affine(precision):
    slow, bits = module(HERE.parent / "core" / "test_affine_properties.py"), precision.bits

    def encode(x, importance):
        codes, scale, zero_point = np.zeros(x.shape, np.uint8), {}, {}
        for at, rows, columns in slow.slow_groups(x, precision):
            pieces = [[float(x[r, c]) for c in columns] for r in rows]
            scale[at], zero_point[at] = slow.slow_parameters(pieces, bits, precision.symmetric)
            for r in rows:
                for c in columns:
                    given = float(x[r, c]), scale[at], zero_point[at], bits, precision.symmetric
                    codes[r, c], _ = slow.slow_code(*given)
        shape = tuple(np.max(list(scale), axis=0) + 1)
        each = np.unpackbits(codes[..., None], axis=2, bitorder="little")[..., :bits]
        packed = np.packbits(each.reshape(len(x), -1), axis=1, bitorder="little")
        parts = {"codes": packed, "scale": np.array(list(scale.values()), np.float32).reshape(shape)}
        if not precision.symmetric:
            parts["zero_point"] = np.array(list(zero_point.values()), np.uint8).reshape(shape)
        return parts

    return encode, "a second implementation in plain Python (tests/core/test_affine_properties.py)"


def ggml(precision):
    oracle = module(HERE / "ggml_oracle.py")

    def encode(x, importance):
        return {"blocks": oracle.encode(precision.kind, x, importance)}

    return encode, f"libggml-base of llama-cpp-python {oracle.installed_version()}"


def mlx(precision):
    import mlx.core as mx

    mx.set_default_device(mx.cpu)
    oracle = module(HERE / "test_mlx_exact.py")
    return (lambda x, importance: oracle.quantize(x, precision)), f"mlx {version('mlx')}, CPU"


def openvino(precision):
    oracle = module(HERE / "test_openvino_exact.py")

    def encode(x, importance):
        ours = reference(precision).encode(x, precision)
        name = precision.name.partition(":")[2]
        with tempfile.TemporaryDirectory() as folder:
            ((_, theirs),) = oracle.read_back(oracle.compressed({"w": x}, name), {"w": x}, Path(folder))
        return same(ours, {part: oracle.without_padding(part, data, x, precision) for part, data in theirs.items()})

    return encode, f"nncf {version('nncf')}, openvino {version('openvino')}"


def onnx(precision):
    oracle = module(HERE / "test_onnx_exact.py")
    symmetric = bool(precision.symmetric)

    def blockwise(x, importance):
        if precision.kind == "qdq_int4":
            names = ("codes", "scale", "zero_point")
            found = oracle.native(x, 4, precision.block, symmetric, oracle.QuantFormat.QDQ)
        else:
            names = ("B", "scales", "zero_points")
            found = oracle.native(x, precision.bits, precision.block, symmetric)
        return dict(zip(names[: 2 if symmetric else 3], found, strict=False))

    def whole(x, importance):
        channels = x if precision.granularity == "channel" else [x.reshape(-1)]
        kind = oracle.QUANT_TYPES[precision.kind]
        found = [oracle.quantize_data(channel, kind, symmetric, precision.reduced) for channel in channels]
        zero_point, scale, codes = (np.stack([np.asarray(p) for p in column]) for column in zip(*found, strict=True))
        if precision.granularity == "tensor":
            zero_point, scale = zero_point[0], scale[0]
        return {"codes": codes.reshape(x.shape), "scale": scale, "zero_point": zero_point}

    if precision.block == 512 and precision.kind != "qdq_int4":
        return None, "edgekit's reference: onnxruntime's operator runs blocks of 512, its quantizer stops at 256"
    return (blockwise if precision.block else whole), f"onnxruntime {version('onnxruntime')}"


def olive(precision):
    return None, "edgekit's reference, which tests/oracles/test_olive_exact.py proves against olive-ai 0.13.0"


ORACLES = {
    "float": floats, "affine": affine, "ggml": ggml, "mlx": mlx, "openvino": openvino, "onnx": onnx, "olive": olive,
}  # fmt: skip


def proved_answers(precision):
    """The framework's answers, after the reference has given the same."""
    encode, by = ORACLES[precision.convention](precision)
    ours = vectors.answers(precision, lambda x, w: reference(precision).encode(x, precision, w), by)
    if encode is None:
        return ours
    with np.errstate(all="ignore"):
        theirs = vectors.answers(precision, encode, by)
    for mine, given in zip(ours, theirs, strict=True):
        if not same_parts(given.parts, mine.parts):
            what = diagnose(given.parts, mine.parts)
            raise SystemExit(f"{precision} on {mine.input}: edgekit's reference and {by} disagree: {what}")
    return theirs


def main():
    """Ask every oracle, compare, write."""
    given = []
    for precision in catalogue():
        given += proved_answers(precision)
        print(precision, file=sys.stderr)
    for file in vectors.write(vectors.CORPUS, given, {"by": "tests/oracles/make_vectors.py"}):
        print(f'    "{file.name}": "{vectors._read(file)["sha256"]}",')


if __name__ == "__main__":
    main()
