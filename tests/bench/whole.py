"""From file to file: edgekit beside `llama_model_quantize`, each in a process of its own, on as many cores as threads.

python tests/bench/bench.py --only file-to-file       the model of 225 MB, one core and two
python tests/bench/bench.py --only seven-billion      7 billion weights: one layer, 32 times
python tests/bench/bench.py --only scaling            throughput against cores, and the coordinating thread
python tests/bench/bench.py --only startup            importing, compiling, and the first call
"""

from __future__ import annotations

import hashlib
import importlib.util
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
_DOCS = Path(__file__).parents[2] / "docs"
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
    allowed = _cpus(cores)
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


_COORDINATING = f"""{_PEAK}
sys.path.insert(0, {str(Path(__file__).parent)!r})
import edgekit, whole
spent = []
for times in (1, 1, int(sys.argv[3])):
    source = whole.repeated(Path(sys.argv[1]), times)
    start = time.thread_time()
    edgekit.quantize(source, "{RECIPE}", to=sys.argv[2])
    spent.append((time.thread_time() - start, sum(tensor.nbytes for tensor in source.tensors.values())))
(first, few), (last, many) = spent[1:]
print(json.dumps(1e3 * (last - first) / ((many - few) / 1e9)))
"""


#: Seconds after which no further round of the scaling begins; the first one always ends.
_ROUNDS_WITHIN = 100
_LARGE = Shape(layers=4, width=4096, ffn=11008, heads=32, kv_heads=32, vocab=32_000)
_GB = 1e9


@attrs.define
class _Scaling:
    """Runs by contender and cores, and the GB of the source that each run read."""

    runs: dict[tuple[str, int], list[Run]] = attrs.field(factory=dict)
    size: dict[tuple[str, int], float] = attrs.field(factory=dict)

    def add(self, name: str, cores: int, source: Path, run: Run) -> None:
        """Note a run."""
        self.runs.setdefault((name, cores), []).append(run)
        self.size[name, cores] = source.stat().st_size / _GB

    def best(self, name: str, cores: int) -> Run | None:
        """The fastest run by the clock."""
        return min(self.runs.get((name, cores), []), key=lambda run: run.seconds, default=None)

    def speed(self, name: str, cores: int) -> float | None:
        """GB of the source in a second."""
        best = self.best(name, cores)
        return self.size[name, cores] / best.seconds if best else None

    def cells(self, name: str, cores: int) -> str:
        """Speed, processor time for each GB, and the largest peak memory of any run."""
        best, runs = self.best(name, cores), self.runs.get((name, cores), [])
        if best is None:
            return "– | – | –"
        size = self.size[name, cores]
        return (
            f"{size / best.seconds:.3f} | {min(run.cpu for run in runs) / size:.2f} "
            f"| {max(run.peak for run in runs) / 1e6:.0f} MB"
        )


def scaling(quick: bool = False, to: Path | None = None, files: Path | None = None) -> Iterator[str]:
    """Throughput against cores beside llama.cpp and `cp`, and what the coordinating thread costs; draws the picture.

    Args:
        quick: a small model, one round, and no picture unless `to` says where.
        to: directory of the picture; that of the docs by default.
        files: directory of the source and the results, the temporary one by default; one in memory has no disk in it.
    """
    counts = _powers(len(os.sched_getaffinity(0)))
    peer = importlib.util.find_spec("llama_cpp") is not None
    measured = _Scaling()
    with tempfile.TemporaryDirectory(dir=files) as folder:
        names = ("source.gguf", "layer.gguf", "out.gguf", "copy.gguf")
        source, layer, target, copy = (Path(folder) / name for name in names)
        shape = Shape() if quick else _LARGE
        write_llama(source, shape)
        write_llama(layer, attrs.evolve(shape, layers=1))
        run(_EDGEKIT, counts[-1], layer, target)  # compiles the kernels
        serial = _printed(_COORDINATING, layer, target, "5")
        begun = time.perf_counter()
        for number in range(1 if quick else 3):
            if number and time.perf_counter() - begun > _ROUNDS_WITHIN:
                break
            for count in counts:
                target.unlink(missing_ok=True)
                measured.add("edgekit", count, source, run(_EDGEKIT, count, source, target))
            target.unlink()
            if peer:
                measured.add("llama.cpp", counts[-1], source, run(_LLAMA, counts[-1], source, target, whole=False))
                target.unlink()
            measured.add("cp", 1, source, _copied(source, copy))
            copy.unlink()
        if peer and counts[-1] > 1:  # a single core is slow: one layer has the same tensors
            measured.add("llama.cpp", 1, layer, run(_LLAMA, 1, layer, target, whole=False))
        where = _file_system(Path(folder))
    yield from _scaling_lines(measured, counts, serial, where)
    if to or not quick:
        picture = (to or _DOCS / "images") / "scaling.svg"
        picture.write_text(_scaling_picture(_bars(measured, counts)), "utf-8")


