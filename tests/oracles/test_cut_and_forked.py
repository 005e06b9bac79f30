"""Files that are cut under a loaded model, processes that are forked, and memory that does not suffice.

Each in a process of its own, which a signal would end.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

import edgekit
from edgekit import sample

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it cuts mapped files, forks, and limits memory")

CUT = """
import os, sys
import edgekit
path, runtime, cut, options = sys.argv[1], sys.argv[2], sys.argv[3], eval(sys.argv[4])
model = edgekit.load(path, runtime, threads=1, **options)
before = model.generate("Once upon a time", max_tokens=4)
os.truncate(cut, 4096)
for function in (
    lambda: model.logits([1, 2, 3]), lambda: model.generate("Once upon a", max_tokens=4), lambda: model.embed("Once")
):
    try:
        function()
    except edgekit.EdgekitError as error:
        print(type(error).__name__, error)
    else:
        print("computed")
model.close()
"""


def run(program: str, *arguments: object) -> list[str]:
    """The lines that a program prints; it must end by itself and well."""
    command = [sys.executable, "-W", "ignore", "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr[-2000:]}"
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    edgekit.quantize(sample.path(), "F16", to=path)
    return path.read_bytes()


@pytest.fixture
def model(gguf: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf)
    return path


def test_a_gguf_that_is_cut_under_llama_cpp(model: Path):
    pytest.importorskip("llama_cpp")
    size = model.stat().st_size
    lines = run(CUT, model, "llamacpp", model, {"isolate": False})
    assert len(lines) == 3
    for line in lines:
        assert line.startswith(f"InvalidFileError {model}: it was cut from {size:,} to 4,096 bytes while it was in use")


def test_a_gguf_that_was_read_into_memory_may_be_cut(model: Path):
    pytest.importorskip("llama_cpp")
    assert run(CUT, model, "llamacpp", model, {"isolate": False, "mmap": False}) == ["computed"] * 3


BUS = """
import os, sys
import edgekit
import edgekit_llamacpp.isolated as isolated
model = edgekit.load(sys.argv[1], "llamacpp", threads=1, isolate=True)
# Past the look at the file's size, as where it is cut while the model computes.
os.kill(model._child.pid, {signal})
try:
    model.logits([1, 2, 3])
except edgekit.EdgekitError as error:
    print(type(error).__name__, error)
"""


def test_a_fault_in_the_isolated_worker_is_an_error(model: Path):
    pytest.importorskip("llama_cpp")
    (line,) = run(BUS.replace("{signal}", str(int(signal.SIGBUS))), model)
    assert line.startswith(f"InvalidFileError {model}: llama.cpp died (signal {int(signal.SIGBUS)}) in logits")


@pytest.mark.parametrize("genai", [True, False])
def test_weights_that_are_cut_under_openvino(genai: bool, tmp_path: Path):
    pytest.importorskip("openvino")
    if genai:
        pytest.importorskip("openvino_genai")
    edgekit.quantize(sample.path(), "INT8_ASYM", to=tmp_path / "ir", format="openvino")
    binary = tmp_path / "ir" / "openvino_model.bin"
    logits, text, embedding = run(CUT, tmp_path / "ir", "openvino", binary, {"genai": genai})
    assert "it was cut from" in text  # the graph that was loaded; the library itself refuses to compile another
    assert all(line.startswith("InvalidFileError ") for line in (logits, text, embedding))


def test_weights_that_openvino_read_into_memory_may_be_cut(tmp_path: Path):
    pytest.importorskip("openvino")
    program = """
import os, sys
import edgekit
model = edgekit.load(sys.argv[1], "openvino", threads=1, genai=False, mmap=False)
before = model.generate("Once upon a time", max_tokens=4)
os.truncate(sys.argv[2], 16)
print(model.generate("Once upon a time", max_tokens=4) == before)
"""
    edgekit.quantize(sample.path(), "INT8_ASYM", to=tmp_path / "ir", format="openvino")
    assert run(program, tmp_path / "ir", tmp_path / "ir" / "openvino_model.bin") == ["True"]


FORK = """
import os, sys
import edgekit
model = edgekit.load(sys.argv[1], "llamacpp", threads=2, **eval(sys.argv[2]))
text = model.generate("Once upon a time", max_tokens=4)
child = os.fork()
if child == 0:
    for function in (
        lambda: model.generate("Once upon a time", max_tokens=4),
        lambda: model.logits([1, 2]),
        lambda: edgekit.load(sys.argv[1], "llamacpp", isolate=False),
    ):
        try:
            print(function())
        except edgekit.EdgekitError as error:
            print(type(error).__name__, error, flush=True)
    with edgekit.load(sys.argv[1], "llamacpp", threads=1) as own:
        print(type(own).__name__, own.generate("Once upon a time", max_tokens=4) == text, flush=True)
    model.close()
    os._exit(0)
os.waitpid(child, 0)
print(model.generate("Once upon a time", max_tokens=4) == text)
"""


@pytest.mark.parametrize("isolate", [False, True])
def test_a_forked_process_is_told_and_loads_its_own(isolate: bool, model: Path):
    pytest.importorskip("llama_cpp")
    lines = run(FORK, model, {"isolate": isolate})
    assert lines[-1] == "True"  # the parent goes on
    for line in lines[:2]:
        assert line.startswith("UsageError ")
        assert "before this process was forked" in line
    if not isolate:
        assert lines[2].startswith("UsageError llama.cpp was used before this process was forked")
        assert lines[3] == "IsolatedRuntime True"


SHORT = """
import resource, sys
import edgekit
import edgekit_llamacpp.runtime, edgekit_llamacpp.library
from edgekit_llamacpp import model
artifact = edgekit.open(sys.argv[1])
artifact.model, artifact.tokenizer, edgekit_llamacpp.library.llama()
model.refuse_memory = lambda *arguments: None
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + int(sys.argv[2]),) * 2)
try:
    model.Loaded(artifact, model.Options.of(**eval(sys.argv[3])))
except edgekit.EdgekitError as error:
    print(type(error).__name__, error.exit_code, error)
"""


def test_memory_that_llama_cpp_does_not_get(model: Path):
    pytest.importorskip("llama_cpp")
    (line,) = run(SHORT, model, 0, {})
    size = model.stat().st_size
    assert line.startswith(f"MemoryShortageError 5 {model}: loading it with llama.cpp needs at least {size:,} bytes, ")
    (line,) = run(SHORT, model, 64 << 20, {"context": 4_000_000})
    assert line.startswith("MemoryShortageError 5 a context of 4000000 tokens in llama.cpp needs ")


IMPORT = """
import resource, sys
import numpy, edgekit, edgekit.files.memory, edgekit_openvino.library
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + int(sys.argv[1]),) * 2)
try:
    edgekit_openvino.library.openvino()
except edgekit.EdgekitError as error:
    print(type(error).__name__, error.exit_code, error)
"""


def test_a_library_that_memory_does_not_hold_is_not_called_missing():
    pytest.importorskip("openvino")
    (line,) = run(IMPORT, 4 << 20)
    assert line.startswith("MemoryShortageError 5 importing openvino needs more memory than there is")
