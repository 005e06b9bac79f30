"""Hugging Face directories: ``config.json``, one or many safetensors files, and the tokenizer's files.

Full-precision tensors are stored under their own names, quantized ones part by part (`edgekit.formats._parts`),
so that a directory of any precision opens as the same model again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import attrs

from edgekit.architectures import Model
from edgekit.architectures.found import refuse_adapter_directory, refuse_other_weights
from edgekit.artifact import Artifact, Layout, Writer
from edgekit.errors import MissingFileError, UnsupportedModelError
from edgekit.files import guard
from edgekit.files.foreign import member, members, read_object
from edgekit.formats import _hf_files as files
from edgekit.formats import _packed as packed
from edgekit.formats._hf_sizes import HuggingFaceSizes
from edgekit.formats._hf_writer import HuggingFaceWriter
from edgekit.formats._mistral import PARAMS, config_of, is_mistral, renamed
from edgekit.formats._parts import assemble
from edgekit.formats._sentence import with_modules
from edgekit.formats.safetensors import open_tensors
from edgekit.manifest import Manifest, read_manifest
from edgekit.recipe import Plan, Slot, quantized
from edgekit.tensor import AnyTensor, EncodedTensor, holds_floats, kept
from edgekit.tokenizer._hf_directory import from_hf_directory
from edgekit.tokenizer._record import Tokenizer


class HuggingFaceFormat:
    """Reads and writes Hugging Face directories."""

    name = "hf"

    def matches(self, path: Path) -> bool:
        """Whether the path is a directory with config.json and weights, or a safetensors file in such a directory."""
        if _adapter_directory(path) is not None:
            return True  # refused later, with the cure
        if path.is_dir():
            patterns = ("*.safetensors", files.INDEX, *files.PICKLES)
            known = (path / files.CONFIG).is_file() and bool(members(path, *patterns))
            return known or is_mistral(path)
        if any(path.match(pattern) for pattern in files.PICKLES):
            return True  # refused later, with the cure
        if is_mistral(path.parent) and path.match("consolidated*.safetensors"):
            return True
        return path.suffix == ".safetensors" and (path.parent / files.CONFIG).is_file()

    def open(self, path: Path) -> Artifact:
        """Read the configuration and the files' headers; no values.

        Raises:
            MissingFileError: config.json, the weights or a shard do not exist.
            InvalidFileError: truncated, corrupt or malicious; names file, tensor and offset.
        """
        if any(path.match(pattern) for pattern in files.PICKLES):
            raise files.refuse_pickle(path)
        directory = path if path.is_dir() else path.parent
        if is_mistral(directory):
            return self._open_mistral(path, directory)
        given = read_object(directory, files.CONFIG, files.CONFIG_LIMIT)
        if _adapter_directory(path) is not None:
            _refuse_adapter(directory)
        if given is None:
            raise MissingFileError(f"{directory / files.CONFIG}: no such file; a model needs its configuration")
        config = files.with_quantization(directory, given)
        weights = files.open_weights(directory, None if path.is_dir() else path.name)
        config = packed.with_metadata(config, weights.metadata)
        tensors = _unpacked(assemble(weights.tensors, weights.metadata, weights.files[0]), config, directory)
        return self._artifact(path, weights, config, tensors)

    def _open_mistral(self, path: Path, directory: Path) -> Artifact:
        params = read_object(directory, PARAMS, files.CONFIG_LIMIT) or {}
        config = config_of(params, str(directory))
        weights = files.open_consolidated(directory, None if path.is_dir() else path.name)
        tensors = _unpacked(dict(renamed(weights.tensors, config)), config, directory)
        artifact = self._artifact(path, weights, config, tensors)
        copied = tuple(file for file in artifact.files if file.name != files.CONFIG)  # it is generated from params.json
        return attrs.evolve(artifact, files=(*copied, directory / PARAMS))

    def _artifact(
        self, path: Path, weights: files.Weights, config: Mapping[str, Any], tensors: dict[str, AnyTensor]
    ) -> Artifact:
        directory = path if path.is_dir() else path.parent
        return Artifact(
            path=path,
            format=self.name,
            files=(*weights.files, *files.carried(directory)),
            config=config,
            tensors=tensors,
            load_model=_noting(directory, tensors, cache(lambda: _model(config, tensors, directory))),
            load_tokenizer=cache(lambda: _tokenizer(directory)),
            manifest=read_manifest(directory),
        )

    def layout(self, source: Artifact) -> Layout:
        """A Hugging Face source keeps its names and their order; another format's get those of the family.

        Integer tensors (buffers such as position ids) have no slots: from a Hugging Face source they are copied
        unchanged.

        Raises:
            UnsupportedModelError: the family of a source in another format is unsupported.
        """
        if source.format != self.name:
            return _named_layout(source)
        _refuse_unread(source.tensors, source.config, source.path)
        model = _known_model(source)
        roles = model.roles if model else {}
        slots = (
            Slot(name, roles.get(name, _ROLES.get(name, name)), tensor, kept(tensor))
            for name, tensor in source.tensors.items()
            if holds_floats(tensor) and not _is_copy(source, model, name)
        )
        return Layout(tuple(slots), source, model)

    def writer(self, path: Path, layout: Layout, plan: Plan, manifest: Manifest) -> Writer:
        """Begin, or resume, a directory.

        Raises:
            ResourceError: the target cannot be written, or the disk is too small.
            LockedError: another process writes it.
            UsageError: the target is a file, or holds files that do not belong to an artifact.
        """
        return HuggingFaceWriter(path, layout, plan, manifest)

    def sizes(self, layout: Layout) -> HuggingFaceSizes:
        """What the tensors take in a directory of that layout."""
        return HuggingFaceSizes(layout)

    def notes(self, layout: Layout, plan: Plan) -> dict[str, str]:
        """Return the note that transformers does not read the parts of quantized tensors."""
        conventions = sorted({line.precision.convention for line in plan if quantized(line.precision)})
        if not conventions:
            return {}
        return {
            "only_edgekit": f"only edgekit reads this directory: its {' and '.join(conventions)} tensors lie there in "
            "parts; for another program write its own format (GGUF for llama.cpp)"
        }


def with_tensors(
    source: Artifact, tensors: Mapping[str, AnyTensor], config: Mapping[str, Any], read: tuple[Path, ...]
) -> Artifact:
    """Return a Hugging Face artifact with other tensors, computed from its own as they are read.

    Args:
        source: a Hugging Face directory.
        tensors: by Hugging Face's names.
        config: their config.json.
        read: every file that they are computed from.
    """
    directory = source.path if source.path.is_dir() else source.path.parent
    if any(isinstance(tensor, EncodedTensor) for tensor in source.tensors.values()):
        config = packed.without_quantization(config)  # it was understood
    load = cache(lambda: _model(config, tensors, directory))
    return attrs.evolve(source, tensors=tensors, config=config, files=read, load_model=load, manifest=None)


#: Roles of tensors that a model may omit because another tensor has the same values.
_ROLES = {"lm_head.weight": "output.weight"}


def _is_copy(source: Artifact, model: Model | None, name: str) -> bool:
    """Whether a tensor is a second copy of the embedding, which transformers omits if the two are tied."""
    return (
        name in _ROLES and model is not None and model.config.tied and source.config.get("tie_word_embeddings") is True
    )


def _noting(directory: Path, names: Collection[str], load: Callable[[], Model]) -> Callable[[], Model]:
    """`load`, which tells the verb that runs of an adapter beside the model, and of a copy of the embedding."""

    def noting() -> Model:
        work = guard.current()
        if work is not None and (directory / files.ADAPTER).is_file():
            work.note(f"{files.ADAPTER} is left out: the adapter beside the model is not merged into it")
        model = load()
        if work is not None and (left := _left_out(model, names)):
            work.note(left)
        if work is not None and model.config.tied and any(name.endswith("lm_head.weight") for name in names):
            work.note("lm_head.weight has the embedding's values, and counts as the same matrix")
        return model

    return noting


def _left_out(model: Model, names: Collection[str]) -> str:
    """Say which parts of a checkpoint are not the language model: how many tensors of each; empty without any."""
    from edgekit.architectures.hf import other_parts

    parts = Counter(".".join(name.split(".")[: 2 if name.startswith("model.") else 1]) for name in other_parts(names))
    parts |= Counter(name.partition(".")[0] for name in names if name.startswith(("pooler.", "cls.")))
    parts |= Counter("mtp" for name in names if name.startswith("mtp."))
    listed = ", ".join(f"{count} tensors of {part}" for part, count in parts.items())
    return f"{listed} are left out: they are not part of the {model.config.family} language model" if listed else ""


def _adapter_directory(path: Path) -> Path | None:
    """Return the directory of an adapter without a model; None if the path is not one."""
    directory = path if path.is_dir() else path.parent
    named = (directory / files.ADAPTER).is_file() and (path.is_dir() or path.name in files.ADAPTER_WEIGHTS)
    weights = [p for p in members(directory, "*.safetensors") if p.name not in files.ADAPTER_WEIGHTS] if named else []
    return directory if named and not (path.is_dir() and weights) else None


def _refuse_adapter(directory: Path) -> NoReturn:
    """Raise the error for a directory that holds an adapter and no model."""
    base = (read_object(directory, files.ADAPTER, files.CONFIG_LIMIT) or {}).get("base_model_name_or_path")
    weights = member(directory, files.ADAPTER_WEIGHTS[0])
    names = open_tensors(weights)[0] if weights is not None else {}
    refuse_adapter_directory(directory, base if isinstance(base, str) else None, names)


def _model(config: Mapping[str, Any], tensors: Mapping[str, AnyTensor], directory: Path) -> Model:
    from edgekit.architectures.hf import model_from_hf

    config = _refuse_unread(tensors, config, directory)
    floats = {name: tensor for name, tensor in tensors.items() if holds_floats(tensor)}
    return with_modules(model_from_hf(config, floats, str(directory)), directory)


def _unpacked(tensors: dict[str, AnyTensor], config: Mapping[str, Any], directory: Path) -> dict[str, AnyTensor]:
    """Return the tensors with those that other libraries quantized as encoded ones; unchanged if they are not read.

    Why they are not read is raised when the model is asked for, so that `edgekit inspect` shows the file.
    """
    try:
        return packed.unpack(tensors, config, str(directory))
    except UnsupportedModelError:
        return tensors


def _refuse_unread(tensors: Mapping[str, AnyTensor], config: Mapping[str, Any], where: Path) -> Mapping[str, Any]:
    """Refuse weights that are not read; return the configuration without the quantization that was understood."""
    packed.unpack(tensors, config, str(where))  # says why, if something is left
    if packed.quantization_of(config) and any(isinstance(tensor, EncodedTensor) for tensor in tensors.values()):
        packed.refuse_leftovers(tensors, str(where))
        config = packed.without_quantization(config)
    refuse_other_weights(tensors, str(where), config)
    return config


def _known_model(source: Artifact) -> Model | None:
    try:
        return source.model
    except UnsupportedModelError:
        return None


def _named_layout(source: Artifact) -> Layout:
    from edgekit.architectures.hf import hf_tensors

    model = source.model
    written = hf_tensors(model.config, model.tensors)
    slots = (Slot(name, role, tensor, kept(tensor)) for name, (role, tensor) in written.items())
    return Layout(tuple(slots), source, model)


def _tokenizer(directory: Path) -> Tokenizer | None:
    return from_hf_directory(directory)


__all__ = ["HuggingFaceFormat", "with_tensors"]