def _scaling_lines(measured: _Scaling, counts: list[int], serial: float, where: str) -> Iterator[str]:
    most, size = counts[-1], measured.size["edgekit", 1]
    rounds = len(measured.runs["edgekit", 1])
    yield f"A random Llama of {size:.2f} GB (F16) to {RECIPE} on {_machine()}; files in {where}."
    yield f"Of {rounds} interleaved rounds the fastest by the clock and the least processor time count, each process bound to"
    yield "its cores, siblings last. For edgekit Python's start and all imports count too; for llama.cpp"
    yield "`llama_model_quantize` alone, on one core for a file of one layer."
    yield ""
    yield (
        "| cores | edgekit: GB/s | processor seconds a GB | peak memory | of one core's "
        "| llama.cpp: GB/s | processor seconds a GB | peak memory | edgekit's ratio |"
    )
    yield "|---" * 9 + "|"
    one = measured.speed("edgekit", 1) or 0
    for count in counts:
        own, peer = measured.speed("edgekit", count) or 0, measured.speed("llama.cpp", count)
        ratio = f"**{own / peer:.1f}×**" if peer else "–"
        cells = measured.cells("edgekit", count), measured.cells("llama.cpp", count)
        yield f"| {count} | {cells[0]} | **{own / one:.2f}×** | {cells[1]} | {ratio} |"
    yield f"| `cp` | {measured.cells('cp', 1)} | | | | | |"
    yield ""
    yield f"{most} cores give {(measured.speed('edgekit', most) or 0) / one:.2f} times one core's throughput. The coordinating"
    yield f"thread spends {serial:.1f} ms of processor time on each GB of the source (a model of five layers beside one of a"
    yield "single layer, in one process)."


def _copied(source: Path, copy: Path) -> Run:
    """What `cp` takes; its memory is not measured."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(["cp", str(source), str(copy)], check=True)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Run(seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 0)


def _powers(cores: int) -> list[int]:
    return sorted({*(2**power for power in range(cores.bit_length()) if 2**power <= cores), cores})


def _printed(script: str, *arguments: str | Path) -> float:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True, env=_ENVIRONMENT).stdout)


def _cpus(count: int) -> list[int]:
    """So many processors, of each core one before a second of any: siblings share what computes."""
    allowed = sorted(os.sched_getaffinity(0))
    return sorted(allowed, key=lambda cpu: _siblings(cpu).index(cpu))[:count]


def _siblings(cpu: int) -> list[int]:
    """The processors of the same core."""
    topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    if not topology.is_file():
        return [cpu]
    ranges = (part.partition("-") for part in topology.read_text().strip().split(","))
    return [n for first, _, last in ranges for n in range(int(first), int(last or first) + 1)]


def _file_system(folder: Path) -> str:
    """Its type, as the system calls it."""
    done = subprocess.run(["stat", "-f", "-c", "%T", str(folder)], capture_output=True, text=True, check=True)
    name = done.stdout.strip()
    return "memory (tmpfs)" if name == "tmpfs" else name


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "this processor")
    allowed = os.sched_getaffinity(0)
    cores = len({tuple(_siblings(cpu)) for cpu in allowed})
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    of = "" if cores == len(allowed) else f" (siblings on {cores} cores)"
    return f"{len(allowed)} processors{of} of {name}, {memory:.0f} GiB of memory, Linux {os.uname().release}"


def _bars(measured: _Scaling, counts: list[int]) -> list[tuple[str, str, float, float]]:
    """Label, colour and GB/s of each bar, and what as many times one core's would be or 0."""
    one = measured.speed("edgekit", 1) or 0
    bars = [
        (f"{count} core{'s' * (count > 1)}", "#1b6ca8", measured.speed("edgekit", count) or 0, count * one)
        for count in counts
    ]
    speeds = {count: measured.speed("llama.cpp", count) for count in counts}
    bars += [(f"llama.cpp, {count}", "#d9822b", speed, 0) for count, speed in speeds.items() if speed]
    return [*bars, ("cp", "#b0bac4", measured.speed("cp", 1) or 0, 0)]


def _scaling_picture(bars: list[tuple[str, str, float, float]]) -> str:
    """Bars of throughput against cores, then llama.cpp's and `cp`, and a line at what perfect scaling would be; SVG.

    The scale ends a little above edgekit's perfect scaling: `cp`, which may be far faster, is cut off there.
    """
    left, width, bar, top = 104, 480, 26, 52
    most = 1.1 * max(max(speed, ideal) for _, _, speed, ideal in bars[:-1])
    height = top + len(bars) * (bar + 14) + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 90} {height}" '
        'font-family="system-ui, sans-serif">',
        f'<rect width="{left + width + 90}" height="{height}" rx="8" fill="#ffffff"/>',
        f'<text x="16" y="28" font-size="15" font-weight="600" fill="#1c2733">F16 to {RECIPE}, file to file: GB/s of '
        "the source</text>",
    ]
    for number, (label, color, speed, ideal) in enumerate(bars):
        y, end = top + number * (bar + 14), left + width * min(1, speed / most)
        mark = left + width * ideal / most
        parts += [
            f'<text x="{left - 10}" y="{y + 17}" font-size="12" text-anchor="end" fill="#1c2733">{label}</text>',
            f'<rect x="{left}" y="{y}" width="{end - left:.1f}" height="{bar}" rx="2" fill="{color}"/>',
            f'<text x="{max(end, mark) + 6:.1f}" y="{y + 17}" font-size="12" fill="#445261">{speed:.2f}</text>',
        ]
        if ideal:
            parts.append(f'<line x1="{mark:.1f}" y1="{y - 3}" x2="{mark:.1f}" y2="{y + bar + 3}" stroke="#c0392b"/>')
    return "\n".join([*parts, "</svg>"]) + "\n"
