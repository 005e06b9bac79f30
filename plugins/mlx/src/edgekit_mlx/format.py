"""MLX model directories: config.json with its section ``quantization``, safetensors files, the tokenizer's files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from edgekit.architectures import Model
from edgekit.architectures.hf import config_from_hf, hf_names, model_from_hf, to_hf_value
from edgekit.artifact import Artifact, Layout
from edgekit.errors import EdgekitError, MissingFileError, UnsupportedModelError
from edgekit.files.foreign import read_object, shown
from edgekit.formats import carried, open_weights, with_modules
from edgekit.formats.safetensors import read_header
from edgekit.manifest import Manifest, read_manifest
from edgekit.precision import find_precision
from edgekit.recipe import Plan, Slot, quantized
from edgekit.tensor import AnyTensor, EncodedTensor, holds_floats, kept
from edgekit.tokenizer import Tokenizer, from_hf_directory
from edgekit_mlx import families
from edgekit_mlx.bridge import carried_over
from edgekit_mlx.sections import KEY, MIRROR, is_quantized, read_section
from edgekit_mlx.sizes import MlxSizes
from edgekit_mlx.tensors import assemble
from edgekit_mlx.writer import MlxWriter

CONFIG = "config.json"
CONFIG_LIMIT = 4 << 20


class MlxFormat:
    """Reads and writes MLX model directories."""

    name = "mlx"
    #: Whose precisions have short names here.
    conventions = ("mlx",)

    def matches(self, path: Path) -> bool:
        """Whether a directory's config.json has MLX's section, or its weights' metadata says that MLX wrote them."""
        directory = path if path.is_dir() else path.parent
        if not path.is_dir() and path.suffix != ".safetensors":
            return False
        try:
            config = read_object(directory, CONFIG, CONFIG_LIMIT)
            return config is not None and (is_quantized(config) or _says_mlx(directory))
        except EdgekitError:
            return False  # the format that recognises damaged directories says what is wrong

    def open(self, path: Path) -> Artifact:
        """Read the configuration and the files' headers; no values.

        Raises:
            MissingFileError: config.json, the weights or a shard do not exist.
            InvalidFileError: truncated, corrupt or malicious, or parts of a quantized module that contradict each
                other or config.json; names file and module.
            UnsupportedModelError: global scales that edgekit does not read.
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
        """What mlx-lm loads as the source's model: tensors under mlx-lm's names.

        A source whose tensors are encoded keeps their codes where MLX can hold them unchanged; others are decoded.

        Raises:
            UnsupportedModelError: an unsupported model family, or one that mlx-lm computes otherwise.
        """
        model = source.model
        families.mlx_config(model.config, str(source.path))  # refuses before anything is read
        slots = []
        for role, name in hf_names(model.config).items():
            tensor = carried_over(to_hf_value(model.config, role, model.tensors[role]))
            slots.append(Slot(name, role, tensor, _kept(tensor)))
        return Layout(tuple(slots), source, model)

    def writer(self, path: Path, layout: Layout, plan: Plan, manifest: Manifest) -> MlxWriter:
        """Begin, or resume, a directory.

        Raises:
            UnsupportedModelError: the plan has precisions that MLX does not have.
            ResourceError, LockedError, UsageError: about the target.
        """
        return MlxWriter(path, layout, plan, manifest)

    def sizes(self, layout: Layout) -> MlxSizes:
        """What the tensors take in a directory of that layout."""
        return MlxSizes(layout)

    def notes(self, layout: Layout, plan: Plan) -> dict[str, str]:
        """What mlx-lm computes otherwise than the model was trained, and what was decoded."""
        assert layout.model is not None
        sentences = {"mlx_window": families.note(layout.model.config), **_decoded(layout, plan)}
        return {kind: sentence for kind, sentence in sentences.items() if sentence}


def _decoded(layout: Layout, plan: Plan) -> dict[str, str]:
    """Notes on matrices of formats that MLX does not have: decoded, and, by a recipe, quantized again."""
    assert layout.model is not None
    kinds: dict[bool, Counter[str]] = {False: Counter(), True: Counter()}
    for slot, line in zip(layout.slots, plan, strict=True):
        own = layout.model.tensors[slot.role]
        if isinstance(own, EncodedTensor) and not isinstance(slot.tensor, EncodedTensor):
            kinds[quantized(line.precision)][own.precision.name] += 1
    shown = {again: ", ".join(f"{n} {name}" for name, n in sorted(count.items())) for again, count in kinds.items()}
    return {
        "decoded": shown[False] and f"matrices that MLX cannot hold as they are were decoded to floats: {shown[False]}",
        "decoded_again": shown[True]
        and f"matrices quantized already ({shown[True]}) were quantized again; start from the full precision",
    }


def _says_mlx(directory: Path) -> bool:
    """Whether the metadata of a safetensors file in the directory says ``"format": "mlx"``."""
    first = next(iter(sorted(directory.glob("model*.safetensors"))), None)
    return first is not None and read_header(first).metadata.get("format") == "mlx"


def _kept(tensor: AnyTensor) -> Any:
    if isinstance(tensor, EncodedTensor) and tensor.precision.convention not in ("mlx", "float"):
        return find_precision("float:F32")
    return kept(tensor)


def _model(config: Mapping[str, Any], tensors: Mapping[str, AnyTensor], directory: Path) -> Model:
    """The family-neutral view; mlx-lm's tensors have Hugging Face's names and values in every family that is known."""
    if config.get("model_type") not in families.MODEL_TYPES:
        raise UnsupportedModelError(
            f"{directory}: edgekit has not compared mlx-lm's model type {shown(config.get('model_type'))} with its own "
            "forward pass; it runs with the runtime mlx, and converts from its original files"
        )
    plain = {key: value for key, value in config.items() if key not in (KEY, MIRROR)}
    if isinstance(plain.get("text_config"), Mapping):
        plain["text_config"] = {key: value for key, value in plain["text_config"].items() if key not in (KEY, MIRROR)}
    floats = {name: tensor for name, tensor in tensors.items() if holds_floats(tensor)}
    parsed = config_from_hf(plain, str(directory))
    if parsed.tied and "lm_head.weight" not in floats and plain.get("tie_word_embeddings") is None:
        plain["tie_word_embeddings"] = True
    return with_modules(model_from_hf(plain, floats, str(directory)), directory)


def _tokenizer(directory: Path) -> Tokenizer | None:
    return from_hf_directory(directory)


__all__ = ["MlxFormat"]
