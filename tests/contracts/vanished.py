"""Sources that vanish while they are converted: removed, renamed, cut, emptied, replaced or overwritten.

    python tests/contracts/crash.py vanished [--setup NAME] [--every N]

Just before each of a run's reads of its source in turn, one of the source's files vanishes in each of these ways. The
run has to end with exit code 3 or 5 and a message that names the file, never with a signal, and the target has to stay
as it was. With the source put back, the same command has to make the bytes of an undisturbed run, with nothing beside
them. A run may succeed only where what it wrote is what the changed source gives: the file was replaced before it was
opened.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import attrs
import crash

import edgekit
from edgekit.formats import safetensors

#: Long ago, in nanoseconds: a file's times tell that it was changed.
_SETTLED = 10**18
_SHARDS = 3
Fault = Callable[[Path, Path], object]


def _overwritten(file: Path, other: Path) -> None:
    """As a download does it that begins again: the same inode, other bytes."""
    with file.open("r+b") as stream:
        stream.write(other.read_bytes())
        stream.truncate()


def _replaced(file: Path, other: Path) -> None:
    """As an atomic writer does it: another inode."""
    shutil.copyfile(other, new := file.with_name("new"))
    os.replace(new, file)


#: What happens to a file; the second path is that of another content.
FAULTS: dict[str, Fault] = {
    "removed": lambda file, other: file.unlink(),
    "renamed": lambda file, other: file.rename(file.with_name("elsewhere")),
    "cut": lambda file, other: os.truncate(file, file.stat().st_size // 2),
    "emptied": lambda file, other: os.truncate(file, 0),
    "replaced": _replaced,
    "overwritten": _overwritten,
}
_INT8 = "affine:int8-sym-g32"
#: In pieces, so that a tensor takes several reads.
SETUPS = [
    crash.Setup("file", "t", crash.Command("file.gguf", _INT8, "hf", 512), crash.HF_B),
    crash.Setup("file to gguf", "t.gguf", crash.Command("file.gguf", "Q8_0", "gguf", 512), crash.GGUF_B),
    crash.Setup("shards", "t", crash.Command("shards", _INT8, "hf", 512), crash.HF_B),
    crash.Setup("shards to gguf", "t.gguf", crash.Command("shards", "Q8_0", "gguf", 512), crash.GGUF_B),
    crash.Setup("ONNX with external data", "t", crash.Command("onnx", _INT8, "hf", 512), crash.HF_B),
]


def chosen_setups(name: str | None = None) -> list[crash.Setup]:
    """The set-ups of a name, or all for which the plugins and their libraries are installed."""
    missing = {"gguf"} if importlib.util.find_spec("edgekit_gguf") is None else set()
    if any(importlib.util.find_spec(each) is None for each in ("onnx", "edgekit_olive")):
        missing.add("onnx")
    needed = {setup.name: {setup.command.format, Path(setup.command.source).suffix[1:]} for setup in SETUPS}
    needed["ONNX with external data"].add("onnx")
    return [s for s in SETUPS if name in (None, s.name) and not needed[s.name] & missing]


class Vanishing:
    """The sources of some set-ups, two contents of each, beside what a `crash.Bench` has."""

    def __init__(self, folder: Path, setups: list[crash.Setup]) -> None:
        self.bench = crash.Bench(folder, [])
        self.kept, self.others = folder / "kept", folder / "others"
        for model, to in (("a", self.kept), ("b", self.others)):
            to.mkdir()
            for name in {setup.command.source for setup in setups}:
                _make(folder / model, to / name)
        self.settle()
        made = [(each, s.target) for s in setups for each in (s.command, s.before) if each is not None]
        for command, target in made:
            if (command, target) not in self.bench.undisturbed:
                self.bench.undisturbed[command, target] = self.bench._made(command, target)

    def settle(self) -> None:
        """Put every source back as it was."""
        for kept in self.kept.iterdir():
            source = self.bench.folder / kept.name
            for each in (source, source.with_name("elsewhere")):
                shutil.rmtree(each) if each.is_dir() else each.unlink(missing_ok=True)
            shutil.copytree(kept, source) if kept.is_dir() else shutil.copyfile(kept, source)
            for file in self.files(kept.name):
                os.utime(file, ns=(_SETTLED, _SETTLED))

    def files(self, source: str) -> list[Path]:
        """Every file of a source."""
        path = self.bench.folder / source
        return sorted(path.iterdir()) if path.is_dir() else [path]

    def other(self, file: Path) -> Path:
        """The file of the other model that has this one's place, or the same one with a byte more where they agree."""
        relative = file.relative_to(self.bench.folder)
        mine, other = self.kept / relative, self.others / relative
        if mine.read_bytes() != other.read_bytes():
            return other
        longer = self.others / "longer"
        longer.write_bytes(mine.read_bytes() + b" ")
        return longer


def _make(model: Path, to: Path) -> None:
    """Write a Hugging Face directory's weights in float32 as the source of that name."""
    if to.name == "onnx":
        edgekit.convert(model, to, format="onnx")
    elif to.suffix:
        edgekit.convert(model, to)
    else:
        _split(model, to)


