"""read -> plan -> encode -> write, one tensor in memory at a time.

(The module is called `pipeline` because `edgekit.quantize` is the function.)
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Literal

import attrs
import numpy as np
import numpy.typing as npt

from edgekit.artifact import Artifact, Format, Layout, Writer, unread
from edgekit.encoding.codecs import find_precision
from edgekit.encoding.refusals import refuse_nonfinite
from edgekit.errors import (
    InvalidFileError,
    MissingFileError,
    MissingPluginError,
    NonFiniteError,
    UnknownPrecisionError,
    UnknownRecipeError,
    UsageError,
)
from edgekit.files.atomic import writing
from edgekit.files.digests import Digests
from edgekit.files.memory import enough_memory
from edgekit.files.reader import refuse_special
from edgekit.manifest import Manifest
from edgekit.pipeline.stream import Encoder, chunk_rows, source_rows
from edgekit.plugin.registry import KNOWN_DISTRIBUTIONS, manager
from edgekit.precision import Precision
from edgekit.recipe import Assignment, Plan, Recipe, Slot, Uniform
from edgekit.tensor import EncodedTensor, Tensor

Nonfinite = Literal["refuse", "keep"]
#: Called with the number of tensors done, of all tensors, and the name of the one that comes next.
Progress = Callable[[int, int, str], None]


def open_artifact(path: str | os.PathLike[str]) -> Artifact:
    """Open a model of any format that an installed plugin reads; no tensor is read.

    Raises:
        MissingFileError: nothing is there, or nothing that may be read.
        MissingPluginError: the format is known, but its plugin is not installed.
        InvalidFileError: no format recognises it, it is truncated, corrupt or hostile, or a pipe or a device.
        MemoryShortageError: there is no room for what it says of itself.
    """
    where = Path(path)
    try:
        found = where.stat()
    except FileNotFoundError as error:
        raise MissingFileError(f"{where}: no such file or directory") from error
    except OSError as error:
        raise MissingFileError(f"{where}: cannot be read ({error.strerror}); check its permissions") from error
    except ValueError as error:  # half of a surrogate pair, or a zero byte
        raise MissingFileError(f"{path!r:.200}: no file can be named so; check the name") from error
    if not stat.S_ISDIR(found.st_mode):
        refuse_special(where, found.st_mode)
    with enough_memory(f"{where}: opening it", found.st_size):
        return _open(where)


def _open(where: Path) -> Artifact:
    for registration in manager().all("formats"):
        candidate: Format = manager().load("formats", registration.name)
        if candidate.matches(where):
            return candidate.open(where)
    names = ", ".join(r.name for r in manager().all("formats"))
    cure = KNOWN_DISTRIBUTIONS.get(where.suffix)
    if cure and where.suffix.removeprefix(".") not in names.split(", "):
        raise MissingPluginError(f"{where}: reading {where.suffix} files needs a plugin; pip install {cure}")
    raise InvalidFileError(
        f"{where}: no installed format recognises it (there are: {names}); "
        "a Hugging Face directory needs config.json and *.safetensors"
    )


def open_source(path: str | os.PathLike[str], target: Format) -> Artifact:
    """Open what is to be written in a format; a file that only that format understands is handed over unread.

    Raises:
        As `open_artifact`, of a file of a suffix that the format does not take.
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
    """The format of that name, or the one that the target's suffix stands for; a directory is ``hf``.

    Raises:
        MissingPluginError: nobody writes that.
        ResourceError: the target lies where nobody may look.
    """
    if name is not None:
        found: Format = manager().load("formats", name)
        return found
    with writing(target):
        is_directory = target.is_dir()
    if is_directory or not target.suffix:
        return manager().load("formats", "hf")  # type: ignore[no-any-return]
    for registration in manager().all("formats"):
        if target.suffix in registration.options.get("suffixes", ()):
            return manager().load("formats", registration.name)  # type: ignore[no-any-return]
    cure = KNOWN_DISTRIBUTIONS.get(target.suffix)
    advice = f"pip install {cure}" if cure else "say which with format="
    raise MissingPluginError(f"{target}: no installed format writes {target.suffix} files; {advice}")


def find_recipe(recipe: str | Precision | Recipe, format_name: str) -> Recipe:
    """A recipe meant for the format, else the precision of that name for every weight matrix.

    Raises:
        UnknownRecipeError: neither a recipe nor a precision.
    """
    if isinstance(recipe, Precision):
        return Uniform(recipe)
    if not isinstance(recipe, str):
        return recipe
    suited = [r for r in manager().all("recipes") if format_name in r.options.get("formats", (format_name,))]
    if any(r.name == recipe for r in suited):
        found: Recipe = manager().load("recipes", recipe)
        return found
    try:
        return Uniform(find_precision(recipe))
    except UnknownPrecisionError as error:
        names = ", ".join(r.name for r in suited) or "none"
        raise UnknownRecipeError(
            f"{recipe!r} is neither a recipe for {format_name} (there are: {names}) nor a precision: {error}"
        ) from error


