"""Kills, errors and races: what a writer leaves behind, and what the next run makes of it.

    python tests/contracts/crash.py [kills|errors|full|interrupts|races|moments|vanished] [--driver strace|python]
        [--setup NAME] [--every N]

A run is cut off before each of its file-system calls in turn. What it leaves is looked at, and then the same command
runs, or a different one: their bytes have to be those of an undisturbed run, with nothing beside them. There are two
ways to cut a run off:

* `strace` injects a SIGKILL, or an error, into the n-th call of a kind; everything is seen, what libraries write too.
* Without it, a forked child wraps Python's own functions of the file system and kills itself at the n-th call.

A Ctrl-C that comes just after a call is raised by the second way alone, and so is a disk that is full from the n-th
write on. `moments` needs neither: a run is killed at a random moment, the next one goes on with what it left and is
killed too, and the last one is left to finish. What `vanished` does is in `vanished.py`.
"""

from __future__ import annotations

import argparse
import builtins
import contextlib
import errno
import importlib.util
import io
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import attrs

import edgekit
from edgekit.errors import EdgekitError, LockedError
from edgekit.files import _swap, pairs
from edgekit.pipeline import _stream as stream

#: What strace is asked to look at: every call that changes a file system, and locks.
CALLS = (
    "openat,write,writev,pwrite64,ftruncate,fallocate,fsync,fdatasync,rename,renameat,renameat2,mkdir,unlink,unlinkat,"
    "rmdir,flock,link,symlink,copy_file_range,sendfile"
)
Tree = Mapping[str, bytes]
#: What the command line's program ends with after Ctrl-C.
INTERRUPTED = 130
#: What fails on a full disk.
WRITES = frozenset({"open", "write", "pwrite", "fallocate", "mkdir"})
#: A file that only one of the two models has.
EXTRA = ("preprocessor_config.json", "generation_config.json")
#: The command line with other sizes of chunks.
IN_PIECES = """
import sys
import edgekit.cli
import edgekit.pipeline._stream as stream
stream.CHUNK, stream.AHEAD = {}, {}
edgekit.cli.main(sys.argv[1:])
"""


@attrs.frozen
class Command:
    """A conversion: what is read, with which recipe, and in which format it is written.

    With `chunk` so many elements are encoded at a time, so that small tensors too are written in several pieces.
    """

    source: str
    recipe: str
    format: str
    chunk: int = 0

    def run(self, folder: Path, target: str) -> None:
        """Write `target` in the folder."""
        before = stream.CHUNK, stream.AHEAD
        if self.chunk:
            stream.CHUNK, stream.AHEAD = self.chunk, 4 * self.chunk
        try:
            edgekit.quantize(folder / self.source, self.recipe, to=folder / "out" / target, format=self.format)
        finally:
            stream.CHUNK, stream.AHEAD = before

    def line(self, folder: Path, target: str) -> list[str]:
        """The same for a shell."""
        to = str(folder / "out" / target)
        arguments = [str(folder / self.source), self.recipe, "--to", to, "--format", self.format]
        program = ["-c", IN_PIECES.format(self.chunk, 4 * self.chunk)] if self.chunk else ["-m", "edgekit"]
        return [sys.executable, *program, "quantize", *arguments]


@attrs.frozen
class Setup:
    """What is cut off, over what, and what else may run afterwards."""

    name: str
    target: str
    command: Command
    before: Command | None = None
    others: tuple[Command, ...] = ()


