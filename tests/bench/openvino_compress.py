"""Compressing a model of 225 MB (F16) in OpenVINO IR, end to end: edgekit's own writer against NNCF, time and peak memory.

python tests/bench/bench.py --only openvino-compress

Every run is a process of its own, on two cores, that reads the same IR and writes another: edgekit with the kernels of
edgekit-numba and with the numpy reference, NNCF with `read_model`, `compress_weights` and `save_model`. The contenders
take turns, the best of each counts, and what they wrote is compared byte by byte.

edgekit also takes over the tokenizer's models. The peak of a child process would be added to the parent's, as if both
fell together, so that edgekit's figure is the most that it can be.
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from child import printed
from llama_model import write_llama

NEEDS = ("openvino", "nncf", "edgekit_openvino")
MODES = {"INT4_SYM": "INT4_SYM_G64", "INT8_ASYM": "INT8_ASYM"}
_PEAK = """
import json, re, resource, time
from pathlib import Path
status = Path("/proc/self/status")
peak = int(re.search(r"VmHWM:\\s*(\\d+) kB", status.read_text())[1]) * 1024 if status.exists() else 0
peak = peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
peak += resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
print(json.dumps({"peak": peak, "job": time.perf_counter() - start}))
"""
_EDGEKIT = """
import sys, time
start = time.perf_counter()
import edgekit
edgekit.quantize(sys.argv[1], sys.argv[3], to=sys.argv[2], format="openvino", backend=sys.argv[4] or None)
"""
_NNCF = """
import logging, os, sys, time
os.environ.update(NNCF_CI="1", CI="true")
start = time.perf_counter()
import nncf, openvino, rich
rich.get_console().quiet = True
nncf.set_log_level(logging.ERROR)
mode = nncf.CompressWeightsMode[sys.argv[3]]
groups = {} if "INT8" in sys.argv[3] else {"group_size": 64}
model = openvino.Core().read_model(sys.argv[1] + "/openvino_model.xml")
openvino.save_model(nncf.compress_weights(model, mode=mode, **groups), sys.argv[2] + ".xml", compress_to_fp16=False)
"""


def run(program: str, *arguments: str) -> dict[str, float]:
    """Seconds of the whole process, and peak memory in bytes."""
    threads = {"OMP_NUM_THREADS": "2", "EDGEKIT_NUMBA_THREADS": "1"}  # edgekit's own threads are the pipeline's
    start = time.perf_counter()
    found = printed(program + _PEAK, *arguments, environment=threads)
    return {"seconds": time.perf_counter() - start, **found}


def contenders(source: Path, mode: str, folder: Path) -> dict[str, dict[str, float]]:
    """One run of each."""
    recipe = MODES[mode]
    return {
        "edgekit, numba": run(_EDGEKIT, str(source), str(folder / "numba"), recipe, ""),
        "edgekit, reference": run(_EDGEKIT, str(source), str(folder / "reference"), recipe, "reference"),
        "NNCF": run(_NNCF, str(source), str(folder / "nncf"), mode),
    }


def same(folder: Path) -> bool:
    """Whether NNCF's and edgekit's weights are the same bytes."""
    import edgekit

    ours, theirs = edgekit.open(folder / "numba").tensors, edgekit.open(folder / "nncf.xml").tensors
    return all(_bytes(tensor) == _bytes(theirs[name]) for name, tensor in ours.items() if "weight" in name)


def _bytes(tensor) -> list[bytes]:  # type: ignore[no-untyped-def]
    found = tensor.read()
    return [part.tobytes() for part in found.parts.values()] if hasattr(found, "parts") else [found.tobytes()]


def report(quick: bool = False) -> Iterator[str]:
    """Lines of the report, as they come."""
    lacking = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if lacking:
        yield f"NNCF's compression is not compared: {', '.join(lacking)} is not installed."
        return
    rounds = 1 if quick else 3
    yield f"A random Llama of 225 MB (F16) in OpenVINO IR, compressed on two cores; the best of {rounds} rounds in turn."
    yield ""
    yield "| mode | by | seconds, whole process | seconds from its imports on | peak MB at most | NNCF's time / its | same bytes |"
    yield "|---|---|---|---|---|---|---|"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        gguf, source = write_llama(folder / "model.gguf"), folder / "float"
        _convert(gguf, source)
        for mode in MODES:
            contenders(source, mode, folder)  # compiled kernels are on disk, files in memory
            found = [contenders(source, mode, folder) for _ in range(rounds)]
            yield from _rows(mode, found, same(folder))


def _convert(gguf: Path, source: Path) -> None:
    import edgekit

    edgekit.convert(gguf, source, format="openvino", dtype="F16")
    gguf.unlink()


def _rows(mode: str, found: list[dict[str, dict[str, float]]], equal: bool) -> list[str]:
    best = {who: {what: min(each[who][what] for each in found) for what in found[0][who]} for who in found[0]}
    other = best["NNCF"]["seconds"]
    return [
        f"| {mode} | {who} | {own['seconds']:.2f} | {own['job']:.2f} | {own['peak'] / 1e6:.0f} | "
        f"{other / own['seconds']:.2f}× | {'yes' if equal else '**no**'} |"
        for who, own in best.items()
    ]
