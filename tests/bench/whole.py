"""From file to file: edgekit beside `llama_model_quantize`, each in a process of its own, on as many cores as threads.

python tests/bench/bench.py --only file-to-file       the model of 225 MB, one core and two
python tests/bench/bench.py --only seven-billion      7 billion weights: one layer, 32 times
python tests/bench/bench.py --only startup            importing, compiling, and the first call
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
from llama_model import Shape, write_llama

RECIPE = "Q4_K_M"
ROUNDS = 5
_REPEATS = 32
# pip compiles what it installs; an editable installation must be let to do so when it first runs
_ENVIRONMENT = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
_PEAK = """
import json, os, re, sys, time
from pathlib import Path
started = time.perf_counter(), 0.0

def finish():
    peak = int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
    print(json.dumps([time.perf_counter() - started[0], time.process_time() - started[1], peak]))
"""
_EDGEKIT = f"""{_PEAK}
import edgekit
edgekit.quantize(sys.argv[1], "{RECIPE}", to=sys.argv[2])
finish()
"""
_LLAMA = f"""{_PEAK}
import ctypes, llama_cpp
silent = llama_cpp.llama_log_callback(lambda *_: None)
llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
parameters = llama_cpp.llama_model_quantize_default_params()
parameters.ftype, parameters.nthread = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M, len(os.sched_getaffinity(0))
started = time.perf_counter(), time.process_time()  # the import of the bindings is not llama.cpp's
assert llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), ctypes.byref(parameters)) == 0
finish()
"""
_SEVEN_BILLION = f"""{_PEAK}
sys.path.insert(0, {str(Path(__file__).parent)!r})
import edgekit, whole
edgekit.quantize(whole.repeated(Path(sys.argv[1]), {_REPEATS}), "{RECIPE}", to=sys.argv[2])
finish()
"""


@attrs.frozen
class Run:
    """What a job took: seconds, seconds of processor time on all cores, and its process's peak memory in bytes."""

    seconds: float
    cpu: float
    peak: int


def run(script: str, cores: int, *arguments: str | Path, whole: bool = True) -> Run:
    """Run a script on so many cores; its `whole` process counts, or what it measured itself."""
    allowed = sorted(os.sched_getaffinity(0))[:cores]
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True, text=True, check=True, preexec_fn=lambda: os.sched_setaffinity(0, allowed),
        env={**_ENVIRONMENT, "EDGEKIT_NUMBA_THREADS": str(cores)},
    )  # fmt: skip
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    job, job_cpu, peak = json.loads(done.stdout)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(seconds, cpu, peak) if whole else Run(job, job_cpu, peak)


def _median(runs: list[Run]) -> Run:
    return Run(*(statistics.median(values) for values in zip(*map(attrs.astuple, runs), strict=True)))


def file_to_file(rounds: int = ROUNDS) -> Iterator[str]:
    """The table of the model of 225 MB: medians of interleaved rounds."""
    yield f"A random Llama of 225 MB (F16) to {RECIPE}, medians of {rounds} interleaved rounds, each process bound to its"
    yield "cores. For edgekit the whole process counts, Python's start and all imports included; for llama.cpp"
    yield "`llama_model_quantize` alone. Processor time is that of all cores together."
    yield ""
    yield "| cores | seconds: edgekit, llama.cpp | processor time: edgekit, llama.cpp | peak memory: edgekit, llama.cpp |"
    yield "|---|---|---|---|"
    with tempfile.TemporaryDirectory() as folder:
        source, ours, theirs = (Path(folder) / name for name in ("source.gguf", "ours.gguf", "theirs.gguf"))
        write_llama(source)
        run(_EDGEKIT, 2, source, ours)  # compiles the kernels
        for cores in range(1, min(2, len(os.sched_getaffinity(0))) + 1):
            pairs = [
                (run(_EDGEKIT, cores, source, ours), run(_LLAMA, cores, source, theirs, whole=False))
                for _ in range(rounds)
            ]
            own, peer = (_median(list(runs)) for runs in zip(*pairs, strict=True))
            yield (
                f"| {cores} | {_beside(own.seconds, peer.seconds)} | {_beside(own.cpu, peer.cpu)} "
                f"| {own.peak / 1e6:.0f} MB, {peer.peak / 1e6:.0f} MB |"
            )
        yield ""
        yield f"The tensors' bytes are {'identical' if _digest(ours) == _digest(theirs) else '**different**'}."


