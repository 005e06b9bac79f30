"""The format that the plugin registers: recognise, open, lay out, write."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path

from edgekit.architectures import FAMILIES, Model, check_config, check_tensors
from edgekit.artifact import Artifact, Layout, unknown_family
from edgekit.files.reader import Reader, read_start
from edgekit.manifest import Manifest, read_manifest
from edgekit.recipe import Plan, Slot
from edgekit.tensor import AnyTensor, EncodedTensor, Tensor, kept
from edgekit.typing import Array
from edgekit_example.container import MAGIC, Header, Place, part_nbytes, read_header, read_part
from edgekit_example.records import to_plain
from edgekit_example.writer import EkxWriter

_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class EkxFormat:
    """Reads and writes ``.ekx`` files; see `edgekit.artifact.Format`."""

    name = "ekx"

    def matches(self, path: Path) -> bool:
        """Whether the file begins with the magic bytes or has the suffix."""
        if path.suffix == ".ekx" and not path.is_dir():
            return True
        return read_start(path, len(MAGIC)) == MAGIC

    def open(self, path: Path) -> Artifact:
        """Read everything except the tensors' values; raises as `read_header` does."""
        header, reader = read_header(path), Reader(path)
        tensors = {place.name: _tensor(place, reader) for place in header.places}
        return Artifact(
            path=path,
            format=self.name,
            files=(path,),
            config=to_plain(header.config),
            tensors=tensors,
            load_model=cache(lambda: _model(header, tensors, path)),
            load_tokenizer=lambda: header.tokenizer,
            manifest=read_manifest(path),
        )

    def layout(self, source: Artifact) -> Layout:
        """Every tensor under its canonical name.

        Raises:
            UnsupportedModelError: an unsupported model family.
        """
        model = source.model
        slots = (Slot(name, name, tensor, kept(tensor)) for name, tensor in model.tensors.items())
        return Layout(tuple(slots), source, model)

    def writer(self, path: Path, layout: Layout, plan: Plan, manifest: Manifest) -> EkxWriter:
        """Start or resume writing; raises as `EkxWriter` does."""
        return EkxWriter(path, layout, plan, manifest)


def _model(header: Header, tensors: dict[str, AnyTensor], path: Path) -> Model:
    if header.config.family not in FAMILIES:
        raise unknown_family(f"{path}: {header.config.family!r:.40}")
    config = check_config(header.config, str(path))
    check_tensors(config, tensors, str(path))
    return Model(config, tensors)


def _tensor(place: Place, reader: Reader) -> AnyTensor:
    read = partial(_read, place, reader)
    if place.precision.convention == "float":
        dtype = _FLOATS[place.precision.kind]
        return Tensor(place.name, place.shape, dtype, lambda start, stop: read(start, stop)["values"])
    sliceable = all(part.growth != "packed" for part in place.parts.values())
    return EncodedTensor(place.name, place.shape, place.precision, place.nbytes, read, sliceable)


def _read(place: Place, reader: Reader, start: int, stop: int) -> dict[str, Array]:
    """The parts of rows ``start:stop``; those whose first dimension is not the rows come whole."""
    found, begin = {}, place.begin
    for key, part in place.parts.items():
        nbytes, shape, skip = part_nbytes(part), part.shape, 0
        if part.growth == "rows":
            row = nbytes // shape[0]
            shape, skip, nbytes = (stop - start, *shape[1:]), start * row, (stop - start) * row
        found[key] = read_part(reader.read(begin + skip, nbytes, place.name), part.dtype, shape)
        begin += part_nbytes(part)
    return found


__all__ = ["EkxFormat"]
