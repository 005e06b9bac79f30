"""Checks of how files are written and read: deterministic, atomic, resumable, and safe with malformed input."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np

from edgekit.artifact import Artifact
from edgekit.errors import EdgekitError, InvalidFileError
from edgekit.manifest import Manifest
from edgekit.tensor import EncodedTensor, Tensor
from edgekit.testing._kit import CheckFailure, Kit, Profile, fail
from edgekit.testing._trips import encoded, plan_of, random_artifact
from edgekit.testing.formats._subject import FormatSubject, contents_of, temporary_folder

#: Bytes that reading a damaged file may allocate, in addition to eight times the file's size.
_ALLOCATED = 1 << 26
#: Number of fields at the start of a file that are set to a quarter of a gigabyte, one after the other.
_FIELDS = 12
#: The checks of this module, in the order in which they run.
ROOM: Kit[FormatSubject] = Kit("formats")


@ROOM.check
def check_deterministic(subject: FormatSubject, profile: Profile) -> None:
    """Written twice, every file has the same bytes: they depend on no clock, path or random order.

    Caches, reproducible builds and signatures rely on this.
    """
    with temporary_folder() as folder:
        source, written = random_artifact(folder), []
        for name in ("one", "two"):
            (folder / name).mkdir()
            written.append(contents_of(subject.write(folder / name, source)))
        for file, data in written[0].items():
            if written[1].get(file) != data:
                fail(f"{file} differs when it is written a second time")


@ROOM.check
def check_atomic(subject: FormatSubject, profile: Profile) -> None:
    """Before `commit` the target is unchanged; a writer that is closed early leaves the folder as it was.

    An artifact appears whole or not at all: it is written beside the target, synced, and renamed. Use
    `edgekit.files.atomic`.
    """
    with temporary_folder() as folder:
        source, path = random_artifact(folder / "source"), folder / f"model{subject.suffix}"
        _begin_and_stop(subject, source, path)
        left = sorted(file.name for file in folder.iterdir())
        if left:
            fail(f"a writer that was closed without commit left {', '.join(left)} behind")
        subject.write(folder, source)
        before = contents_of(path)
        other = random_artifact(folder / "source", seed=1)
        _begin_and_stop(subject, other, path)
        if contents_of(path) != before:
            fail("a writer that was closed without commit changed the artifact that was there")


def _begin_and_stop(subject: FormatSubject, source: Artifact, path: Path) -> None:
    existed = path.exists()
    layout = subject.format.layout(source)

    plan = plan_of(layout)
    writer = subject.format.writer(path, layout, plan, Manifest())
    try:
        for slot, assignment in list(zip(layout.slots, plan, strict=True))[:2]:
            writer.write(encoded(slot, assignment))
        if path.exists() and not existed:
            fail(f"{path.name} is there before commit: whoever opens it reads half a model")
    finally:
        writer.close()


@ROOM.check
def check_complete(subject: FormatSubject, profile: Profile) -> None:
    """`commit` raises if tensors are missing, and `write` raises if a tensor is not the plan's next.

    Otherwise a bug in a pipeline produces a file that opens but has wrong contents.
    """
    with temporary_folder() as folder:
        source, path = random_artifact(folder / "source"), folder / f"model{subject.suffix}"
        layout = subject.format.layout(source)
        plan = plan_of(layout)
        pairs = list(zip(layout.slots, plan, strict=True))
        for what, tensors in {"a tensor is missing": pairs[:-1], "the order is wrong": [*pairs[1:], pairs[0]]}.items():
            writer = subject.format.writer(path, layout, plan, Manifest())
            try:
                for slot, assignment in tensors:
                    writer.write(encoded(slot, assignment))
                writer.commit()
            except EdgekitError:
                continue
            finally:
                writer.close()
            fail(f"{what}, and nothing was said")


@ROOM.check
def check_resumes(subject: FormatSubject, profile: Profile) -> None:
    """An interrupted run resumes, or starts anew, and writes the same bytes.

    `writer.done` is the number of tensors kept from the interrupted run. Typical fault: it is off by one.
    """
    with temporary_folder() as folder:
        for name in ("whole", "parts"):
            (folder / name).mkdir()
        source = random_artifact(folder / "source")
        expected = contents_of(subject.write(folder / "whole", source))
        path, layout = folder / "parts" / f"model{subject.suffix}", subject.format.layout(source)
        plan = plan_of(layout)
        pairs = list(zip(layout.slots, plan, strict=True))
        writer = subject.format.writer(path, layout, plan, Manifest())
        for slot, assignment in pairs[:3]:
            writer.write(encoded(slot, assignment))
        writer.close(keep=True)
        writer = subject.format.writer(path, layout, plan, Manifest())
        try:
            for slot, assignment in pairs[writer.done :]:
                writer.write(encoded(slot, assignment))
            writer.commit()
        finally:
            writer.close()
        actual = contents_of(path)
        differing = sorted(file for file in expected if actual.get(file) != expected[file])
        if differing:
            fail(f"resumed, {', '.join(differing)} differs from what one run writes")


@ROOM.check
def check_opening_writes_nothing(subject: FormatSubject, profile: Profile) -> None:
    """Opening and reading an artifact changes none of its files, and creates none beside it.

    Models may be on read-only disks, and are shared between processes.
    """
    with temporary_folder() as folder:
        path = subject.write(folder, random_artifact(folder))
        before = {file: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
        _refusal(subject, path)
        after = {file: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
        for file in sorted(before.keys() | after.keys()):
            if before.get(file) != after.get(file):
                fail(f"opening and reading it writes {file.name}")


@ROOM.check
def check_truncated(subject: FormatSubject, profile: Profile) -> None:
    """A file truncated at any point is refused with `InvalidFileError` or another typed error.

    Interrupted downloads truncate files. A truncated file that opens gives wrong weights.
    """
    with temporary_folder() as folder:
        path = subject.write(folder, random_artifact(folder))
        file = max(subject.format.open(path).files, key=lambda f: f.stat().st_size)
        data = file.read_bytes()
        cuts = np.unique(np.r_[np.linspace(0, len(data) - 1, 24 if profile.name == "quick" else 200).astype(int), 1, 7])
        for cut in cuts:
            file.write_bytes(data[:cut])
            error = _refusal(subject, path)
            if error is None:
                fail(f"{file.name} cut off after {cut} of {len(data)} bytes opens and reads as if it were whole")


@ROOM.check
def check_hostile(subject: FormatSubject, profile: Profile) -> None:
    """A file with wrong bytes opens or is refused with a typed error: no other exception, no huge allocation.

    Lengths, offsets and types in the header are overwritten at random. A reader must check every length against the
    rest of the file before it allocates memory; `edgekit.files.foreign` helps.
    """
    with temporary_folder() as folder:
        path = subject.write(folder, random_artifact(folder))
        for file in subject.format.open(path).files[:2]:
            _damage(subject, path, file, 60 if profile.name == "quick" else 600)


def _damage(subject: FormatSubject, path: Path, file: Path, times: int) -> None:
    data, random = file.read_bytes(), np.random.RandomState(5)
    header = min(len(data), 4096)
    huge = (1 << 28).to_bytes(8, "little")
    for number in range(times):
        at, width = int(random.randint(0, header)), int(random.choice([1, 4, 8]))
        noise = b"\xff" * width if number % 3 == 0 else bytes(random.randint(0, 256, width).astype(np.uint8))
        if number < _FIELDS:
            at, noise = 4 * number, huge  # fields at the start, where lengths are
        file.write_bytes(data[:at] + noise + data[at + len(noise) :])
        try:
            _modest(subject, path, 8 * len(data) + _ALLOCATED, f"{file.name} with {noise.hex()} at offset {at}")
        except CheckFailure:
            raise
        except Exception as error:
            fail(
                f"{file.name} with {noise.hex()} at offset {at} raises {type(error).__name__}: {error}; "
                "check every length and type before it is used, and raise InvalidFileError"
            )
    file.write_bytes(data)


def _modest(subject: FormatSubject, path: Path, allowed: int, what: str) -> None:
    """Open and read a file, and fail if too much memory was allocated."""
    tracemalloc.start()
    try:
        _refusal(subject, path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    if peak > allowed:
        fail(f"{what} allocates {peak:,} bytes; check every length against what is left of the file first")


def _refusal(subject: FormatSubject, path: Path) -> EdgekitError | None:
    """Open and read everything; return the typed error, or None if there is none."""
    try:
        artifact = subject.format.open(path)
        for tensor in artifact.tensors.values():
            _read(tensor)
        _ = artifact.model, artifact.tokenizer
    except EdgekitError as error:
        return error
    return None


def _read(tensor: Tensor | EncodedTensor) -> None:
    values = tensor.read()
    if isinstance(tensor, Tensor) and np.shape(values) != tensor.shape:
        raise InvalidFileError(f"{tensor.name}: values of shape {np.shape(values)} for {tensor.shape}")


__all__ = [
    "ROOM",
    "check_atomic",
    "check_complete",
    "check_deterministic",
    "check_hostile",
    "check_opening_writes_nothing",
    "check_resumes",
    "check_truncated",
]