GGUF, EKX = Command("a", "Q8_0", "gguf"), Command("a", "affine:int8-sym-g32", "ekx")
HF, IR = Command("a", "affine:int8-sym-g32", "hf"), Command("a", "INT8_SYM", "openvino")
GGUF_B, HF_B, IR_B = (
    Command("b", "Q4_0", "gguf"),
    Command("b", "affine:int4-sym-g32", "hf"),
    Command("b", "NF4", "openvino"),
)
SETUPS = [
    Setup("gguf", "t.gguf", GGUF, None, (GGUF_B, EKX)),
    Setup("gguf over an older one", "t.gguf", GGUF, GGUF_B, (GGUF_B, EKX)),
    Setup("gguf over another format's", "t.gguf", GGUF, EKX, (GGUF_B, EKX)),
    Setup("directory", "t", HF, None, (HF_B,)),
    Setup("directory over an older one", "t", HF, HF_B, (HF_B,)),
    Setup("directory over an IR", "t", HF, IR, (HF_B, IR_B)),
    Setup("gguf in pieces", "t.gguf", attrs.evolve(GGUF, chunk=512), GGUF_B, (GGUF_B, GGUF)),
    Setup("directory in pieces", "t", attrs.evolve(HF, chunk=512), HF_B, (HF_B, HF)),
    Setup("IR", "t", IR, None, (IR_B, HF_B)),
    Setup("IR over a directory", "t", IR, HF, (IR_B, HF_B)),
]
#: Other formats, which are killed at random moments alone: their writers are those of the set-ups above.
MORE = [
    Setup("ekx", "t.ekx", EKX, attrs.evolve(EKX, recipe="affine:int4-sym-g32")),
    Setup("MLX", "t", Command("a", "4bit", "mlx"), Command("b", "8bit", "mlx")),
    Setup("ONNX", "t", Command("a", "MATMUL_NBITS_4_ASYM", "onnx"), Command("b", "MATMUL_NBITS_4", "onnx")),
]


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too; directories that are empty end in a slash."""
    found: dict[str, bytes] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            found |= {} if any(path.iterdir()) else {name + "/": b""}
        else:
            found[name] = path.read_bytes()
    return found


def believed(found: Tree, target: str) -> dict[str, bytes]:
    """What a reader sees of a target: its files, and its manifest's record where that belongs to them."""
    seen = {name: data for name, data in found.items() if name == target or name.startswith(target + "/")}
    manifest = found.get(target + pairs.SUFFIX)
    if target in seen and manifest is not None:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / target).write_bytes(seen[target])
            pairs.beside(Path(folder) / target).write_bytes(manifest)
            record = pairs.read_record(Path(folder) / target)
        if record is not None:
            seen[target + pairs.SUFFIX] = pairs.dumped(record)
    return seen


class MixedError(Exception):
    """Something was lost or mixed."""


class Bench:
    """Two models, and what every command makes of them undisturbed."""

    def __init__(self, folder: Path, setups: list[Setup]) -> None:
        from edgekit.testing._trips import random_artifact

        self.folder = folder
        for seed, name in enumerate("ab"):
            edgekit.convert(random_artifact(folder / "made", seed=seed), folder / name)
            (folder / name / EXTRA[seed]).write_text("{}")  # so that neither overwrites all that the other wrote
            for file in (folder / name).iterdir():  # long settled, as most models are
                os.utime(file, ns=(10**18, 10**18))
        self._warm_up()
        self.undisturbed: dict[tuple[Command, str], dict[str, bytes]] = {}
        for setup in setups:
            for command in (setup.command, setup.before, *setup.others):
                if command and (command, setup.target) not in self.undisturbed:
                    self.undisturbed[command, setup.target] = self._made(command, setup.target)

    def _warm_up(self) -> None:
        """Have the children find everything imported, but for OpenVINO, whose threads do not survive a fork."""
        self.lay(None, "")
        for number, command in enumerate((GGUF, EKX, HF)):
            with contextlib.suppress(EdgekitError):  # its plugin is not installed
                command.run(self.folder, f"warm{number}")

    def _made(self, command: Command, target: str) -> dict[str, bytes]:
        self.lay(None, target)
        check(forked(lambda: command.run(self.folder, target)) == 0, f"{command} fails undisturbed")
        return tree(self.out)

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def lay(self, before: Command | None, target: str) -> None:
        """Start over with what an earlier command has made."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        for name, data in (self.undisturbed[before, target] if before else {}).items():
            (self.out / name).parent.mkdir(parents=True, exist_ok=True)
            (self.out / name).write_bytes(data)

    def check_whole(self, setup: Setup, where: str, new_only: bool = False) -> None:
        """The target is the old one or the new one."""
        seen = believed(tree(self.out), setup.target)
        allowed = [self.undisturbed[setup.command, setup.target]]
        if not new_only:
            allowed.append(self.undisturbed[setup.before, setup.target] if setup.before else {})
        check(seen in allowed, f"{setup.name}, {where}: neither old nor new: {differences(seen, allowed)}")

    def check_next(self, setup: Setup, command: Command, where: str) -> None:
        """A command runs undisturbed over what is there; afterwards there is what it makes, and nothing else."""
        check(forked(lambda: command.run(self.folder, setup.target)) == 0, f"{setup.name}, {where}: {command} fails")
        found, wanted = tree(self.out), self.undisturbed[command, setup.target]
        check(found == wanted, f"{setup.name}, {where}, then {command}: {differences(found, [wanted])}")


def check(right: bool, text: str) -> None:
    """Raise `MixedError` where something is not right."""
    if not right:
        raise MixedError(text)


def differences(found: Tree, allowed: list[Any]) -> list[list[str]]:
    """Names that differ from each of what is allowed."""
    return [sorted(n for n in {*found, *each} if found.get(n) != each.get(n)) for each in allowed]


def forked(function: Callable[[], object]) -> int:
    """Run in a forked child; gives its exit code, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        _end_with(function)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _end_with(function: Callable[[], object]) -> None:
    """End this process with a function's exit code."""
    code = 70
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        function()
        code = 0
    except EdgekitError as error:
        code = error.exit_code
    except KeyboardInterrupt:
        code = INTERRUPTED
    finally:
        os._exit(code)


