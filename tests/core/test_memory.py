"""Memory and temporary space that do not suffice: exit code 5, a class of its own, and the figure that was wanted."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import EdgekitError, InvalidFileError, MemoryShortageError, ResourceError
from edgekit.files import memory
from edgekit.files.memory import enough_memory, is_shortage, requested_by, shortage
from edgekit.files.temporary import temporary_directory
from edgekit.formats import safetensors

linux = pytest.mark.skipif(sys.platform != "linux", reason="it limits the address space")


def test_the_class_is_what_callers_catch() -> None:
    error = shortage("x: reading it", 4096)
    assert isinstance(error, ResourceError | OSError)
    assert isinstance(error, MemoryError)
    assert error.exit_code == 5


def test_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    cure = "close other programs, raise the limit (ulimit -v), or take a smaller model"
    monkeypatch.setattr(memory, "available", lambda: 1000)
    assert str(shortage("it", 4096)) == f"it needs 4,096 bytes, 1,000 are available; {cure}"
    assert str(shortage("it", 4096, least=True)) == f"it needs at least 4,096 bytes, 1,000 are available; {cure}"
    monkeypatch.setattr(memory, "available", lambda: None)
    assert str(shortage("it")) == f"it needs more memory than there is; {cure}"


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (MemoryError(), None),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), None),
        (ImportError("libopenvino.so: failed to map segment from shared object"), None),
        (RuntimeError("std::bad_alloc"), None),
        (RuntimeError("can't start new thread"), None),
        (RuntimeError("ggml_aligned_malloc: insufficient memory (attempted to allocate 244.5 MB)"), 244_500_000),
        (RuntimeError("failed to allocate CPU buffer of size 256081920"), 256_081_920),
    ],
)
def test_what_libraries_say(error: Exception, wanted: int | None) -> None:
    assert is_shortage(error)
    assert requested_by(error) == wanted
    with pytest.raises(MemoryShortageError), enough_memory("it"):
        raise error


def test_what_a_library_says_instead() -> None:
    """llvmlite answers the loader's error with one of its own."""
    try:
        try:
            raise OSError("libllvmlite.so: failed to map segment from shared object")
        except OSError:
            raise OSError("Could not find/load shared object file")  # noqa: B904
    except OSError as error:
        assert is_shortage(error)


@linux
def test_an_error_that_compiled_code_forgot_to_set(tmp_path: Path) -> None:
    """CPython's C code may miss a failed allocation; it is a shortage only where memory is short."""
    program = """
print(edgekit.files.memory.is_shortage(SystemError("error return without exception set")))
limit(16 << 20)
print(edgekit.files.memory.is_shortage(SystemError("error return without exception set")))
"""
    assert limited(program, tmp_path) == (0, "False\nTrue\n")


def test_other_errors_stay_what_they_are() -> None:
    for error in (ValueError("x"), OSError(errno.ENOENT, "No such file"), InvalidFileError("out of memory")):
        with pytest.raises(type(error)) as caught, enough_memory("it", 5):
            raise error
        assert caught.value is error


def test_numpys_own_figure() -> None:
    with pytest.raises(MemoryShortageError, match=r"^it needs 9,223,372,036,854,775,804 bytes"), enough_memory("it"):
        np.empty((1 << 61) - 1, np.float32)


LIMITED = """
import resource, sys
import numpy as np
import edgekit, edgekit.files.memory, edgekit.formats.hf, edgekit.architectures.hf, edgekit.evaluation
from edgekit.cli import main
def limit(more):
    pages = int(open("/proc/self/statm").read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more,) * 2)
path = sys.argv[1]
"""


