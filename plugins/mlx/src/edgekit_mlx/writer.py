"""Writes an MLX model directory, one tensor at a time, in several shards if the weights are large.

Sizes and dtypes of all parts follow from the plan and the sources' dtypes, so that each file's complete header is
written first. An interrupted run resumes after its last complete tensor, in any shard.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import attrs

from edgekit.artifact import Layout
from edgekit.errors import UnsupportedModelError, UsageError
from edgekit.files.atomic import ARTIFACT_FILES, AtomicDirectory, AtomicFile
from edgekit.files.foreign import utf8
from edgekit.formats import Places, PlannedDirectory, small_files
from edgekit.formats.safetensors import Part, build_header
from edgekit.manifest import Manifest
from edgekit.precision import Precision
from edgekit.recipe import Assignment, Plan, Slot, quantized
from edgekit.tensor import EncodedTensor
from edgekit_mlx.families import mlx_config
from edgekit_mlx.modes import FLOATS
from edgekit_mlx.sections import KEY, MIRROR, section_of

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
#: Largest size of a shard in bytes, as in mlx-lm; a larger tensor gets a shard of its own.
SHARD = 5 << 30
#: Version of the written layout; part of the fingerprint that a resumed run must match.
LAYOUT = 1
_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_METADATA = {"format": "mlx"}


@attrs.frozen
class _Shard:
    """A file of weights: its name, its header, and the range of the plan's tensors that it holds."""

    name: str
    header: bytes
    first: int
    stop: int


class MlxWriter(PlannedDirectory):
    """Writes an MLX model directory; see `edgekit.formats.PlannedDirectory`.

    Raises:
        UnsupportedModelError: MLX does not have a precision of the plan.
        ResourceError: the target cannot be written, or the disk is too small.
        LockedError: another process writes the directory.
    """

    data = WEIGHTS
    owned = (*ARTIFACT_FILES, "README.md")

    def __init__(self, path: Path, layout: Layout, plan: Plan, manifest: Manifest) -> None:
        for assignment in plan:
            _refuse_foreign(assignment, path)
        self._layout = layout
        self._parts = [stored_parts(slot, line) for slot, line in zip(layout.slots, plan, strict=True)]
        self._shards = _shards(self._parts)
        self._files: list[AtomicFile] = []
        nbytes = _nbytes(self._parts, self._shards)
        described = [[part.name, part.dtype, list(part.shape)] for parts in self._parts for part in parts]
        identity = json.dumps(["mlx", LAYOUT, SHARD, described]).encode()
        super().__init__(path, plan, manifest, nbytes=nbytes, identity=identity)

    @property
    def done(self) -> int:
        """The number of complete tensors, including those of an interrupted run."""
        count = 0
        for shard, file in zip(self._shards, self._files, strict=True):
            count += file.done
            if file.done < shard.stop - shard.first:
                break
        return count

    def file_of(self, index: int) -> AtomicFile:
        """Return the shard of a tensor, begun with its header; see `PlannedWriter.file_of`."""
        number = next((n for n, shard in enumerate(self._shards) if index < shard.stop), len(self._shards) - 1)
        file = self._files[number]
        if not file.offset:
            file.write(self._shards[number].header)
        return file

    def _preallocate(self, nbytes: int) -> None:
        for shard, file in zip(self._shards, self._files, strict=True):
            parts = (part for of_one in self._parts[shard.first : shard.stop] for part in of_one)
            file.preallocate(len(shard.header) + sum(part.nbytes for part in parts))

    def place(self, parts: Mapping[str, Part], assignment: Assignment) -> Places:
        """Place the parts of a tensor one after the other, as the header lists them.

        Raises:
            UsageError: a part has another size than planned.
        """
        stored = []
        for expected in self._parts[self.placed]:
            key = "values" if assignment.precision.convention == "float" else expected.name.rpartition(".")[2]
            part = parts[key]
            if part.nbytes != expected.nbytes:
                raise UsageError(
                    f"{self.path}: {expected.name} has {part.nbytes} bytes as {part.dtype} {list(part.shape)}, "
                    f"{expected.dtype} {list(expected.shape)} is planned; encode it from the layout's own tensor"
                )
            stored.append(part)
        return Places.in_order(stored, self.file.offset)

    def commit(self) -> None:
        """Check that every tensor was written, write the other files, and move the directory into place."""
        self._refuse_missing()
        for shard, file in zip(self._shards, self._files, strict=True):
            if not file.offset:  # a model without tensors
                file.write(shard.header)
            file.commit()
        for name, content in self.small_files():
            self.directory.write(name, content)
        self.directory.commit()

    def small_files(self) -> Iterator[tuple[str, bytes]]:
        """Yield the name and the contents of the configuration, the tokenizer's files, the manifest and the index."""
        for name, content in small_files(self._layout, self.plan, self.manifest):
            yield name, config_of(self._layout, self.plan, content, self.path) if name == CONFIG else content
        yield INDEX, _json(_index(self.plan, self._parts, self._shards))

    def _open(self, fingerprint: Any) -> AtomicFile:
        self.directory = AtomicDirectory(self.path, owned=self.owned)
        names = [shard.name for shard in self._shards]
        try:
            self._files = [self.directory.file(name, fingerprint=fingerprint, beside=names) for name in names]
        except BaseException:
            self.directory.close()
            raise
        return self._files[0]


