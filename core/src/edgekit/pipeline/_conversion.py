"""read -> plan -> encode -> write, a few rows in memory at a time.

(The module is called `pipeline` because `edgekit.quantize` is the function.)
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import logging
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import attrs
import numpy as np

from edgekit.artifact import Artifact, Format, Layout, RowWriter, Writer, unread
from edgekit.encoding._codecs import choose
from edgekit.encoding._importance import Filled, exact, fill_importance
from edgekit.encoding._refusals import refuse_nonfinite
from edgekit.errors import (
    ChangedSourceError,
    EdgekitError,
    InvalidFileError,
    MissingFileError,
    MissingPluginError,
    NonFiniteError,
    UsageError,
    counted,
    option,
)
from edgekit.files._swap import hidden
from edgekit.files.atomic import AtomicFile, writing
from edgekit.files.digests import Digests
from edgekit.files.guard import Stamp, stamps, working
from edgekit.files.memory import enough_memory
from edgekit.files.reader import refuse_special
from edgekit.files.workers import Workers, cores
from edgekit.formats.writer import PlannedWriter
from edgekit.manifest import Manifest
from edgekit.pipeline._notes import OF_THE_RUN, conversion_notes, refuse_unquantized, summary_line
from edgekit.pipeline._placed import write_placed, writes_itself
from edgekit.pipeline._progress import Progress as Progress
from edgekit.pipeline._progress import Shown, reporting
from edgekit.pipeline._recipes import AnyRecipe, find_recipe
from edgekit.pipeline._stream import Encoder, LostWorkersError, Piece, chunk_rows, source_rows, together
from edgekit.plugin._registry import KNOWN_DISTRIBUTIONS, manager
from edgekit.recipe import AsIs, Assignment, Plan, Recipe, Slot, check_plan
from edgekit.recipe import own_precision as own_precision
from edgekit.reference import reference
from edgekit.tensor import EncodedTensor
from edgekit.typing import F32

if TYPE_CHECKING:  # the forward pass and the rounding are loaded only where a calibration is given
    from edgekit.pipeline._feedback import Rounder
    from edgekit.pipeline.rounding.calibration import Calibration

#: Attempts to open a model of which a file outside its directory is too new to tell whether it still changes.
_REOPENINGS = 8
#: Seconds during which a model is opened anew that is replaced, or changed, each time while it is opened.
_PATIENCE = 30.0
Nonfinite = Literal["refuse", "keep"]
Rounding = Literal["nearest", "feedback"]
_LOG = logging.getLogger("edgekit")


@attrs.frozen(eq=False)
class Opened:
    """The path of an artifact that is open already: it is not opened again, and an executor's workers get the path."""

    artifact: Artifact

    def __fspath__(self) -> str:
        return str(self.artifact.path)


def open_artifact(path: str | os.PathLike[str]) -> Artifact:
    """Open a model of any format that an installed plugin reads; no tensor is read.

    Raises:
        MissingFileError: the path does not exist, or cannot be read.
        MissingPluginError: the format is known, but its plugin is not installed.
        InvalidFileError: no format recognises it; it is truncated, corrupt or malicious; or it is a pipe or a device.
        MemoryShortageError: its header states sizes that exceed the available memory.
        ChangedSourceError: it was changed again and again while it was opened.
    """
    return path.artifact if isinstance(path, Opened) else _settled(Path(path), _open)


def as_artifact(source: Artifact | str | os.PathLike[str]) -> Artifact:
    """Return an artifact as it is, and open the path of one; raises as `open_artifact`."""
    return source if isinstance(source, Artifact) else open_artifact(source)


def _settled(where: Path, opening: Callable[[Path], Artifact]) -> Artifact:
    """Open a path, again if a file was changed meanwhile, so that the header and the weights are of one model.

    The artifact's own stamps are taken after its headers were read, too late to show a change in between.

    Raises:
        ChangedSourceError: its files changed during every attempt for half a minute.
    """
    before = _stamped(where)
    until = time.monotonic() + _PATIENCE
    for attempt in itertools.count(1):
        began = time.time_ns()
        try:
            artifact = opening(where)
        except EdgekitError:
            if (now := _stamped(where)) == before:
                raise
            before = now
        else:
            unsettled = [f for f, stamp in artifact.stamps.items() if not _settled_since(f, stamp, before, began)]
            if not unsettled or (attempt > _REOPENINGS and before.keys().isdisjoint(unsettled)):
                return artifact
            before = {**_stamped(where), **artifact.stamps}
        if time.monotonic() > until:
            break
    raise ChangedSourceError(
        f"{where}: its files changed each time while it was opened; wait until nothing writes to it any more"
    )