def limited(program: str, path: Path) -> tuple[int, str]:
    command = [sys.executable, "-c", LIMITED + program, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A model whose one tensor has 64 MiB; the file is sparse."""
    return sparse(tmp_path, "w")


def sparse(tmp_path: Path, name: str) -> Path:
    header = safetensors.build_header([safetensors.Part(name, "float32", (4096, 4096))], {})
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(header)
        file.truncate(len(header) + (64 << 20))
    (tmp_path / "config.json").write_text('{"model_type": "none"}')
    return tmp_path


@linux
def test_a_tensor_that_memory_does_not_hold(large: Path) -> None:
    program = """
limit(16 << 20)
try:
    edgekit.open(path).tensors["w"].read()
except edgekit.EdgekitError as error:
    print(type(error).__name__, error.exit_code, error)
"""
    code, said = limited(program, large)
    assert code == 0
    assert f"MemoryShortageError 5 {large}/model.safetensors: reading tensor w needs 67,108,864 bytes, " in said


@linux
@pytest.mark.parametrize("recipe", ["F16", "affine:int4-asym-g32"])
def test_no_tensor_is_in_memory_as_a_whole(tmp_path: Path, recipe: str) -> None:
    """A tensor of 64 MiB is read, encoded and written in chunks of 2 MiB: on two cores, five are there at a time.

    A chunk that waits has its rows, one that is done at most as much; what encoding takes beside is less.
    """
    program = f"""
import os, tracemalloc
os.sched_getaffinity = lambda _: {0, 1}
import edgekit.pipeline._stream as stream, edgekit.cli._verbs.quantize
import edgekit.reference.affine, edgekit.reference.floats
tracemalloc.start()
edgekit.quantize(path, {recipe!r}, to=path + "-out", allow_unquantized=True, backend="reference")
print(tracemalloc.get_traced_memory()[1] - 5 * 8 * stream.CHUNK, stream.AHEAD // stream.CHUNK)
"""
    model = sparse(tmp_path, "w.weight")
    code, said = limited(program, model)
    assert code == 0, said
    beside, waiting = map(int, said.split()[-2:])
    assert waiting == 4
    assert beside < 2e6  # what Python itself takes
    written = model.with_name(f"{model.name}-out") / "model.safetensors"
    assert {"F16": 2 << 24, "affine:int4-asym-g32": 11 << 20}[recipe] - written.stat().st_size < 1 << 19


@linux
def test_opening_a_large_file_takes_no_address_space(large: Path) -> None:
    code, said = limited("limit(16 << 20)\nprint(edgekit.open(path).tensors['w'].shape)", large)
    assert (code, said) == (0, "(4096, 4096)\n")


@linux
def test_the_command_line_ends_with_5(large: Path) -> None:
    program = """
import edgekit.cli._verbs.quantize, edgekit.reference.affine, edgekit.pipeline._stream
limit(24 << 20)
main(["quantize", path, "affine:int4-sym-g32", "--to", path + "-out", "--allow-unquantized"])
"""
    code, said = limited(program, large)
    assert code == 5, said
    assert "edgekit: error: " in said
    assert " bytes" in said
    assert "Traceback" not in said
    assert "permission" not in said


@linux
def test_a_plugin_that_memory_does_not_hold_is_not_called_broken() -> None:
    from edgekit.plugin._registry import Registration

    class Registered(Registration):
        def _checked(self, loaded: object) -> object:
            raise MemoryError

    with pytest.raises(MemoryShortageError, match="loading runtime 'x' of d needs"):
        Registered("runtimes", "x", "json:loads", "p", "d").load()


FULL = """
import resource, signal, sys
from edgekit.errors import EdgekitError
from edgekit.files.temporary import temporary_directory
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
if sys.argv[1] == "before":
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
try:
    with temporary_directory("converting") as folder:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        if sys.argv[1] == "library":
            raise RuntimeError("Can't write the file")
        (folder / "x").write_bytes(b"1")
except EdgekitError as error:
    print(type(error).__name__, error)
"""


@linux
@pytest.mark.parametrize("when", ["before", "inside", "library"])
def test_a_full_temporary_directory(when: str) -> None:
    """A limit of 0 bytes on files stands for a full disk."""
    command = [sys.executable, "-c", FULL, when]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.startswith("ResourceError converting needs a temporary directory, and "), done.stderr
    assert "free some space there, or name another with TMPDIR" in done.stdout


def test_other_errors_in_a_temporary_directory_are_not_its_own() -> None:
    with pytest.raises(RuntimeError, match=r"^unrelated$"), temporary_directory("x"):
        raise RuntimeError("unrelated")
    with pytest.raises(EdgekitError, match=r"^ours$"), temporary_directory("x"):
        raise InvalidFileError("ours")