# -- the driver without strace --------------------------------------------------------------------------------------


class Calls:
    """Counts calls below a folder, and does something before the n-th, or after it.

    With `full` only `WRITES` count, and it is done before each from the n-th on.
    """

    def __init__(
        self, folder: Path, at: int, action: Callable[[str], None], after: bool = False, full: bool = False
    ) -> None:
        self.folder, self.at, self.action, self.after, self.full = str(folder), at, action, after, full
        self.seen: list[str] = []

    def call(self, name: str, where: object, real: Callable[..., Any], *rest: Any, **named: Any) -> Any:
        """Make a call; `where` as for `come`."""
        if not self.after:
            self.come(name, where)
        result = real(*rest, **named)
        if self.after:
            self.come(name, where)
        return result

    def come(self, name: str, where: object) -> None:
        """A call is about to be made, or was; `where` is a path, or None where that is known to be the folder."""
        inside = where is None or os.path.abspath(os.fsdecode(where)).startswith(self.folder)  # type: ignore[arg-type]
        if inside and (name in WRITES or not self.full):
            self.seen.append(name)
            if len(self.seen) == self.at or (self.full and 0 < self.at <= len(self.seen)):
                self.action(name)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Wrap Python's functions of the file system; only for a process that ends soon."""
        for name in ("open", "replace", "rename", "mkdir", "unlink", "rmdir"):
            self._wrap(os, name)
        self._wrap(os, "fsync", whole=True)
        if hasattr(os, "pwrite"):
            self._wrap(os, "pwrite", whole=True)
        from edgekit.files import _lock

        assert _lock.fcntl is not None
        self._wrap(_lock.fcntl, "flock", whole=True)
        real = _swap._renameat2()
        if real is not None:
            _swap._renameat2 = lambda: self._library("renameat2", real)  # type: ignore[assignment]
        fallocate = _swap._fallocate()
        if fallocate is not None:
            _swap._fallocate = lambda: self._library("fallocate", fallocate)  # type: ignore[assignment]
        calls, ordinary = self, builtins.open

        class Watched(io.FileIO):
            def write(self, data: Any) -> int:
                return int(calls.call("write", None, super().write, data))

            def truncate(self, size: int | None = None) -> int:
                return int(calls.call("truncate", None, super().truncate, size))

        def opened(file: Any, mode: str = "r", buffering: int = -1, **rest: Any) -> Any:
            if isinstance(file, int) and buffering == 0 and ("w" in mode or "+" in mode):
                return Watched(file, mode)
            return ordinary(file, mode, buffering, **rest)

        builtins.open = opened  # type: ignore[assignment]
        yield

    def _wrap(self, module: Any, name: str, whole: bool = False) -> None:
        real = getattr(module, name)

        def wrapped(first: Any, *rest: Any, **named: Any) -> Any:
            descriptor = whole or isinstance(first, int) or named.get("dir_fd") is not None
            reads = name == "open" and not (rest and rest[0] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            if reads:
                return real(first, *rest, **named)
            return self.call(name, None if descriptor else first, real, first, *rest, **named)

        setattr(module, name, wrapped)

    def _library(self, name: str, real: Any) -> Any:
        def called(*arguments: Any) -> Any:
            return self.call(name, None, real, *arguments)

        return called


def ended(name: str) -> None:
    """As a power switch does it."""
    os.kill(os.getpid(), signal.SIGKILL)


def failing(code: int) -> Callable[[str], None]:
    """As a disk does it."""

    def action(name: str) -> None:
        raise OSError(code, os.strerror(code))

    return action


def interrupted(name: str) -> None:
    """As Ctrl-C does it, which may come between any two instructions of the main thread."""
    if threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt


def without_exchange() -> None:
    """As on a system that cannot exchange two directories in one step."""
    _swap._renameat2 = lambda: None  # type: ignore[assignment]


def cut_by_python(
    bench: Bench,
    setup: Setup,
    at: int,
    action: Callable[[str], None],
    prepare: Any = None,
    after: bool = False,
    full: bool = False,
) -> int:
    """Run a set-up's command with something at its n-th call, or after it; gives the exit code."""

    def run() -> None:
        if prepare:
            prepare()
        with Calls(bench.out, at, action, after, full).watching():
            setup.command.run(bench.folder, setup.target)

    return forked(run)


def number_of_calls(bench: Bench, setup: Setup, prepare: Any = None, full: bool = False) -> int:
    """How many there are undisturbed."""
    reading, writing = os.pipe()

    def run() -> None:
        if prepare:
            prepare()
        calls = Calls(bench.out, 0, ended, full=full)
        with calls.watching():
            setup.command.run(bench.folder, setup.target)
        os.write(writing, str(len(calls.seen)).encode())

    bench.lay(setup.before, setup.target)
    check(forked(run) == 0, f"{setup.name} fails undisturbed")
    os.close(writing)
    with os.fdopen(reading) as pipe:
        return int(pipe.read())


def python_kills(bench: Bench, setup: Setup, every: int = 1, start: int = 1, prepare: Any = None) -> int:
    """Kill before every call that Python makes; gives how many there were."""
    nexts = itertools.cycle((setup.command, *setup.others))
    done = 0
    for at in range(start, number_of_calls(bench, setup, prepare) + 1, every):
        bench.lay(setup.before, setup.target)
        code = cut_by_python(bench, setup, at, ended, prepare)
        check(code == -signal.SIGKILL, f"{setup.name}: call {at} was not reached ({code})")
        where = f"killed before call {at}"
        if prepare is None:  # else there is an instant without a target, which the next run mends
            bench.check_whole(setup, where)
        bench.check_next(setup, next(nexts), where)
        done += 1
    return done


def python_errors(bench: Bench, setup: Setup, every: int = 1, start: int = 1, prepare: Any = None) -> int:
    """An error at every call that Python makes; gives how many there were."""
    codes = itertools.cycle((errno.EIO, errno.ENOSPC, errno.EACCES))
    places = range(start, number_of_calls(bench, setup, prepare) + 1, every)
    for at in places:
        _fail(bench, setup, at, next(codes), f"error at call {at}", prepare=prepare)
    return len(places)


def python_full(bench: Bench, setup: Setup, every: int = 1, start: int = 1) -> int:
    """A disk that is full from each write on, the journal's included; gives how many there were."""
    places = range(start, number_of_calls(bench, setup, full=True) + 1, every)
    for at in places:
        _fail(bench, setup, at, errno.ENOSPC, f"full from write {at} on", full=True)
    return len(places)


def _fail(bench: Bench, setup: Setup, at: int, code: int, what: str, **how: Any) -> None:
    """Run a set-up's command with an error at its n-th call; look at the target, and at the next run."""
    bench.lay(setup.before, setup.target)
    left = cut_by_python(bench, setup, at, failing(code), **how)
    where = f"{what}, exit code {left}"
    check(left in (0, 5), f"{setup.name}, {where}")
    bench.check_whole(setup, where, new_only=left == 0)
    bench.check_next(setup, setup.command, where)


def python_interrupts(bench: Bench, setup: Setup, every: int = 1, start: int = 1, prepare: Any = None) -> int:
    """A Ctrl-C after every call that Python makes; gives how many there were."""
    nexts = itertools.cycle((setup.command, *setup.others))
    done = 0
    for at in range(start, number_of_calls(bench, setup, prepare) + 1, every):
        bench.lay(setup.before, setup.target)
        code = cut_by_python(bench, setup, at, interrupted, prepare, after=True)
        where = f"interrupted after call {at}, exit code {code}"
        check(code in (0, INTERRUPTED), f"{setup.name}, {where}")  # 0: after a call of another thread, or the last one
        bench.check_whole(setup, where, new_only=code == 0)
        bench.check_next(setup, next(nexts), where)
        done += 1
    return done


#: Kills at random moments of all set-ups together, and how many runs in a row are killed before one may finish.
MOMENTS, IN_A_ROW = 500, 4


def moments(bench: Bench, setup: Setup, count: int) -> int:
    """Kill runs at random moments, each resuming what the last one left; gives how many were killed before their end.

    Runs that had ended when their moment came count neither here nor there. After every kill the target is looked at,
    and after `IN_A_ROW` runs an undisturbed one makes the same bytes as ever.
    """
    random = Random(setup.name)
    longest, done = min(seconds_of(bench, setup) for _ in range(3)), 0
    while done < count:
        bench.lay(setup.before, setup.target)
        new_only = False
        for _ in range(IN_A_ROW):
            moment = random.uniform(0, longest)
            code = killed_after(moment, lambda: setup.command.run(bench.folder, setup.target))
            check(code in (0, -signal.SIGKILL), f"{setup.name}, to be killed after {moment:.3f} s: exit code {code}")
            new_only = new_only or not code
            bench.check_whole(setup, f"killed after {moment:.3f} s", new_only)
            done += code != 0
        bench.check_next(setup, setup.command, f"killed {IN_A_ROW} times")
    return done


def seconds_of(bench: Bench, setup: Setup) -> float:
    """How long an undisturbed run takes."""
    bench.lay(setup.before, setup.target)
    started = time.monotonic()
    code = forked(lambda: setup.command.run(bench.folder, setup.target))
    check(code == 0, f"{setup.name} fails undisturbed")
    return time.monotonic() - started


def killed_after(seconds: float, function: Callable[[], object]) -> int:
    """Run in a forked child that is killed at a moment, unless it has ended; gives its exit code, or minus SIGKILL."""
    child = os.fork()
    if child == 0:
        _end_with(function)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


# -- the driver with strace -----------------------------------------------------------------------------------------

_LINE = re.compile(r"^(\d+) +(\w+)\((.*)$")


def strace(bench: Bench, setup: Setup, *options: str) -> int:
    """Run a set-up's command under strace; gives the exit code, or minus a signal."""
    paths = [option for path in traced_paths(bench, setup) for option in ("-P", path)]
    command = ["strace", "-f", "-o", str(bench.folder / "trace"), "-e", f"trace={CALLS}", *paths, *options]
    done = subprocess.run(
        [*command, *setup.command.line(bench.folder, setup.target)], capture_output=True, check=False, cwd=bench.folder
    )
    return done.returncode


def traced_paths(bench: Bench, setup: Setup) -> list[str]:
    """Every path that the command writes."""
    out, target = bench.out, bench.out / setup.target
    around = [_swap.hidden(target, what) for what in ("lock", "partial", "partial.json", "manifest", "old", "gone")]
    new = bench.undisturbed[setup.command, setup.target]
    old = bench.undisturbed[setup.before, setup.target] if setup.before else {}
    names = {name.partition("/")[2] for name in {*new, *old} if "/" in name}
    parts = {_swap.hidden(Path(name), what).name for name in names for what in ("partial", "partial.json")}
    folders = [around[1], around[4], around[5], target] if names else []
    inside = [folder / name for folder in folders for name in sorted(names | parts)]
    return [str(path) for path in (out, target, pairs.beside(target), *around, *inside)]


def strace_calls(bench: Bench, setup: Setup) -> list[tuple[str, int]]:
    """Each kind of call with the numbers that a thread reaches."""
    bench.lay(setup.before, setup.target)
    check(strace(bench, setup) == 0, f"{setup.name} fails undisturbed under strace")
    count: Counter[tuple[str, str]] = Counter()
    for line in (bench.folder / "trace").read_text(errors="replace").splitlines():
        if match := _LINE.match(line):
            count[match[1], match[2]] += 1
    most: dict[str, int] = {}
    for (_, call), times in count.items():
        most[call] = max(most.get(call, 0), times)
    return [(call, number) for call, times in sorted(most.items()) for number in range(1, times + 1)]


def strace_kills(bench: Bench, setup: Setup, every: int = 1, start: int = 1) -> int:
    """Kill before every call that the process makes on what it writes; gives how many there were."""
    nexts = itertools.cycle((setup.command, *setup.others))
    chosen = strace_calls(bench, setup)[start - 1 :: every]
    for call, number in chosen:
        bench.lay(setup.before, setup.target)
        code = strace(bench, setup, "-e", f"inject={call}:signal=KILL:when={number}")
        where = f"killed before {call} {number} ({code})"
        check(code in (0, -signal.SIGKILL, 128 + signal.SIGKILL), f"{setup.name}, {where}")
        bench.check_whole(setup, where)
        bench.check_next(setup, next(nexts), where)
    return len(chosen)


def strace_errors(bench: Bench, setup: Setup, every: int = 1, start: int = 1) -> int:
    """An error at every call; gives how many there were."""
    chosen = strace_calls(bench, setup)[start - 1 :: every]
    codes = itertools.cycle(("EIO", "ENOSPC", "EACCES"))
    for call, number in chosen:
        bench.lay(setup.before, setup.target)
        code = strace(bench, setup, "-e", f"inject={call}:error={next(codes)}:when={number}")
        where = f"error at {call} {number}, exit code {code}"
        check(code in (0, 3, 5), f"{setup.name}, {where}")  # 3: what is there, or was just written, cannot be read
        bench.check_whole(setup, where, new_only=code == 0)
        bench.check_next(setup, setup.command, where)
    return len(chosen)


# -- races ----------------------------------------------------------------------------------------------------------


def race(bench: Bench, target: str, commands: tuple[Command, ...], seconds: float) -> tuple[int, int]:
    """Four processes write one target, a fifth reads it; gives the number of runs and of readings that succeeded."""
    bench.lay(commands[0], target)
    until = time.monotonic() + seconds
    reading, writing = os.pipe()
    children: list[int] = []
    for number in range(5):
        child = os.fork()
        if child == 0:
            code = 71
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                done = _read(bench, target, until) if number == 4 else _write(bench, target, commands, number, until)
                os.write(writing, f"{number} {done}\n".encode())
                code = 0
            except BaseException as error:
                os.write(writing, f"! {type(error).__name__}: {error}\n".replace("\n", " ").encode() + b"\n")
            finally:
                os._exit(code)
        children.append(child)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        lines = pipe.read().splitlines()
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    check(not any(statuses), f"{target}: {[line for line in lines if line.startswith('!')]} {statuses}")
    found = tree(bench.out)
    wanted = [bench.undisturbed[command, target] for command in commands]
    check(found in wanted, f"{target}: a mixture, or leftovers: {differences(found, wanted)}")
    numbers = {int(line.split()[0]): int(line.split()[1]) for line in lines}
    return sum(numbers[n] for n in range(4)), numbers[4]


def _write(bench: Bench, target: str, commands: tuple[Command, ...], number: int, until: float) -> int:
    done = 0
    for turn in itertools.count(number):
        if time.monotonic() > until:
            return done
        try:
            commands[turn % len(commands)].run(bench.folder, target)
            done += 1
        except LockedError:
            time.sleep(0.001)
    raise AssertionError("an endless count has ended")


def _read(bench: Bench, target: str, until: float) -> int:
    done = 0
    while time.monotonic() < until:
        opened = edgekit.open(bench.out / target)
        check(opened.manifest is not None, "a reading without a manifest")
        assert opened.manifest is not None
        said = {t["precision"] for t in opened.manifest.tensors.values()}
        has = {t.precision.name for t in opened.tensors.values() if hasattr(t, "precision")}
        check(has <= said, f"the manifest says {said}, the file has {has}")
        for tensor in opened.tensors.values():
            tensor.read()
        done += 1
    return done


RACES = {"t.gguf": (GGUF, GGUF_B), "t": (HF, HF_B)}


def chosen_setups(name: str | None, setups: Sequence[Setup] = SETUPS) -> list[Setup]:
    """The set-ups of a name, or all for which the plugins and their libraries are installed."""
    formats = {registration.name for registration in edgekit.plugin._registry.manager().all("formats")}
    for format, library in (("openvino", "openvino"), ("onnx", "onnx")):
        if importlib.util.find_spec(library) is None:
            formats.discard(format)  # the plugin is there, its framework is not
    used = [s for s in setups if {c.format for c in (s.command, s.before) if c} <= formats]
    known = [attrs.evolve(s, others=tuple(c for c in s.others if c.format in formats)) for s in used]
    return [s for s in known if name in (None, s.name)]


def main() -> None:
    """Run what the command line asks for, and print how much there was."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    everything = ["kills", "errors", "full", "interrupts", "races", "moments", "vanished"]
    parser.add_argument("what", nargs="*", default=everything)
    parser.add_argument(
        "--driver", choices=["strace", "python"], default="strace" if shutil.which("strace") else "python"
    )
    parser.add_argument("--setup", help="only this one: " + ", ".join(s.name for s in (*SETUPS, *MORE)))
    parser.add_argument("--every", type=int, default=1, help="only every n-th call")
    parser.add_argument("--seconds", type=float, default=60, help="of each race")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        more = chosen_setups(given.setup, MORE) if "moments" in given.what else []
        bench = Bench(Path(os.path.realpath(folder)), [*chosen_setups(given.setup), *more])
        for what in given.what:
            if what == "vanished":
                sys.modules.setdefault("crash", sys.modules[__name__])  # which imports this program
                import vanished

                start = time.monotonic()
                with tempfile.TemporaryDirectory() as apart:
                    for line in vanished.lines(Path(os.path.realpath(apart)), given.setup, given.every):
                        print(line, f"in {time.monotonic() - start:.0f} s", flush=True)
                continue
            if what == "races":
                for target, commands in RACES.items():
                    runs, readings = race(bench, target, commands, given.seconds)
                    print(f"race for {target}: {runs} runs, {readings} readings, nothing mixed", flush=True)
                continue
            driver = "python" if what in ("interrupts", "full") else given.driver
            function = moments if what == "moments" else globals()[f"{driver}_{what}"]
            setups = chosen_setups(given.setup) + (more if what == "moments" else [])
            for setup in setups:
                start = time.monotonic()
                count = function(bench, setup, given.every if what != "moments" else -(-MOMENTS // len(setups)))
                print(f"{what}, {setup.name}: {count} in {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