def _stamped(where: Path) -> dict[Path, Stamp | None]:
    """Return the stamps of a path and, if it is a directory, of its entries."""
    try:
        entries = list(where.iterdir()) if where.is_dir() else []
    except OSError:
        entries = []  # opening it raises the error
    return stamps([where, *entries])


def _settled_since(file: Path, stamp: Stamp | None, before: Mapping[Path, Stamp | None], began: int) -> bool:
    """Return whether a file that was opened is the one of before; of others only their times can tell."""
    return before[file] == stamp if file in before else stamp is None or not attrs.evolve(stamp, taken=began).racy


def _open(where: Path) -> Artifact:
    try:
        status = where.stat()
    except FileNotFoundError as error:
        raise MissingFileError(f"{where}: no such file or directory") from error
    except OSError as error:
        raise MissingFileError(f"{where}: cannot be read ({error.strerror}); check its permissions") from error
    except ValueError as error:  # half of a surrogate pair, or a zero byte
        raise MissingFileError(f"{str(where)!r:.200}: not a valid file name; check the name") from error
    if not stat.S_ISDIR(status.st_mode):
        refuse_special(where, status.st_mode)
    with enough_memory(f"{where}: opening it", status.st_size):
        return _recognised(where)


def _recognised(where: Path) -> Artifact:
    # The format of the suffix is asked first, so that the others need not be imported.
    by_suffix = sorted(manager().all("formats"), key=lambda r: where.suffix not in r.options.get("suffixes", ()))
    for registration in by_suffix:
        candidate: Format = manager().load("formats", registration.name)
        if candidate.matches(where):
            return _refined(registration.name, candidate, where).open(where)
    names = ", ".join(r.name for r in manager().all("formats"))
    cure = KNOWN_DISTRIBUTIONS.get(where.suffix)
    if cure and where.suffix.removeprefix(".") not in names.split(", "):
        raise MissingPluginError(f"{where}: reading {where.suffix} files needs a plugin; pip install {cure}")
    raise InvalidFileError(
        f"{where}: no installed format recognises it (available: {names}); "
        "a Hugging Face directory needs config.json and *.safetensors"
    )


def _refined(name: str, recognised: Format, where: Path) -> Format:
    """Return the more particular format of an artifact that this one recognises too, if one is installed."""
    for registration in manager().all("formats"):
        if name in registration.options.get("refines", ()):
            candidate: Format = manager().load("formats", registration.name)
            if candidate.matches(where):
                return candidate
    return recognised


def open_source(path: str | os.PathLike[str], target: Format) -> Artifact:
    """Open a source to be written in a format; a file that only that format converts is passed on unread.

    Raises:
        As `open_artifact`, unless the format takes files of that suffix.
    """
    try:
        return open_artifact(path)
    except (InvalidFileError, MissingPluginError):
        where = Path(path)
        taken = (r.options.get("takes", ()) for r in manager().all("formats") if r.name == target.name)
        if where.is_file() and any(where.suffix in suffixes for suffixes in taken):
            return unread(where)
        raise


def find_format(name: str | None, target: Path) -> Format:
    """Return the format of that name, or the one of the target's suffix; a directory is ``hf``.

    Raises:
        MissingPluginError: no installed format has that name or suffix.
        ResourceError: the target cannot be accessed.
    """
    if name is not None:
        names = {r.name.casefold(): r.name for r in manager().all("formats")}
        by_name: Format = manager().load("formats", names.get(name.casefold(), name))
        return by_name
    with writing(target):
        is_directory = target.is_dir()
    if is_directory or not target.suffix:
        return cast(Format, manager().load("formats", "hf"))
    for registration in manager().all("formats"):
        if target.suffix in registration.options.get("suffixes", ()):
            return cast(Format, manager().load("formats", registration.name))
    cure = KNOWN_DISTRIBUTIONS.get(target.suffix)
    advice = f"pip install {cure}" if cure else f"{_near(target)}{option('format', 'hf')} makes a directory"
    raise MissingPluginError(f"{target}: no installed format writes {target.suffix} files; {advice}")


