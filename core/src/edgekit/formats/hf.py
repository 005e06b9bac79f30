"""Hugging Face directories: ``config.json``, one or many safetensors files, and the tokenizer's files.

Full-precision tensors are stored under their own names, quantized ones part by part (`edgekit.formats._parts`),
so that a directory of any precision opens again as the model it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from edgekit.architectures import Model
from edgekit.artifact import Artifact, Layout, Writer
from edgekit.errors import MissingFileError, UnsupportedModelError
from edgekit.files.foreign import read_object
from edgekit.formats import _hf_files as files
from edgekit.formats._parts import assemble
from edgekit.manifest import Manifest, read_manifest
from edgekit.precision import Precision
from edgekit.recipe import Plan, Slot, quantized
from edgekit.tensor import AnyTensor, EncodedTensor
from edgekit.tokenizer.record import Tokenizer


class HuggingFaceFormat:
    """Reads and writes Hugging Face directories."""

    name = "hf"

    def matches(self, path: Path) -> bool:
        """A directory with config.json and weights of any kind, or one safetensors file in such a directory."""
        if path.is_dir():
            patterns = ("*.safetensors", files.INDEX, *files.PICKLES)
            return (path / files.CONFIG).is_file() and any(any(path.glob(pattern)) for pattern in patterns)
        if any(path.match(pattern) for pattern in files.PICKLES):
            return True  # to be refused with the cure
        return path.suffix == ".safetensors" and (path.parent / files.CONFIG).is_file()

    def open(self, path: Path) -> Artifact:
        """Read the configuration and the files' headers; no values.

        Raises:
            MissingFileError: config.json, the weights or a shard are not there.
            InvalidFileError: truncated, corrupt or hostile; names file, tensor and offset.
        """
        if any(path.match(pattern) for pattern in files.PICKLES):
            raise files.refuse_pickle(path)
        directory = path if path.is_dir() else path.parent
        config = read_object(directory, files.CONFIG, files.CONFIG_LIMIT)
        if config is None:
            raise MissingFileError(f"{directory / files.CONFIG}: no such file; a model needs its configuration")
        weights = files.open_weights(directory, None if path.is_dir() else path.name)
        tensors = assemble(weights.tensors, weights.metadata, weights.files[0])
        return Artifact(
            path=path,
            format=self.name,
            files=(*weights.files, *files.carried(directory)),
            config=config,
            tensors=tensors,
            load_model=cache(lambda: _model(config, tensors, directory)),
            load_tokenizer=cache(lambda: _tokenizer(directory)),
            manifest=read_manifest(directory),
        )

    def layout(self, source: Artifact) -> Layout:
        """A Hugging Face source keeps its names and their order; another format's get those of the family.

        Integer tensors (buffers such as position ids) are no slots: from a Hugging Face source they are carried
        over as they are.

        Raises:
            UnsupportedModelError: from another format, a family that edgekit does not know.
        """
        if source.format != self.name:
            return _named_layout(source)
        model = _known_model(source)
        roles = {tensor.name: role for role, tensor in model.tensors.items()} if model else {}
        slots = (
            Slot(name, roles.get(name, name), tensor, kept(tensor))
            for name, tensor in source.tensors.items()
            if holds_floats(tensor)
        )
        return Layout(tuple(slots), source, model)

    def writer(self, path: Path, layout: Layout, plan: Plan, manifest: Manifest) -> Writer:
        """Begin, or resume, a directory.

        Raises:
            ResourceError: the target cannot be written, or the disk is too small.
            LockedError: another process writes it.
            UsageError: the target is a file, or holds files that are no artifact's.
        """
        from edgekit.formats._hf_writer import HuggingFaceWriter

        return HuggingFaceWriter(path, layout, plan, manifest)

    def notes(self, layout: Layout, plan: Plan) -> dict[str, str]:
        """That transformers does not read the parts of quantized tensors."""
        conventions = sorted({line.precision.convention for line in plan if quantized(line.precision)})
        if not conventions:
            return {}
        return {
            "only_edgekit": f"only edgekit reads this directory: its {' and '.join(conventions)} tensors lie there in "
            "parts; for another program write its own format (GGUF for llama.cpp)"
        }


def holds_floats(tensor: AnyTensor) -> bool:
    """Whether the tensor has values that can be quantized."""
    return isinstance(tensor, EncodedTensor) or "float" in tensor.dtype


def kept(tensor: AnyTensor) -> Precision:
    """The precision of a tensor that is not quantized: its own; F32 for wider and narrower floats."""
    if isinstance(tensor, EncodedTensor):
        return tensor.precision
    return Precision.parse({"float16": "float:F16", "bfloat16": "float:BF16"}.get(tensor.dtype, "float:F32"))


def _model(config: Mapping[str, Any], tensors: Mapping[str, AnyTensor], directory: Path) -> Model:
    from edgekit.architectures.hf import model_from_hf

    floats = {name: tensor for name, tensor in tensors.items() if holds_floats(tensor)}
    return model_from_hf(config, floats, str(directory))


def _known_model(source: Artifact) -> Model | None:
    try:
        return source.model
    except UnsupportedModelError:
        return None


def _named_layout(source: Artifact) -> Layout:
    from edgekit.architectures.hf import hf_names, to_hf_value

    model = source.model
    slots = []
    for role, name in hf_names(model.config).items():
        tensor = to_hf_value(model.config, role, model.tensors[role])
        slots.append(Slot(name, role, tensor, kept(tensor)))
    return Layout(tuple(slots), source, model)


def _tokenizer(directory: Path) -> Tokenizer | None:
    from edgekit.tokenizer.record import from_hf_directory

    return from_hf_directory(directory)


__all__ = ["HuggingFaceFormat"]