def _beside(own: float, peer: float) -> str:
    return f"{own:.2f} s, {peer:.2f} s: **{peer / own:.1f}×**"


def _digest(file: Path) -> dict[str, str]:
    import edgekit

    found = {}
    for name, tensor in edgekit.open(file).tensors.items():
        values = tensor.read()
        parts = values.parts.values() if hasattr(values, "parts") else [values]
        found[name] = hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()
    return found


def seven_billion() -> Iterator[str]:
    """Quantize the shape of Llama 2 7B, one layer of it in a file and read again for every other layer."""
    cores = min(2, len(os.sched_getaffinity(0)))
    shape = Shape(layers=1, width=4096, ffn=11008, heads=32, kv_heads=32, vocab=32000)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "layer.gguf", Path(folder) / "out.gguf"
        write_llama(source, shape)
        run(_EDGEKIT, cores, source, target)  # compiles the kernels, fills the file system's cache
        one, peer = run(_EDGEKIT, cores, source, target), run(_LLAMA, cores, source, target, whole=False)
        whole = run(_SEVEN_BILLION, cores, source, target)
        size = target.stat().st_size
    yield f"The shape of Llama 2 7B to {RECIPE} ({size / 1e9:.2f} GB), {cores} threads, on as many cores:"
    yield ""
    yield "| what | seconds | processor time | peak memory |"
    yield "|---|---|---|---|"
    yield f"| edgekit, all 32 layers and both embeddings (6.7 billion weights) | {_spent(whole)} |"
    yield f"| edgekit, one layer and both embeddings (0.46 billion) | {_spent(one)} |"
    yield f"| llama.cpp, one layer and both embeddings | {_spent(peer)} |"


def _spent(run: Run) -> str:
    return f"{run.seconds:.1f} s | {run.cpu:.1f} s | {run.peak / 1e6:.0f} MB"


def repeated(file: Path, times: int):  # type: ignore[no-untyped-def]
    """The artifact of a file with one layer, as if it had it so many times."""
    import edgekit
    from edgekit.architectures import Model
    from edgekit.artifact import Artifact

    base = edgekit.open(file)
    tensors = {}
    for name, tensor in base.model.tensors.items():
        for layer in range(times if name.startswith("blk.0.") else 1):
            copy = name.replace("blk.0.", f"blk.{layer}.", 1)
            tensors[copy] = attrs.evolve(tensor, name=copy)
    model = Model(attrs.evolve(base.model.config, layers=times), tensors)
    return Artifact(file, "repeated", base.files, {}, tensors, lambda: model, base.load_tokenizer)


_IMPORT = """
import time
import edgekit.plugin.hookspecs, sys
start = time.perf_counter()
import edgekit_numba
print(time.perf_counter() - start)
assert "llvmlite" not in sys.modules and "numba" not in sys.modules
"""
_FIRST_CALL = """
import time
start = time.perf_counter()
import numpy as np
import edgekit
edgekit.encode(np.ones((1, 256), np.float32), "ggml:Q4_K", backend="numba")
print(time.perf_counter() - start)
"""
_COLD = """
import time
from edgekit_numba import library
start = time.perf_counter()
for name in ("Q4_K", "Q6_K"):
    library.kernel(name)
print(time.perf_counter() - start)
"""


def startup() -> Iterator[str]:
    """Seconds until the kernels are there."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {**_ENVIRONMENT, "EDGEKIT_NUMBA_CACHE": cache}

        def seconds(script: str) -> float:
            command = [sys.executable, "-c", script]
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
            return float(done.stdout)

        yield f"- importing the plugin's module: {1000 * statistics.median(seconds(_IMPORT) for _ in range(5)):.1f} ms"
        yield f"- compiling the kernels of {RECIPE} (Q4_K, Q6_K), the first time ever: {seconds(_COLD):.1f} s"
        first = statistics.median(seconds(_FIRST_CALL) for _ in range(5))
        yield f"- the first call of a process, numpy's and edgekit's import included: {first:.2f} s"
