"""A model on disk: its format, files, configuration, tokenizer, tensors and manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol, runtime_checkable

import attrs

from edgekit.architectures import FAMILIES, Model
from edgekit.errors import UnsupportedModelError
from edgekit.files import _html
from edgekit.files.guard import Stamp, stamps
from edgekit.files.memory import enough_memory
from edgekit.manifest import Manifest, manifest_path, read_manifest
from edgekit.precision import Precision
from edgekit.recipe import Plan, Slot
from edgekit.tensor import AnyTensor, QuantizedTensor, precision_name
from edgekit.tokenizer._record import Tokenizer


@attrs.frozen(eq=False, repr=False)
class Artifact:
    """A model on disk. Tensors are read only on access.

    Attributes:
        path: the file, or the directory.
        format: name of the format (``hf``, ``gguf``).
        files: every file that belongs to it, the weights first.
        config: the format's own configuration: ``config.json`` of a Hugging Face directory, the metadata
            of a GGUF file.
        tensors: the file's own names, in the file's own order.
        load_model: builds the family-neutral view; raises `UnsupportedModelError` for an unknown family.
        load_tokenizer: reads the tokenizer; None where there is none.
        manifest: what edgekit recorded when it wrote the artifact; None for foreign ones.
        run_notes: notes on the run that wrote the artifact, or on what is merged as it is read, by kind; they are not
            part of its manifest.
        stamps: what the files were when the artifact was opened, to tell whether they are changed while they are read.
    """

    path: Path
    format: str
    files: tuple[Path, ...]
    config: Mapping[str, Any] = attrs.field(repr=False)
    tensors: Mapping[str, AnyTensor] = attrs.field(repr=False)
    load_model: Callable[[], Model] = attrs.field(repr=False)
    load_tokenizer: Callable[[], Tokenizer | None] = attrs.field(repr=False)
    manifest: Manifest | None = attrs.field(default=None, repr=False)
    run_notes: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    stamps: Mapping[Path, Stamp | None] = attrs.field(init=False, repr=False)

    @stamps.default
    def _stamps(self) -> dict[Path, Stamp | None]:
        return stamps((self.path, *self.files))

    @property
    def reads(self) -> dict[Path, Stamp | None]:
        """Everything that the artifact consists of, its directory and its manifest included, with the stamps."""
        return {**self.stamps, manifest_path(self.path): None}

    def __repr__(self) -> str:
        return f"Artifact({str(self.path)!r}, {self.format}, {len(self.tensors)} tensors)"

    def _repr_html_(self) -> str:
        bits = 8 * self.tensor_nbytes / max(1, self.parameters)
        rows = ((name, _html.shape(t.shape), precision_name(t), f"{t.nbytes:,}") for name, t in self.tensors.items())
        title = f"{self.path} ({self.format}): {self.parameters:,} parameters, {bits:.3f} bits a weight"
        return _html.table(title, ("tensor", "shape", "precision", "bytes"), rows)

    @property
    def model(self) -> Model:
        """The family-neutral view: hyper-parameters, and tensors by what they are for.

        Raises:
            UnsupportedModelError: the family is not one that edgekit knows.
        """
        with enough_memory(f"{self.path}: its model"):
            return self.load_model()

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer, or None."""
        with enough_memory(f"{self.path}: its tokenizer"):
            return self.load_tokenizer()

    @property
    def notes(self) -> Mapping[str, str]:
        """The notes from when edgekit wrote the artifact, one sentence by kind; empty for other artifacts."""
        return {**(self.manifest.notes if self.manifest else {}), **self.run_notes}

    @property
    def nbytes(self) -> int:
        """Bytes on disk when the artifact was opened, all files."""
        return sum(stamp.size for file in self.files if (stamp := self.stamps[file]))

    @property
    def tensor_nbytes(self) -> int:
        """Bytes of the tensors alone."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def parameters(self) -> int:
        """Number of elements in all tensors."""
        return sum(tensor.size for tensor in self.tensors.values())


@attrs.frozen(eq=False)
class Layout:
    """What a format will store for a source, in the order of the file, before any precision is chosen.

    Attributes:
        slots: one for each tensor of the file, in order.
        source: the artifact that is read.
        model: its family-neutral view; None where the format stores tensors without knowing the family.
        notes: what the user should know about it, a sentence by kind; see `edgekit.pipeline._notes`.
    """

    slots: tuple[Slot, ...]
    source: Artifact
    model: Model | None
    notes: Mapping[str, str] = attrs.field(factory=dict)


class Writer(Protocol):
    """Writes one artifact, tensor by tensor, in the order of the plan. Nothing shows before `commit`.

    `edgekit.formats.PlannedFile` and `PlannedDirectory` are bases that have all of it but how a tensor is stored.
    A writer may also have ``remarks``: what turned out while writing and the user should know, a sentence by kind.
    """

    @property
    def done(self) -> int:
        """How many tensors of the plan are complete, those of an interrupted run included; the next one follows."""
        ...

    def write(self, tensor: QuantizedTensor) -> None:
        """Append the plan's next tensor."""
        ...

    def commit(self) -> None:
        """Check that every tensor came, sync, and put the artifact in its place."""
        ...

    def close(self, keep: bool = False) -> None:
        """Close files and locks; without a `commit` before it the target is unchanged.

        What was written so far is removed, unless `keep` asks to leave it for a later run to resume.
        """
        ...


