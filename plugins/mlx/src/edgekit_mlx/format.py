"""MLX model directories: config.json with its section ``quantization``, safetensors files, the tokenizer's files."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from edgekit.architectures import Model
from edgekit.architectures.hf import config_from_hf, model_from_hf
from edgekit.artifact import Artifact, Layout
from edgekit.errors import EdgekitError, MissingFileError, UnsupportedModelError
from edgekit.files.foreign import members, read_object, shown
from edgekit.formats import carried, open_weights, with_modules
from edgekit.formats.safetensors import read_header
from edgekit.manifest import Manifest, read_manifest
from edgekit.precision import find_precision
from edgekit.recipe import Plan, Slot
from edgekit.tensor import AnyTensor, EncodedTensor, holds_floats, kept
from edgekit.tokenizer import Tokenizer, from_hf_directory
from edgekit_mlx import families
from edgekit_mlx.bridge import carried_over
from edgekit_mlx.names import mlx_links, prefix_of, quantizable
from edgekit_mlx.sections import KEY, MIRROR, is_quantized, read_section
from edgekit_mlx.sizes import MlxSizes
from edgekit_mlx.tensors import assemble
from edgekit_mlx.writer import MlxWriter

CONFIG = "config.json"
CONFIG_LIMIT = 4 << 20


class MlxFormat:
    """Reads and writes MLX model directories."""

    name = "mlx"
    #: The convention whose precisions may be written without its prefix for this format.
    conventions = ("mlx",)

    def matches(self, path: Path) -> bool:
        """Return whether config.json has MLX's section ``quantization``, or the weights' metadata names MLX."""
        directory = path if path.is_dir() else path.parent
        if not path.is_dir() and path.suffix != ".safetensors":
            return False
        try:
            config = read_object(directory, CONFIG, CONFIG_LIMIT)
            return config is not None and (is_quantized(config) or _says_mlx(directory))
        except EdgekitError:
            return False  # a damaged config.json: the general format reports it

    def open(self, path: Path) -> Artifact:
        """Read the configuration and the files' headers, without any values.

        Raises:
            MissingFileError: config.json, the weights or a shard do not exist.
            InvalidFileError: a file is truncated or malformed, or the parts of a quantized module contradict each other
                or config.json; names file and module.
            UnsupportedModelError: a tensor has several global scales.
        """
        directory = path if path.is_dir() else path.parent
        config = read_object(directory, CONFIG, CONFIG_LIMIT)
        if config is None:
            raise MissingFileError(f"{directory / CONFIG}: no such file; a model needs its configuration")
        weights = open_weights(directory)
        tensors = assemble(weights.tensors, read_section(config, directory / CONFIG), directory)
        return Artifact(
            path=path,
            format=self.name,
            files=(*weights.files, *carried(directory)),
            config=config,
            tensors=tensors,
            load_model=cache(lambda: _model(config, tensors, directory)),
            load_tokenizer=cache(lambda: _tokenizer(directory)),
            manifest=read_manifest(directory),
        )

    def layout(self, source: Artifact) -> Layout:
        """Return the source's tensors under mlx-lm's names.

        Encoded tensors keep their codes if an MLX precision holds the same values; others are decoded.

        Raises:
            UnsupportedModelError: the model family is unsupported, or mlx-lm computes it differently.
        """
        model = source.model
        families.mlx_config(model.config, str(source.path))  # refuses before anything is read
        slots = []
        prefix, logarithms = prefix_of(model.config), _logarithms(source, model)
        for link in mlx_links(model.config):
            made = link.write(tuple(model.tensors[name] for name in link.canonical))
            for name, role, each in zip(link.hf, link.roles, made, strict=True):
                tensor = logarithms.get(role) or carried_over(each)
                slots.append(Slot(prefix + name, role, tensor, _kept(tensor), quantizable(model.config, name)))
        return Layout(tuple(slots), source, model)

    def writer(self, path: Path, layout: Layout, plan: Plan, manifest: Manifest) -> MlxWriter:
        """Start writing a directory, or resume an interrupted run.

        Raises:
            UnsupportedModelError: MLX does not have a precision of the plan.
            ResourceError: the target cannot be written.
            LockedError: another process writes it.
            UsageError: the target exists and is not the writer's to replace.
        """
        return MlxWriter(path, layout, plan, manifest)

    def sizes(self, layout: Layout) -> MlxSizes:
        """Return the sizes of tensors in an MLX directory of that layout."""
        return MlxSizes(layout)

    def notes(self, layout: Layout, plan: Plan) -> dict[str, str]:
        """Return notes on what mlx-lm computes differently."""
        assert layout.model is not None
        config = layout.model.config
        sentences = {
            "mlx_window": families.note(config),
            "mlx_ramp": families.ramp_note(config),
            "mlx_norm": families.norm_note(config),
            "mlx_encoder": families.encoder_note(config),
        }
        return {kind: sentence for kind, sentence in sentences.items() if sentence}


def _logarithms(source: Artifact, model: Model) -> dict[str, AnyTensor]:
    """Return by role the decays that the source stores as logarithms, as MLX does: recomputing them would round."""
    return {role: source.tensors[name] for name, role in model.roles.items() if name.endswith("A_log")}


def _says_mlx(directory: Path) -> bool:
    """Return whether the metadata of a safetensors file in the directory has ``"format": "mlx"``."""
    first = next(iter(members(directory, "model*.safetensors")), None)
    return first is not None and read_header(first).metadata.get("format") == "mlx"


def _kept(tensor: AnyTensor) -> Any:
    if isinstance(tensor, EncodedTensor) and tensor.precision.convention not in ("mlx", "float"):
        return find_precision("float:F32")
    return kept(tensor)


def _model(config: Mapping[str, Any], tensors: Mapping[str, AnyTensor], directory: Path) -> Model:
    """Return the model with canonical names."""
    if config.get("model_type") not in families.MODEL_TYPES:
        raise UnsupportedModelError(
            f"{directory}: edgekit has not compared mlx-lm's model type {shown(config.get('model_type'))} with its own "
            "forward pass; it runs with the runtime mlx, and converts from its original files"
        )
    plain = {key: value for key, value in families.plain_config(config).items() if key not in (KEY, MIRROR)}
    if isinstance(plain.get("text_config"), Mapping):
        plain["text_config"] = {key: value for key, value in plain["text_config"].items() if key not in (KEY, MIRROR)}
    floats = {name: tensor for name, tensor in tensors.items() if holds_floats(tensor)}
    parsed = config_from_hf(plain, str(directory))
    if parsed.tied and "lm_head.weight" not in floats and plain.get("tie_word_embeddings") is None:
        plain["tie_word_embeddings"] = True
    return with_modules(model_from_hf(plain, floats, str(directory), mlx_links), directory)


def _tokenizer(directory: Path) -> Tokenizer | None:
    return from_hf_directory(directory)


__all__ = ["MlxFormat"]
