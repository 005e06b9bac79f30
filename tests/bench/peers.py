"""edgekit's jobs beside those of the libraries that define the formats, on the same data.

Frameworks that are not installed are left out. Each peer runs on one thread where it can be told to.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from case import Case

import edgekit
from edgekit.precision.ggml import BLOCKS

Array = np.ndarray
#: What gguf-py encodes; it decodes all of them.
GGUF_PY_ENCODES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4")
GGML_IDS = {kind: block_type.id for kind, block_type in BLOCKS.items()}
FIRST = ("Q8_0", "Q4_0", "Q4_K", "Q6_K")
#: What an importance matrix changes.
WEIGHTED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")


def encoders(x: Array) -> Iterator[Case]:
    """edgekit's reference encoders against native ones."""
    kinds = [*FIRST, *(kind for kind in GGML_IDS if kind not in FIRST)]
    for kind in kinds:
        jobs: dict[str, Callable[[], object]] = {"edgekit": partial(_encode, x, f"ggml:{kind}")}
        if has("llama_cpp"):
            jobs["libggml"] = Ggml().encoder(x, GGML_IDS[kind])
        if has("gguf") and kind in GGUF_PY_ENCODES:
            jobs["gguf-py"] = _gguf_py("quantize", x, GGML_IDS[kind])
        yield _case("encode", f"ggml:{kind}", x, jobs)
        yield from _with_numba("encode", f"ggml:{kind}", x, partial(_encode, x, f"ggml:{kind}", "numba"), jobs)
    yield from weighted_encoders(x)
    for name, peer in _others(x):
        jobs = {"edgekit": partial(_encode, x, name), **peer}
        yield _case("encode", name, x, jobs)
        yield from _with_numba("encode", name, x, partial(_encode, x, name, "numba"), jobs)


def weighted_encoders(x: Array) -> Iterator[Case]:
    """ggml's types that use an importance matrix, with one."""
    importance = np.square(np.random.default_rng(2).standard_normal(x.shape[1])).astype(np.float32)
    for kind in WEIGHTED:
        jobs: dict[str, Callable[[], object]] = {"edgekit": partial(_encode, x, f"ggml:{kind}", importance=importance)}
        if has("llama_cpp"):
            jobs["libggml"] = Ggml().encoder(x, GGML_IDS[kind], importance)
        yield _case("encode, importance", f"ggml:{kind}", x, jobs)
        if has("edgekit_numba"):
            own = partial(_encode, x, f"ggml:{kind}", "numba", importance)
            what = f"encode (numba, {_instruction_set()}, importance)"
            yield _case(what, f"ggml:{kind}", x, {**jobs, "edgekit": own, "reference": jobs["edgekit"]})


def decoders(x: Array) -> Iterator[Case]:
    """edgekit's reference decoders against native ones."""
    for kind, number in GGML_IDS.items():
        encoded = edgekit.encode(x, f"ggml:{kind}")
        jobs: dict[str, Callable[[], object]] = {"edgekit": encoded.dequantize}
        if has("llama_cpp"):
            jobs["libggml"] = Ggml().decoder(encoded.parts["blocks"], x.shape, number)
        if has("gguf") and kind not in ("Q1_0", "Q2_0"):
            jobs["gguf-py"] = _gguf_py("dequantize", encoded.parts["blocks"], number)
        yield _case("decode", f"ggml:{kind}", x, jobs)
        yield from _with_numba("decode", f"ggml:{kind}", x, partial(edgekit.decode, encoded, backend="numba"), jobs)
    for name in ("mlx:int4-g64", "openvino:int4-sym-g64", "onnx:int4-sym-g32", "affine:int4-asym-g32"):
        yield _case("decode", name, x, {"edgekit": edgekit.encode(x, name).dequantize})


def _with_numba(
    what: str, name: str, x: Array, job: Callable[[], object], jobs: dict[str, Callable[[], object]]
) -> Iterator[Case]:
    """The same with edgekit-numba's kernel in edgekit's place, where it is installed and has one."""
    if has("edgekit_numba"):
        from edgekit_numba import GROUPED, KINDS

        if name in GROUPED or name.removeprefix("ggml:") in KINDS:
            peers = {("reference" if peer == "edgekit" else peer): theirs for peer, theirs in jobs.items()}
            yield _case(f"{what} (numba, {_instruction_set()})", name, x, {"edgekit": job, **peers})


