"""4-bit quantization of one weight of 256 MiB in blocks of 32: edgekit against onnxruntime's `MatMulNBitsQuantizer.process`.

python tests/bench/bench.py --only onnx-weights

Every run is a process of its own on one thread. It has the weight in memory before it starts: edgekit as rows [N, K],
the tool as an initializer [K, N] of a graph with one MatMul. Counted are processor time, and the most memory beyond what
was there at the start (Linux). The contenders take turns, the best of each counts; their codes are compared.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from child import printed

NEEDS = ("onnx", "onnxruntime", "onnx_ir", "edgekit_olive", "edgekit_numba")
ROWS = 8192
#: Least ratios of the tool's time to edgekit's that the project promises, by backend.
PROMISED = {"reference": 1.3, "numba": 4.0}
_COMMON = """
import hashlib, json, re, sys, time
from pathlib import Path
import numpy as np

def kilobytes(field):
    return int(re.search(field + r":\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

def measured(job):
    linux = Path("/proc/self/clear_refs").exists()
    if linux:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = kilobytes("VmRSS")
    start = time.process_time()
    found = job()
    seconds = time.process_time() - start
    extra = kilobytes("VmHWM") - before if linux else 0
    codes, scales = (hashlib.sha256(np.ascontiguousarray(part).tobytes()).hexdigest() for part in found())
    print(json.dumps({"seconds": seconds, "extra": extra, "codes": codes, "scales": scales}))

rows = int(sys.argv[1])
x = np.random.default_rng(0).standard_normal((rows, rows), np.float32)
"""
_EDGEKIT = (
    _COMMON
    + """
import edgekit
precision, backend = "onnx:int4-sym-g32", sys.argv[2]
edgekit.encode(x[:64], precision, backend=backend)

def job():
    parts = edgekit.encode(x, precision, backend=backend).parts
    return lambda: (parts["B"], parts["scales"])

measured(job)
"""
)
_TOOL = (
    _COMMON
    + """
import logging
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
logging.disable(logging.CRITICAL)

def model(rows):
    weight = numpy_helper.from_array(np.ascontiguousarray(rows.T), "w")
    a = helper.make_tensor_value_info("a", TensorProto.FLOAT, [None, rows.shape[1]])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, rows.shape[0]])
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "w"], ["y"], "m")], "g", [a], [y], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)

def quantizer(proto):
    return MatMulNBitsQuantizer(proto, bits=4, block_size=32, is_symmetric=True)

quantizer(model(x[:64])).process()
whole = model(x)
del x

def job():
    made = quantizer(whole)
    made.process()
    tensors = {tensor.name: tensor for tensor in made.model.initializer()}
    return lambda: [numpy_helper.to_array(tensors[name]) for name in ("w_Q4", "w_scales")]

measured(job)
"""
)


def run(program: str, *arguments: str) -> dict[str, float]:
    """What one process prints."""
    one = {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "EDGEKIT_NUMBA_THREADS": "1",
        "ORT_DISABLE_TELEMETRY": "1",
    }
    return printed(program, *arguments, environment=one)


def report(quick: bool = False) -> Iterator[str]:
    """Lines of the report, as they come."""
    lacking = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if lacking:
        yield f"onnxruntime's quantizer is not compared: {', '.join(lacking)} is not installed."
        return
    rows, rounds = (2048, 1) if quick else (ROWS, 5)
    jobs = {name: (_EDGEKIT, str(rows), name) for name in PROMISED} | {"tool": (_TOOL, str(rows))}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, (program, *arguments) in jobs.items():
            found[name].append(run(program, *arguments))
    yield f"A weight of {rows * rows * 4 / 2**20:.0f} MiB to onnx:int4-sym-g32, one thread; the best of {rounds} in turn."
    yield ""
    yield "| by | processor s | memory beyond the input, MB | onnxruntime's time / its | promised | same codes and scales |"
    yield "|---|---|---|---|---|---|"
    (tool,) = ([min(each[key] for each in found["tool"]) for key in ("seconds", "extra")],)
    yield f"| `MatMulNBitsQuantizer.process` | {tool[0]:.2f} | {tool[1] / 1e6:.0f} | – | – | – |"
    for name, least in PROMISED.items():
        seconds, extra = (min(each[key] for each in found[name]) for key in ("seconds", "extra"))
        same = all(found[name][0][key] == found["tool"][0][key] for key in ("codes", "scales"))
        yield (
            f"| edgekit, {name} | {seconds:.2f} | {extra / 1e6:.0f} | **{tool[0] / seconds:.2f}×** | {least:g}× | "
            f"{'yes' if same else '**no**'} |"
        )