def _near(target: Path) -> str:
    suffixes = [suffix for r in manager().all("formats") for suffix in r.options.get("suffixes", ())]
    near = difflib.get_close_matches(target.suffix, suffixes, n=1)
    return f"did you mean {target.with_suffix(near[0]).name}? " if near else ""


def quantize(
    source: Artifact | str | os.PathLike[str],
    recipe: AnyRecipe,
    *,
    to: str | os.PathLike[str],
    format: str | None = None,
    importance: Mapping[str, F32] | None = None,
    calibration: Calibration | str | os.PathLike[str] | None = None,
    rounding: Rounding | None = None,
    backend: str | None = None,
    exact_importance: bool = False,
    nonfinite: Nonfinite = "refuse",
    allow_unquantized: bool = False,
    executor: Executor | None = None,
    progress: Shown = None,
    overwrite: bool = False,
    notes: list[str] | None = None,
) -> Artifact:
    """Quantize a model and write it, streaming in rows: peak memory follows neither the model nor its largest tensor.

    Args:
        source: an artifact, or the path of one.
        recipe: a recipe (``"Q4_K_M"``), a precision for every weight matrix (``"affine:int4-sym-g32"``), the path of
            a recipe's TOML file, or an object with a ``plan`` method, such as `Recipe.of` returns. Its plan is checked
            before a tensor is read.
        to: the file or directory to write; its suffix decides the format.
        format: name of the format; None derives it from the suffix.
        importance: mean squared activations [cols] of each weight matrix, by canonical name; of a stack of experts
            [experts, cols]. Columns without (0) get the smallest importance of their matrix; a matrix without any, or
            an expert that the text never reached, is encoded without.
        calibration: from `edgekit.calibrate` of the same source, or its file: gives the importance, and what rounding
            with error feedback needs.
        rounding: ``"nearest"`` rounds each weight by itself; ``"feedback"`` makes up for the error of each column in
            the columns after it, and rounds each layer for the inputs that the quantized layers before it give. The
            format, the size and the speed of the result are the same. Formats without levels under scales are rounded
            to nearest; a note says so. None is feedback with a calibration, else nearest.
        exact_importance: use the importance unchanged, zeros included. This gives the bytes of llama.cpp, which erases
            blocks of such columns, and weighs all columns alike of an expert that the text never reached.
        backend: name of the encoders to use; None takes the fastest exact ones, whose bytes are the same.
        nonfinite: ``"refuse"`` a NaN or an infinity, or ``"keep"`` the tensors that hold one in float.
        allow_unquantized: write the model even if less than half of the weights that the recipe covers can be
            quantized.
        executor: encodes the row chunks; None takes a thread for each core. The bytes are the same. Threads read their
            rows and write what they encoded to its place in the file. The workers of any other executor read the rows
            of a source that is given by its path for themselves, and write to the target where they see it, both under
            the same path; of an opened artifact the rows are sent to them. The calling thread writes what they send
            back.
        progress: called before each tensor: how many are done, of how many, its name; True draws a bar on stderr.
        overwrite: replace a target that edgekit did not write; one that it wrote is replaced in any case.
        notes: remarks about the run for the user are appended to it, one sentence each.

    Returns:
        The written artifact, opened. Its ``notes`` state which tensors fell back, were quantized before or have no
        importance, and whether the tokenizer is missing. They are logged too (logger ``edgekit``, level INFO).

    Raises:
        UsageError: the plan does not fit the target, or quantizes less than half of the weights; or the calibration is
            of another model, or missing.
        NonFiniteError, ScaleOverflowError, UnsupportedModelError, InvalidFileError: about the source.
        ChangedSourceError: the source was changed while it was read.
        UsageError: the target is, holds or lies inside the source, or is something that edgekit did not write.
        ResourceError, LockedError: about the target. In every case no partial target is left behind.
        MemoryShortageError: the message states how many bytes were requested.
    """
    target = Path(to)
    chosen_format = find_format(format, target)
    chosen = find_recipe(recipe, chosen_format.name, target)
    artifact = source if isinstance(source, Artifact) else open_source(source, chosen_format)
    calibrated = _calibration(calibration, importance, rounding, artifact)
    if calibrated is not None:
        importance = calibrated.importance()
    feedback = calibrated if rounding != "nearest" else None
    with ExitStack() as stack:
        widest = max((4 * tensor.size for tensor in artifact.tensors.values()), default=0)
        stack.enter_context(enough_memory(f"{artifact.path}: writing it as {target}", widest))
        work = stack.enter_context(working(target, artifact.reads, overwrite, notes))
        filled = Filled(exact(importance or {}), {}, ()) if exact_importance else fill_importance(importance or {})
        known = {"importance": _importance_digest(filled.importance)} if importance else {}
        if feedback is not None:
            known["calibration"] = feedback.digest
        sources = stack.enter_context(closing(Digests(artifact.files, known)))
        work.hashes = sources
        earlier = len(work.notes)
        layout = chosen_format.layout(artifact)
        of_source = work.notes[earlier:]  # by its reader, when the model was loaded
        plan = make_plan(chosen, layout, importance is not None, backend)
        if not allow_unquantized:
            refuse_unquantized(plan, str(artifact.path), chosen_format.name)
        if nonfinite == "keep":
            plan = _keep_nonfinite(plan, layout)
        pool = executor or stack.enter_context(Workers(cores(), "edgekit-encode"))
        encoder = Encoder(pool, backend, filled.importance, nonfinite == "keep", f"{artifact.path}: tensor ")
        if executor is not None:
            encoder = _elsewhere(encoder, None if artifact is source else artifact, chosen_format.name, plan)
        remarks = conversion_notes(chosen_format, layout, plan, target, filled if importance else None)
        rounder: Rounder | None = None
        if feedback is not None:
            from edgekit.pipeline._feedback import Rounder

            # Threads whatever the executor: what is rounded shares its moments, and lets go of the interpreter.
            threads = stack.enter_context(Workers(cores(), "edgekit-round"))
            pairs = list(zip(layout.slots, plan, strict=True))
            rounder = Rounder(artifact.model, feedback, pairs, backend, threads, encoder.where)
            remarks["rounding"] = rounder.note()
        remarks |= {"source": "; ".join(of_source)} if of_source else {}
        lasting = {kind: note for kind, note in remarks.items() if kind not in OF_THE_RUN}
        manifest = make_manifest(sources, plan, encoder, chosen_format.name, lasting)
        if calibrated is not None:
            from edgekit.pipeline.rounding._overlap import record_of

            manifest = attrs.evolve(manifest, calibration=record_of(calibrated))
        writer = chosen_format.writer(target, layout, plan, manifest)
        if work.restarted:
            remarks["restarted"] = work.restarted
        for kind, note in lasting.items():  # the guard has noted what is replaced
            if kind != "source":  # noted already, one by one
                work.note(note)
        report = stack.enter_context(reporting(progress, "quantize"))
        if rounder is not None:
            kept = stack.enter_context(_rounding_file(target, manifest))
            rounder = attrs.evolve(rounder, kept=kept)
        _write(writer, layout, plan, encoder, report, target, rounder)
        if rounder is not None:
            kept.close(keep=False)
        remarks_of_writer = dict(getattr(writer, "remarks", {}))
        for note in remarks_of_writer.values():
            work.note(note)
        remarks |= remarks_of_writer
    _LOG.info("%s: %s", target, summary_line(remarks))
    reported = {kind: note for kind, note in remarks.items() if kind in OF_THE_RUN}
    del artifact, layout, plan, pool, encoder, writer, manifest, sources  # so that the result takes their memory
    return attrs.evolve(_settled(target, chosen_format.open), run_notes=reported)