def config_of(layout: Layout, plan: Plan, content: bytes, path: Path) -> bytes:
    """Return the bytes of config.json: the source's, with the keys that mlx-lm reads and the quantization."""
    model = layout.model
    assert model is not None  # `MlxFormat.layout` refuses unsupported families
    source = json.loads(content)
    kept = {key: value for key, value in source.items() if key not in (KEY, MIRROR, "rope_parameters")}
    if "text_config" in kept:  # only the language model is written, so its keys move to the top level
        kept = {key: value for key, value in kept.items() if key.endswith("token_id") or key == "torch_dtype"}
    written = kept | mlx_config(model.config, str(path))
    chosen = {a.name.removesuffix(".weight"): a.precision for a in plan if quantized(a.precision)}
    if chosen:
        written[KEY] = written[MIRROR] = section_of(chosen)
    return _json(dict(sorted(written.items())))


def weights_nbytes(layout: Layout, plan: Plan) -> int:
    """Return the bytes of all weight files, and of the index if there are several."""
    parts = [stored_parts(slot, line) for slot, line in zip(layout.slots, plan, strict=True)]
    shards = _shards(parts)
    index = len(_json(_index(plan, parts, shards))) if len(shards) > 1 else 0
    return _nbytes(parts, shards) + index


def _nbytes(parts: Sequence[list[Part]], shards: Sequence[_Shard]) -> int:
    return sum(part.nbytes for of_one in parts for part in of_one) + sum(len(shard.header) for shard in shards)


def _index(plan: Plan, parts: Sequence[list[Part]], shards: Sequence[_Shard]) -> dict[str, Any]:
    names = {part.name: shard.name for shard in shards for of_one in parts[shard.first : shard.stop] for part in of_one}
    total = sum(part.nbytes for of_one in parts for part in of_one)
    return {
        "metadata": {"total_size": total, "total_parameters": sum(assignment.size for assignment in plan)},
        "weight_map": dict(sorted(names.items())),
    }


def _json(content: Any) -> bytes:
    return utf8(json.dumps(content, indent=4, ensure_ascii=False) + "\n", "the configuration")


def _refuse_foreign(assignment: Assignment, path: Path) -> None:
    if assignment.precision.convention not in ("mlx", "float"):
        raise UnsupportedModelError(
            f"{path}: MLX has its own precisions and F32, F16, BF16; the plan has {assignment.precision} for "
            f"{assignment.name}: choose one of those, such as mlx:int4-g64"
        )
    if quantized(assignment.precision) and not assignment.name.endswith(".weight"):
        raise UnsupportedModelError(f"{path}: MLX quantizes weights alone, not {assignment.name}; leave it in float")


def stored_parts(slot: Slot, assignment: Assignment) -> list[Part]:
    """Return name, dtype and shape of the arrays that store a tensor."""
    precision, shape = assignment.precision, tuple(assignment.shape)
    if precision.convention == "float":
        return [Part(slot.name, _FLOATS[precision.kind], shape)]
    if isinstance(slot.tensor, EncodedTensor) and slot.tensor.precision == precision:
        return _as_they_are(slot, shape)
    dtype = slot.tensor.dtype if not isinstance(slot.tensor, EncodedTensor) else "float32"
    return _parts(slot.name, precision, shape, dtype if dtype in ("float16", "bfloat16") else "float32")


def _as_they_are(slot: Slot, shape: tuple[int, ...]) -> list[Part]:
    """Return the parts of an encoded tensor that is copied without change."""
    assert isinstance(slot.tensor, EncodedTensor)
    scales = slot.tensor.read_parts(0, 1 if slot.tensor.sliceable else slot.tensor.rows)["scales"]
    name = "bfloat16" if scales.dtype.itemsize == 2 and scales.dtype != "float16" else scales.dtype.name
    return _parts(slot.name, slot.tensor.precision, shape, name)


def _parts(name: str, precision: Precision, shape: tuple[int, ...], dtype: str) -> list[Part]:
    """Return the parts of a quantized weight; `dtype` is the dtype of affine scales and biases."""
    assert precision.block is not None
    module = name.removesuffix(".weight")
    words = (*shape[:-1], shape[-1] * precision.bits // 32)
    groups = (*shape[:-1], shape[-1] // precision.block)
    parts = [Part(name, "uint32", words)]
    if precision.kind in FLOATS:
        parts.append(Part(f"{module}.scales", "uint8", groups))
    else:
        parts += [Part(f"{module}.{part}", dtype, groups) for part in ("scales", "biases")]
    if precision.whole_tensor:
        parts.append(Part(f"{module}.global_scale", "float32", ()))
    return parts


def _shards(parts: Sequence[list[Part]]) -> list[_Shard]:
    """Return the shards, of at most `SHARD` bytes each if no tensor is larger, with tensors in the plan's order."""
    starts, size = [0], 0
    for number, of_one in enumerate(parts):
        nbytes = sum(part.nbytes for part in of_one)
        if number > starts[-1] and size + nbytes > SHARD:
            starts.append(number)
            size = 0
        size += nbytes
    bounds = list(pairwise([*starts, len(parts)]))
    return [_Shard(_name(n, len(bounds)), _header(parts[a:b]), a, b) for n, (a, b) in enumerate(bounds)]


def _name(number: int, count: int) -> str:
    return WEIGHTS if count == 1 else f"model-{number + 1:05}-of-{count:05}.safetensors"


def _header(parts: Sequence[list[Part]]) -> bytes:
    return build_header([part for of_one in parts for part in of_one], _METADATA)


__all__ = [
    "CONFIG",
    "INDEX",
    "SHARD",
    "WEIGHTS",
    "MlxWriter",
    "config_of",
    "stored_parts",
    "weights_nbytes",
]