def _instruction_set() -> str:
    from edgekit_numba.compiler import processor

    return processor().instruction_set.partition(" ")[0]


def _case(what: str, name: str, x: Array, jobs: dict[str, Any]) -> Case:
    return Case(what, name, x.nbytes, jobs)


def has(module: str) -> bool:
    """Whether a module is installed."""
    return importlib.util.find_spec(module) is not None


def _encode(x: Array, name: str, backend: str = "reference", importance: Array | None = None) -> object:
    return edgekit.encode(x, name, backend=backend, importance=importance)


def _gguf_py(what: str, data: Array, number: int) -> Callable[[], object]:
    from gguf import GGMLQuantizationType, quants

    return partial(getattr(quants, what), data, GGMLQuantizationType(number))


class Ggml:
    """libggml-base of llama-cpp-python, through ctypes; single-threaded by nature."""

    def __init__(self) -> None:
        import llama_cpp

        self.library = ctypes.CDLL(str(next((Path(llama_cpp.__file__).parent / "lib").glob("libggml-base.so*"))))
        self.library.ggml_row_size.restype = ctypes.c_size_t
        self.library.ggml_row_size.argtypes = (ctypes.c_int, ctypes.c_int64)
        self.library.ggml_quantize_chunk.restype = ctypes.c_size_t
        self.library.ggml_quantize_chunk.argtypes = (
            ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p,
        )  # fmt: skip
        self.library.ggml_get_type_traits.restype = ctypes.POINTER(Traits)
        self.library.ggml_get_type_traits.argtypes = (ctypes.c_int,)

    def encoder(self, x: Array, number: int, importance: Array | None = None) -> Callable[[], object]:
        """A job that encodes x."""
        rows, cols = x.shape
        weights = None if importance is None else importance.ctypes.data

        def job() -> object:  # a fresh output each time, as edgekit's encode has
            out = np.empty(rows * self.library.ggml_row_size(number, cols), np.uint8)
            return self.library.ggml_quantize_chunk(number, x.ctypes.data, out.ctypes.data, 0, rows, cols, weights)

        return job

    def decoder(self, blocks: Array, shape: tuple[int, ...], number: int) -> Callable[[], object]:
        """A job that decodes blocks."""
        to_float = self.library.ggml_get_type_traits(number).contents.to_float

        def job() -> object:
            out = np.empty(shape, np.float32)
            return to_float(blocks.ctypes.data, out.ctypes.data, out.size)

        return job


class Traits(ctypes.Structure):
    """``struct ggml_type_traits`` as far as ``to_float``."""

    _fields_ = [
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    ]


#: NNCF's modes, by the stem of our names.
NNCF = {
    "int8-sym-channel": "INT8_SYM", "int8-asym-channel": "INT8_ASYM", "int4-sym-g64": "INT4_SYM",
    "int4-asym-g64": "INT4_ASYM", "int3-sym-g64": "INT3_SYM", "int2-sym-g64": "INT2_SYM", "nf4-g64": "NF4",
    "cb4-g64": "CB4", "fp4-g64": "FP4", "fp8-g64": "FP8_E4M3", "mxfp4": "MXFP4", "mxfp8": "MXFP8_E4M3", "nvfp4": "NVFP4",
}  # fmt: skip