def _elsewhere(encoder: Encoder, artifact: Artifact | None, format_name: str, plan: Plan) -> Encoder:
    """Return the encoder; workers that are not threads of this process read the rows of an artifact for themselves."""
    from edgekit.pipeline import _remote

    if _remote.elsewhere(encoder.pool) is None:
        return encoder
    if artifact is None:
        return attrs.evolve(encoder, lost=_remote.lost)
    backends = {encoder.name_for(line.precision) for line in plan}
    where = _remote.Source.of(artifact, format_name, backends, laid_out)
    return attrs.evolve(encoder, lost=_remote.lost, afar=where, workers=_remote.workers(encoder.pool))


def laid_out(path: str, format_name: str) -> Layout:
    """Open a source and return its layout for a format; a worker elsewhere does."""
    chosen = find_format(format_name, Path(path))
    return chosen.layout(open_source(path, chosen))


def _rounding_file(target: Path, manifest: Manifest) -> AtomicFile:
    """Return the file that holds rounded matrices while an artifact is being written; what is made is its identity."""
    place = Path(os.path.realpath(target))

    def fingerprint() -> bytes:
        return hashlib.sha256(b"rounding 2 " + manifest.to_json().encode()).digest()

    return AtomicFile(place.with_name(f"{place.name}.rounding"), fingerprint=fingerprint, named=target, lock=False)