@runtime_checkable
class RowWriter(Writer, Protocol):
    """A writer that takes a large tensor in rows, so that no tensor is in memory as a whole."""

    def write_rows(self, rows: QuantizedTensor, first: int) -> None:
        """Write rows of the plan's next tensor, from number `first` on; its last row completes it."""
        ...


class Sizes(Protocol):
    """What the tensors of one layout take in a format, known before anything is written; `edgekit.fit` asks for it."""

    def candidates(self, slot: Slot) -> Sequence[Precision]:
        """The precisions worth trying for a weight matrix, all of which the format can store for it."""
        ...

    def stored(self, slot: Slot, precision: Precision) -> int | None:
        """Bytes of a tensor with its scales and its alignment; None if the format cannot store it so."""
        ...

    def whole(self, plan: Plan) -> int:
        """Bytes of the artifact that the writer would write for the plan, the manifest left out."""
        ...

    def ties(self) -> Sequence[Sequence[str]]:
        """Roles of tensors that must all have one precision, group by group; others are free."""
        ...


class Format(Protocol):
    """Reads and writes one kind of artifact.

    A format may also have ``conventions``, the names of the conventions whose precisions it stores under short names
    (``("ggml",)``: ``Q4_0`` is ``ggml:Q4_0``), ``notes(layout, plan)``, which gives what the user should know
    about the file to be written, a sentence by kind, and ``sizes(layout)``, its `Sizes`, which `edgekit.fit` needs.
    """

    name: str

    def matches(self, path: Path) -> bool:
        """Whether that file or directory looks like this format: a look at names and magic bytes only."""
        ...

    def open(self, path: Path) -> Artifact:
        """Read everything but the tensors' values.

        Raises:
            InvalidFileError: truncated, corrupt or hostile; names file, tensor and offset.
        """
        ...

    def layout(self, source: Artifact) -> Layout:
        """What this format will store for that source.

        Raises:
            UnsupportedModelError: the format cannot hold the family; raised before any tensor is read.
        """
        ...

    def writer(self, path: Path, layout: Layout, plan: Plan, manifest: Manifest) -> Writer:
        """Begin, or resume, writing.

        The sources that the manifest names are hashed while tensors are written; reading it (`Manifest.to_json`) waits
        for that. `edgekit.files.atomic.AtomicFile` takes a function for its fingerprint, so that nothing needs to wait.

        Raises:
            ResourceError: the target cannot be written, or the disk is too small.
            LockedError: another process writes it.
        """
        ...


def unread(path: Path) -> Artifact:
    """A file that no installed format reads, as an artifact without tensors; its format is its suffix.

    Raises:
        UnsupportedModelError: when it is asked for its model.
    """

    def no_model() -> NoReturn:
        raise UnsupportedModelError(
            f"{path}: no installed format reads {path.suffix} files; only what converts it as a whole takes it"
        )

    manifest = read_manifest(path)
    return Artifact(path, path.suffix.lstrip("."), (path,), {}, {}, no_model, lambda: None, manifest)


def unknown_family(what: str) -> UnsupportedModelError:
    """Return the error for an unsupported model family."""
    return UnsupportedModelError(f"{what} is of an unsupported family (supported: {', '.join(sorted(FAMILIES))})")


__all__ = ["Artifact", "Format", "Layout", "RowWriter", "Sizes", "Writer", "unknown_family", "unread"]