def _others(x: Array) -> Iterator[tuple[str, dict[str, Callable[[], object]]]]:
    """Conventions of other frameworks with what they call for them."""
    for bits in (1, 2, 3, 4, 5, 6, 8):
        yield f"mlx:int{bits}-g64", _mlx(x, bits=bits, group_size=64) if has("mlx") else {}
    for mode in ("mxfp4", "mxfp8", "nvfp4"):
        yield f"mlx:{mode}", _mlx(x, mode=mode) if has("mlx") else {}
    yield "mlx:nvfp4-tensor", _mlx(x, mode="nvfp4", for_tensor=True) if has("mlx") else {}
    for name in NNCF:
        yield f"openvino:{name}", _nncf(x, name) if has("nncf") else {}
    for bits in (2, 4, 8):
        for symmetry in ("sym", "asym"):
            peer = _onnxruntime(x, bits, symmetry == "sym") if has("onnxruntime") else {}
            yield f"onnx:int{bits}-{symmetry}-g32", peer
    for symmetry in ("sym", "asym"):
        yield f"onnx:qdq_int4-{symmetry}-g32", _onnxruntime_qdq(x, symmetry == "sym") if has("onnxruntime") else {}
    for kind, symmetry in (("int8", "sym"), ("uint8", "asym")):
        for where in ("channel", "tensor"):
            peer = _onnxruntime_tool(x, kind, symmetry == "sym", where) if has("onnxruntime") else {}
            yield f"onnx:{kind}-{symmetry}-{where}", peer
    yield "affine:int4-asym-g32", {}


def _mlx(x: Array, *, for_tensor: bool = False, **options: Any) -> dict[str, Callable[[], object]]:
    import mlx.core as mx

    source = mx.array(x)

    def job() -> object:
        largest = {"global_scale": mx.max(mx.abs(source))} if for_tensor else {}
        return mx.eval(mx.quantize(source, **options, **largest, stream=mx.cpu))

    return {"mlx": job}


def _nncf(x: Array, name: str) -> dict[str, Callable[[], object]]:
    """NNCF's own arithmetic, without the walk over the model's graph."""
    from nncf import CompressWeightsMode
    from nncf.quantization.algorithms.weight_compression.config import WeightCompressionConfig
    from nncf.quantization.algorithms.weight_compression.constants import CB4_QUANTILES
    from nncf.quantization.algorithms.weight_compression.weight_lowering import compress_weight
    from nncf.tensor import Tensor

    rest = name.rpartition("-g")[2]
    group = {"mxfp4": 32, "mxfp8": 32, "nvfp4": 16}.get(name, int(rest) if rest.isdigit() else -1)
    codebook = Tensor(CB4_QUANTILES) if name.startswith("cb4") else None
    config = WeightCompressionConfig(getattr(CompressWeightsMode, NNCF[name]), group, codebook_values=codebook)
    weight = Tensor(x)
    return {"nncf": lambda: compress_weight(weight, 1, config)}


def _onnxruntime(x: Array, bits: int, symmetric: bool) -> dict[str, Callable[[], object]]:
    from onnxruntime.capi import _pybind_state as ort

    kernel = getattr(ort, f"quantize_matmul_{bits}bits")
    columns = np.ascontiguousarray(x.T)
    k, n, block = *columns.shape, 32
    packed = np.zeros((n, k // block, block * bits // 8), np.uint8)
    scales = np.zeros(n * (k // block), np.float32)
    zeros = np.zeros(n * ((k // block * bits + 7) // 8), np.uint8)
    return {"onnxruntime": lambda: kernel(packed, columns, scales, zeros, block, n, k, symmetric)}


def _onnxruntime_qdq(x: Array, symmetric: bool) -> dict[str, Callable[[], object]]:
    from onnxruntime.capi import _pybind_state as ort

    columns = np.ascontiguousarray(x.T)
    k, n, block = *columns.shape, 32
    packed = np.zeros((k * n + 1) // 2, np.uint8)
    scales, zeros = np.zeros((k // block, n), np.float32), np.zeros((k // block * n + 1) // 2, np.uint8)
    return {
        "onnxruntime": lambda: ort.quantize_qdq_matmul_4bits(packed, columns, scales, zeros, block, n, k, symmetric)
    }


def _onnxruntime_tool(x: Array, kind: str, symmetric: bool, where: str) -> dict[str, Callable[[], object]]:
    """The quantization tool, which is numpy itself; one call for each channel, as it makes them."""
    from onnx import TensorProto
    from onnxruntime.quantization.quant_utils import quantize_data

    channels = list(x) if where == "channel" else [x]
    number = {"int8": TensorProto.INT8, "uint8": TensorProto.UINT8}[kind]
    return {"onnxruntime": lambda: [quantize_data(channel, number, symmetric) for channel in channels]}