def make_plan(recipe: Recipe, layout: Layout, importance: bool = False, backend: str | None = None) -> Plan:
    """Return the recipe's plan for a layout, checked.

    Raises:
        UsageError, ShapeError: as `edgekit.recipe.check_plan`; or no installed encoder for a precision.
        MissingPluginError: the backend is not installed, or does not encode a precision of the plan.
    """
    config = layout.model.config if layout.model else None
    plan = check_plan(recipe.plan(layout.slots, config, importance), layout.slots, recipe.name)
    for slot, line in zip(layout.slots, plan, strict=True):
        unchanged = isinstance(slot.tensor, EncodedTensor) and slot.tensor.precision == line.precision
        if not unchanged and reference(line.precision).traits.decode_only and not choose(line.precision, backend):
            raise UsageError(
                f"recipe {recipe.name!r}, tensor {line.name!r}: {line.precision.name} can be decoded, but not encoded; "
                "choose a precision with an encoder (ggml:Q2_K, ggml:IQ4_XS), or quantize with llama.cpp"
            )
        if not unchanged and not importance and reference(line.precision).traits.needs_importance:
            raise UsageError(
                f"recipe {recipe.name!r}, tensor {line.name!r}: {line.precision.name} cannot be encoded without an "
                "importance matrix; make one with `edgekit imatrix` and pass it on (--imatrix FILE, importance=), "
                "or choose ggml:IQ2_S or ggml:Q2_K"
            )
    return plan


def convert(
    source: Artifact | str | os.PathLike[str],
    to: str | os.PathLike[str],
    *,
    format: str | None = None,
    dtype: str | None = None,
    progress: Shown = None,
    overwrite: bool = False,
    notes: list[str] | None = None,
) -> Artifact:
    """Write a model in another format without quantizing it.

    Args:
        source: an artifact, or the path of one.
        to: the file or directory to write; its suffix decides the format.
        format: name of the format; None derives it from the suffix.
        dtype: ``F32``, ``F16`` or ``BF16`` for the weight matrices; None keeps every tensor's own precision
            where the target can hold it (encoded tensors carry their blocks over unchanged), else F32.
        progress: called before each tensor: how many are done, of how many, its name; True draws a bar on stderr.
        overwrite: as for `quantize`.
        notes: as for `quantize`.

    Raises:
        As `quantize`.
    """
    recipe: Recipe = AsIs() if dtype is None else find_recipe(dtype, find_format(format, Path(to)).name)
    return quantize(
        source,
        recipe,
        to=to,
        format=format,
        allow_unquantized=True,
        progress=progress,
        overwrite=overwrite,
        notes=notes,
    )


def _calibration(
    calibration: Calibration | str | os.PathLike[str] | None,
    importance: object,
    rounding: Rounding | None,
    artifact: Artifact,
) -> Calibration | None:
    """Return the calibration, opened and checked."""
    if rounding not in (None, "nearest", "feedback"):
        raise UsageError(f"rounding {rounding!r}; choose nearest or feedback")
    if calibration is None:
        if rounding == "feedback":
            raise UsageError(
                f"rounding with feedback needs a calibration; make one with edgekit calibrate, and give it with "
                f"{option('calibration', 'FILE')}"
            )
        return None
    if importance is not None:
        raise UsageError("a calibration has an importance of its own; give one of the two")
    from edgekit.pipeline.rounding.calibration import Calibration, read_calibration

    opened = calibration if isinstance(calibration, Calibration) else read_calibration(Path(calibration))
    opened.refuse_other_model(artifact)
    return opened


def _write(
    writer: Writer,
    layout: Layout,
    plan: Plan,
    encoder: Encoder,
    progress: Progress | None,
    target: Path,
    rounder: Rounder | None = None,
) -> None:
    try:
        _write_tensors(writer, layout, plan, encoder, progress, rounder)
        writer.commit()
    except KeyboardInterrupt as error:
        written = writer.done
        writer.close(keep=True)
        rounded = 0 if rounder is None or rounder.kept is None else rounder.kept.done
        error.add_note(_kept_note(written, len(plan), target, rounded))
        raise
    except LostWorkersError:
        writer.close(keep=True)
        raise
    except BaseException:
        writer.close()
        raise
    writer.close()