def _split(model: Path, to: Path) -> None:
    """Write the weights in shards, with an index."""
    to.mkdir()
    shutil.copyfile(model / "config.json", to / "config.json")
    tensors, _ = safetensors.open_tensors(model / "model.safetensors")
    names = [f"model-{number + 1:05}-of-{_SHARDS:05}.safetensors" for number in range(_SHARDS)]
    for number, name in enumerate(names):
        safetensors.write(to / name, {key: each.read() for key, each in list(tensors.items())[number::_SHARDS]})
    index = ", ".join(f'"{key}": "{names[number % _SHARDS]}"' for number, key in enumerate(tensors))
    (to / "model.safetensors.index.json").write_text(f'{{"metadata": {{}}, "weight_map": {{{index}}}}}')


@attrs.define
class Reads:
    """Counts the reads and the openings below a path, and does something before the n-th."""

    source: Path
    at: int
    action: Callable[[], object]
    seen: int = 0

    def watch(self) -> None:
        """Wrap the functions that read; only for a process that ends soon."""
        real_open, real_read = os.open, os.preadv
        descriptors: set[int] = set()

        def opened(path: Any, *rest: Any, **named: Any) -> int:
            below = os.path.abspath(os.fsdecode(path)).startswith(str(self.source))
            if below:
                self.come()
            descriptor = real_open(path, *rest, **named)
            (descriptors.add if below else descriptors.discard)(descriptor)  # numbers are used again
            return descriptor

        def read(descriptor: int, *rest: Any) -> int:
            if descriptor in descriptors:
                self.come()
            return real_read(descriptor, *rest)

        os.open, os.preadv = opened, read  # type: ignore[assignment]

    def come(self) -> None:
        """A read is about to begin."""
        self.seen += 1
        if self.seen == self.at:
            self.action()


def _run(vanishing: Vanishing, setup: crash.Setup, at: int, action: Callable[[], object]) -> tuple[int, str]:
    """Run a set-up's command with something before its n-th read; gives its exit code and its message or its reads."""
    bench, said = vanishing.bench, vanishing.bench.folder / "said"

    def run() -> None:
        reads = Reads(bench.folder / setup.command.source, at, action)
        reads.watch()
        try:
            setup.command.run(bench.folder, setup.target)
        except edgekit.errors.EdgekitError as error:
            said.write_text(str(error))
            raise
        said.write_text(str(reads.seen))

    said.write_text("")
    bench.lay(setup.before, setup.target)
    return crash.forked(run), said.read_text()


def number_of_reads(vanishing: Vanishing, setup: crash.Setup) -> int:
    """How many there are undisturbed."""
    code, said = _run(vanishing, setup, 0, lambda: None)
    crash.check(code == 0, f"{setup.name} fails undisturbed: {said}")
    return int(said)


def vanished(vanishing: Vanishing, setup: crash.Setup, every: int = 1, start: int = 1) -> dict[int, int]:
    """Have a file vanish before each read in each way; gives how many runs ended with which exit code."""
    bench, random, codes = vanishing.bench, Random(setup.name), dict[int, int]()
    cases = itertools.product(range(1, number_of_reads(vanishing, setup) + 1), FAULTS)
    manifest = "edgekit.manifest.json"  # read whole at opening, and not copied
    files = [file for file in vanishing.files(setup.command.source) if file.name != manifest]
    for at, fault in itertools.islice(cases, start - 1, None, every):
        file = random.choice(files)
        other = vanishing.other(file)
        code, said = _run(vanishing, setup, at, lambda f=file, o=other, name=fault: FAULTS[name](f, o))
        where = f"{setup.name}, {file.name} {fault} before read {at}"
        if code == 0:
            _check_of_changed_source(vanishing, setup, where)
        else:
            crash.check(code in (3, 5), f"{where}: exit code {code}, {said!r}")
            unknown = f"{bench.folder / setup.command.source}: no installed format recognises it" in said
            crash.check(file.name in said or unknown, f"{where}: the message does not name it: {said!r}")
            found, old = crash.tree(bench.out), bench.undisturbed[setup.before, setup.target]
            seen = {name: found.get(name) for name in old}
            crash.check(seen == old, f"{where}: the target was changed: {crash.differences(found, [old])}")
        codes[code] = codes.get(code, 0) + 1
        vanishing.settle()
        bench.check_next(setup, setup.command, where)
    return codes


def _check_of_changed_source(vanishing: Vanishing, setup: crash.Setup, where: str) -> None:
    """What a run wrote is what its source gives as it lies there now."""
    bench = vanishing.bench
    found = crash.tree(bench.out)
    bench.lay(None, setup.target)
    code = crash.forked(lambda: setup.command.run(bench.folder, setup.target))
    crash.check(code == 0, f"{where}: the run succeeded, but the source cannot be read any more")
    wanted = crash.tree(bench.out)
    crash.check(found == wanted, f"{where}: the run succeeded with a mixture: {crash.differences(found, [wanted])}")


def lines(folder: Path, name: str | None, every: int) -> Iterator[str]:
    """Yield what came of each set-up."""
    vanishing = Vanishing(folder, setups := chosen_setups(name))
    for setup in setups:
        codes = vanished(vanishing, setup, every)
        refused = ", ".join(f"{count} with exit code {code}" for code, count in sorted(codes.items()) if code)
        yield f"vanished, {setup.name}: {sum(codes.values())}; {refused}; {codes.get(0, 0)} read the new file whole"


if __name__ == "__main__":
    sys.exit("run it with crash.py: python tests/contracts/crash.py vanished")
