"""The base of a format's writer: the tensors of a plan, in its order, into one file that can be resumed.

`PlannedFile` is for a format whose artifact is one file, `PlannedDirectory` for one whose artifact is a directory with
the tensors in one of its files. What they share is `PlannedWriter`: the next tensor must be the plan's next, `commit`
needs all of them, and an interrupted run goes on after its last complete tensor if it would write the same.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import ClassVar

from edgekit.errors import UsageError
from edgekit.files.atomic import ARTIFACT_FILES, AtomicDirectory, AtomicFile
from edgekit.manifest import Manifest
from edgekit.recipe import Assignment, Plan
from edgekit.tensor import QuantizedTensor

#: Part of every fingerprint: a run never resumes one of an edgekit version with another order of units.
_UNITS = b"edgekit.formats.writer 1\n"


class PlannedWriter(ABC):
    """Writes the tensors of a plan in its order; derive from `PlannedFile` or `PlannedDirectory`.

    The bytes before the first tensor are written, or found from an interrupted run, when the writer is made; each
    tensor is one unit of the resumable file. A derived class says in `append` how one tensor is stored.

    Args:
        path: the artifact to write.
        plan: which tensors come, in which order and precision.
        manifest: of the artifact; part of the fingerprint, so that other sources or another recipe begin anew.
        header: the bytes before the first tensor.
        nbytes: bytes of the whole file, the header included; checked against the disk before anything is written.
        identity: what distinguishes the file besides the manifest, for the fingerprint; the header by default.
        sizes: bytes of each tensor's parts in the plan's order, where `write` is to check them.

    Attributes:
        path: as given.
        plan: as given.
        manifest: as given. Reading its JSON waits for the hashes of the sources; leave it for `commit`.
        file: where `append` writes.
        remarks: what turned out while it was written and the user should know, a sentence by kind.

    Raises:
        ResourceError: the target cannot be written, or the disk is too small.
        LockedError: another process writes it.
    """

    def __init__(
        self,
        path: Path,
        plan: Plan,
        manifest: Manifest,
        *,
        header: bytes = b"",
        nbytes: int,
        identity: bytes | None = None,
        sizes: Sequence[int] | None = None,
    ) -> None:
        self.path, self.plan, self.manifest = path, plan, manifest
        self._identity = header if identity is None else identity
        self._sizes = sizes
        self.remarks: dict[str, str] = {}
        self.file = self._open(self._fingerprint)  # called later: the sources are hashed while tensors are written
        try:
            self.file.reserve(nbytes)
            if not self.file.done:
                self.file.write(header)
        except BaseException:
            self.close(keep=True)
            raise

    @property
    def done(self) -> int:
        """Tensors that are complete, those of an interrupted run included."""
        return self.file.done

    @property
    def notes(self) -> list[str]:
        """What `append` returned for each complete tensor, those of an interrupted run included."""
        return self.file.notes

    def write(self, tensor: QuantizedTensor) -> None:
        """Append the plan's next tensor.

        Raises:
            UsageError: it is not the one that the plan has next.
            ResourceError: the disk is full; the target stays as it was.
        """
        self._refuse_other_than_next(tensor)
        self.file.unit_done(self.append(tensor, self.plan.assignments[self.done]) or "")

    @abstractmethod
    def append(self, tensor: QuantizedTensor, assignment: Assignment) -> str | None:
        """Write one tensor to `file`, padding included.

        Args:
            tensor: the plan's next.
            assignment: the plan's line for it; its shape is the stored one.

        Returns:
            A note to find in `notes` when the run is resumed, or None.
        """

    def finish(self) -> None:  # noqa: B027 - most files end with their last tensor
        """Write what follows the last tensor, or fill in the header; nothing by default."""

    @abstractmethod
    def commit(self) -> None:
        """Check that every tensor came, sync, and put the artifact in its place.

        Raises:
            UsageError: tensors are missing.
            ChangedSourceError: the source was changed meanwhile; the target stays as it was.
            ResourceError: the disk is full; the target is the old or the new one, whole.
        """

    @abstractmethod
    def close(self, keep: bool = False) -> None:
        """Close the files; without `commit` the target is unchanged, and `keep` keeps complete tensors for a resume."""

    @abstractmethod
    def _open(self, fingerprint: Callable[[], bytes]) -> AtomicFile:
        """Begin, or resume, the file of the tensors."""

    def _refuse_other_than_next(self, tensor: QuantizedTensor) -> None:
        if self.done >= len(self.plan):
            raise UsageError(f"{self.path}: tensor {tensor.name!r} is one more than the plan's {len(self.plan)}")
        planned = self.plan.assignments[self.done]
        expected: tuple[str | int, ...] = (planned.name, planned.precision.name)
        given: tuple[str | int, ...] = (tensor.name, tensor.precision.name)
        what = "(name, precision)"
        if self._sizes is not None:
            expected, given = (*expected, self._sizes[self.done]), (*given, tensor.nbytes)
            what = "(name, precision, bytes)"
        if given != expected:
            raise UsageError(
                f"{self.path}: {what} of the plan's next tensor are {expected}, not {given}; write in the plan's order"
            )

    def _refuse_missing(self) -> None:
        if self.done != len(self.plan):
            raise UsageError(
                f"{self.path}: only {self.done} of {len(self.plan)} tensors were written; write them all before commit"
            )

    def _fingerprint(self) -> bytes:
        return hashlib.sha256(_UNITS + self._identity + self._manifest_json()).digest()

    def _manifest_json(self) -> bytes:
        return self.manifest.to_json().encode()


class PlannedFile(PlannedWriter):
    """Writes one file, its manifest beside it; arguments and errors as for `PlannedWriter`.

    Example:
        >>> class RawWriter(PlannedFile):
        ...     def __init__(self, path, layout, plan, manifest):
        ...         nbytes = sum(math.ceil(a.size * a.precision.bits_per_weight / 8) for a in plan)
        ...         super().__init__(path, plan, manifest, header=b"RAW1", nbytes=4 + nbytes)
        ...
        ...     def append(self, tensor, assignment):
        ...         for part in tensor.parts.values():
        ...             self.file.write(np.ascontiguousarray(part).data)
    """

    def commit(self) -> None:
        """Check that every tensor came, sync, and put the file in its place; raises as `PlannedWriter.commit`."""
        self._refuse_missing()
        self.finish()
        self.file.commit(self._manifest_json())

    def close(self, keep: bool = False) -> None:
        """Close the files; without `commit` the target is unchanged, and `keep` keeps complete tensors for a resume."""
        self.file.close(keep)

    def _open(self, fingerprint: Callable[[], bytes]) -> AtomicFile:
        return AtomicFile(self.path, fingerprint=fingerprint, manifest=True)


class PlannedDirectory(PlannedWriter):
    """Writes a directory with the tensors in one file; arguments and errors as for `PlannedWriter`.

    Attributes:
        data: name of the file that holds the tensors; a class states it.
        owned: patterns of the names that a directory of this format has, and that may be replaced in it.
        directory: the directory that replaces the target at `commit`.
    """

    data: ClassVar[str]
    owned: ClassVar[tuple[str, ...]] = ARTIFACT_FILES

    directory: AtomicDirectory

    @abstractmethod
    def small_files(self) -> Iterable[tuple[str, bytes]]:
        """Name and content of every other file of the directory, the manifest included; called after `finish`."""

    def commit(self) -> None:
        """Check that every tensor came, write the other files, and swap the directory in.

        Raises as `PlannedWriter.commit`.
        """
        self._refuse_missing()
        self.finish()
        self.file.commit()
        for name, content in self.small_files():
            self.directory.write(name, content)
        self.directory.commit()

    def close(self, keep: bool = False) -> None:
        """Close the files; without `commit` the target is unchanged, and `keep` keeps complete tensors for a resume."""
        self.directory.close(keep)

    def _open(self, fingerprint: Callable[[], bytes]) -> AtomicFile:
        self.directory = AtomicDirectory(self.path, owned=self.owned)
        try:
            return self.directory.file(self.data, fingerprint=fingerprint)
        except BaseException:
            self.directory.close()
            raise


__all__ = ["PlannedDirectory", "PlannedFile", "PlannedWriter"]