def _kept_note(done: int, total: int, target: Path, rounded: int = 0) -> str:
    """Return the note for the `KeyboardInterrupt` of a run: what is kept, and how to resume."""
    if rounded and not done:
        kept = counted(rounded, "rounded matrix is", "rounded matrices are")
        return f"{kept} kept; the same command goes on from there; {target} is as it was"
    if not hidden(Path(os.path.realpath(target)), "partial").exists():
        return f"nothing is kept; {target} is as it was"
    if not done:
        return f"some rows are kept; the same command goes on from there; {target} is as it was"
    kept = counted(done, f"of {counted(total, 'tensor')} is", f"of {counted(total, 'tensor')} are")
    return f"{kept} kept; the same command goes on from there; {target} is as it was"


def _write_tensors(
    writer: Writer,
    layout: Layout,
    plan: Plan,
    encoder: Encoder,
    progress: Progress | None,
    rounder: Rounder | None,
) -> None:
    pairs = list(zip(layout.slots, plan, strict=True))
    if rounder is None and writes_itself(encoder, writer):
        with closing(write_placed(cast(PlannedWriter, writer), encoder, pairs, progress)) as others:
            for pair in others:
                with closing(encoder.pieces([pair])) as pieces:
                    _write_tensor(writer, pieces)
        if progress:
            progress(len(pairs), len(pairs), "")
        return
    left = pairs[writer.done :]
    pieces = encoder.pieces(left) if rounder is None else rounder.pieces(encoder.pieces, left, progress)
    with closing(pieces):
        for index in range(writer.done, len(pairs)):
            if progress:
                progress(index, len(pairs), pairs[index][1].name)
            _write_tensor(writer, pieces)
    if progress:
        progress(len(pairs), len(pairs), "")


def _write_tensor(writer: Writer, pieces: Iterator[Piece]) -> None:
    if not isinstance(writer, RowWriter):
        writer.write(together(pieces))
        return
    for piece in pieces:
        writer.write_rows(piece.rows, piece.first)
        if piece.last:
            return


def _keep_nonfinite(plan: Plan, layout: Layout) -> Plan:
    pairs = zip(layout.slots, plan, strict=True)
    return attrs.evolve(plan, assignments=tuple(_kept(slot, assignment) for slot, assignment in pairs))


def _kept(slot: Slot, assignment: Assignment) -> Assignment:
    try:
        step = chunk_rows(slot.tensor.rows, slot.shape[-1], slot.keep)
        for start in range(0, slot.tensor.rows, step):
            rows = source_rows(slot.tensor, slot.keep, start, min(start + step, slot.tensor.rows))
            refuse_nonfinite(rows, slot.name, start)
    except NonFiniteError as error:
        return attrs.evolve(assignment, precision=slot.keep, reason=f"kept: {str(error).partition(';')[0]}")
    return assignment


def make_manifest(
    sources: Mapping[str, str], plan: Plan, encoder: Encoder, format_name: str, notes: Mapping[str, str] | None = None
) -> Manifest:
    """Return the manifest of an artifact that is about to be written."""
    tensors = {
        a.name: {"precision": a.precision.name, "reason": a.reason, "backend": encoder.name_for(a.precision)}
        for a in plan
    }
    used = {t["backend"] for t in tensors.values()} | {
        r.plugin for r in manager().all("formats") if r.name == format_name
    }
    versions = {p.distribution: p.version for p in manager().plugins if p.name in used or p.name == "core"}
    return Manifest(
        sources=sources,
        recipe=plan.recipe,
        tensors=tensors,
        versions={**versions, "numpy": np.__version__},
        notes=notes or {},
    )


def _importance_digest(importance: Mapping[str, F32]) -> str:
    """SHA-256 of an importance matrix, hex: an interrupted run resumes only with the same matrix."""
    digest = hashlib.sha256()
    for name in sorted(importance):
        digest.update(name.encode() + b"\0" + np.ascontiguousarray(importance[name], "<f4").tobytes())
    return digest.hexdigest()


__all__ = [
    "AsIs",
    "Nonfinite",
    "Opened",
    "Progress",
    "Rounding",
    "as_artifact",
    "convert",
    "find_format",
    "find_recipe",
    "make_manifest",
    "make_plan",
    "open_artifact",
    "open_source",
    "own_precision",
    "quantize",
]