def quantize(
    source: Artifact | str | os.PathLike[str],
    recipe: str | Precision | Recipe,
    *,
    to: str | os.PathLike[str],
    format: str | None = None,
    importance: Mapping[str, npt.NDArray[np.float32]] | None = None,
    backend: str | None = None,
    nonfinite: Nonfinite = "refuse",
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Quantize a model and write it, streaming: peak memory follows the largest tensor, not the model.

    Args:
        source: an artifact, or the path of one.
        recipe: a recipe (``"Q4_K_M"``), a precision for every weight matrix (``"affine:int4-sym-g32"``), or
            an object with a ``plan`` method.
        to: the file or directory to write; its suffix decides the format.
        format: name of the format, where the suffix does not say it.
        importance: mean squared activations [cols] of each weight matrix, by canonical name.
        backend: which encoders to use; None takes the fastest exact ones. The bytes are the same.
        nonfinite: ``"refuse"`` a NaN or an infinity, or ``"keep"`` the tensors that hold one in float.
        executor: encodes the row chunks; None takes a thread for each core. The bytes are the same. This thread
            reads and writes meanwhile.
        progress: called before each tensor.

    Returns:
        The artifact that was written, opened.

    Raises:
        NonFiniteError, ScaleOverflowError, UnsupportedModelError, InvalidFileError: about the source.
        ResourceError, LockedError: about the target. In every case nothing half-written is left behind.
    """
    target = Path(to)
    chosen_format = find_format(format, target)
    artifact = source if isinstance(source, Artifact) else open_source(source, chosen_format)
    _refuse_overwriting(artifact, target)
    with ExitStack() as stack:
        known = {"importance": _importance_digest(importance)} if importance else {}
        sources = stack.enter_context(closing(Digests(artifact.files, known)))
        chosen = find_recipe(recipe, chosen_format.name)
        layout = chosen_format.layout(artifact)
        plan = chosen.plan(layout.slots, layout.model.config if layout.model else None, importance is not None)
        if nonfinite == "keep":
            plan = _keep_nonfinite(plan, layout)
        pool = executor or stack.enter_context(ThreadPoolExecutor(os.cpu_count()))
        encoder = Encoder(pool, backend, importance or {}, nonfinite == "keep", f"{artifact.path}: tensor ")
        writer = chosen_format.writer(target, layout, plan, make_manifest(sources, plan, encoder))
        _write(writer, layout, plan, encoder, progress)
    return chosen_format.open(target)


def convert(
    source: Artifact | str | os.PathLike[str],
    to: str | os.PathLike[str],
    *,
    format: str | None = None,
    dtype: str | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Write a model in another format without quantizing it.

    Args:
        source: an artifact, or the path of one.
        to: the file or directory to write; its suffix decides the format.
        format: name of the format, where the suffix does not say it.
        dtype: ``F32``, ``F16`` or ``BF16`` for the weight matrices; None keeps every tensor's own precision
            where the target can hold it (encoded tensors carry their blocks over unchanged), else F32.
        progress: called before each tensor.

    Raises:
        As `quantize`.
    """
    recipe: Recipe = AsIs() if dtype is None else find_recipe(dtype, find_format(format, Path(to)).name)
    return quantize(source, recipe, to=to, format=format, progress=progress)


@attrs.frozen
class AsIs:
    """Every tensor in the precision it has."""

    name: str = "as is"

    def plan(self, slots: Sequence[Slot], config: object, importance: bool = False) -> Plan:
        """Keep encoded tensors encoded and float matrices in their own type."""
        return Plan(self.name, tuple(self._assign(slot) for slot in slots))

    def _assign(self, slot: Slot) -> Assignment:
        precision = slot.keep
        if isinstance(slot.tensor, EncodedTensor):
            precision = slot.tensor.precision
        elif len(slot.shape) > 1:
            precision = own_precision(slot.tensor)
        return Assignment(slot.name, slot.role, slot.shape, precision, "as in the source")


def own_precision(tensor: Tensor) -> Precision:
    """The plain float precision of a tensor's dtype; F32 for what has none."""
    return Precision.parse({"float16": "float:F16", "bfloat16": "float:BF16"}.get(tensor.dtype, "float:F32"))


def _refuse_overwriting(artifact: Artifact, target: Path) -> None:
    with writing(target):
        sources = {path.resolve() for path in (artifact.path, *artifact.files)}
        same = target.exists() and target.resolve() in sources
    if same:
        raise UsageError(f"{target}: the target is the source; choose another path")


def _write(writer: Writer, layout: Layout, plan: Plan, encoder: Encoder, progress: Progress | None) -> None:
    try:
        _write_tensors(writer, layout, plan, encoder, progress)
        writer.commit()
    except KeyboardInterrupt:
        writer.close(keep=True)
        raise
    except BaseException:
        writer.close()
        raise
    writer.close()


def _write_tensors(writer: Writer, layout: Layout, plan: Plan, encoder: Encoder, progress: Progress | None) -> None:
    pairs = list(zip(layout.slots, plan, strict=True))
    encoded = encoder.encoded(pairs[writer.done :])
    with closing(encoded):
        for index in range(writer.done, len(pairs)):
            if progress:
                progress(index, len(pairs), pairs[index][1].name)
            writer.write(next(encoded))
    if progress:
        progress(len(pairs), len(pairs), "")


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


def make_manifest(sources: Mapping[str, str], plan: Plan, encoder: Encoder) -> Manifest:
    """What to record about an artifact before it is written."""
    tensors = {
        a.name: {"precision": a.precision.name, "reason": a.reason, "backend": encoder.name_for(a.precision)}
        for a in plan
    }
    used = {t["backend"] for t in tensors.values()}
    versions = {p.distribution: p.version for p in manager().plugins if p.name in used or p.name == "core"}
    return Manifest(
        sources=sources,
        recipe=plan.recipe,
        tensors=tensors,
        versions={**versions, "numpy": np.__version__},
    )


def _importance_digest(importance: Mapping[str, npt.NDArray[np.float32]]) -> str:
    """SHA-256 of an importance matrix, hex: a run that was interrupted goes on with the same one only."""
    digest = hashlib.sha256()
    for name in sorted(importance):
        digest.update(name.encode() + b"\0" + np.ascontiguousarray(importance[name], "<f4").tobytes())
    return digest.hexdigest()


__all__ = [
    "AsIs",
    "Nonfinite",
    "Progress",
    "convert",
    "find_format",
    "find_recipe",
    "open_artifact",
    "quantize",
]
