"""Hugging Face directories: config.json and tensors as a family's model, and back.

A family says what its tensors are called there, and which values differ (`Family.links`).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import attrs
import numpy as np

from edgekit.architectures._config import Model, ModelConfig
from edgekit.architectures._families import FAMILIES
from edgekit.architectures._family import Family
from edgekit.architectures._section import Section, short
from edgekit.architectures._tensors import check_tensors, refuse_missing, refuse_odd, tensor_shapes
from edgekit.architectures.found import refuse_other_weights
from edgekit.architectures.links import Link
from edgekit.errors import UnsupportedModelError
from edgekit.tensor import AnyTensor

__all__ = [
    "config_from_hf",
    "equal_values",
    "hf_config",
    "hf_names",
    "hf_tensors",
    "model_from_hf",
    "other_parts",
    "to_hf_value",
]

_PREFIX, _EMBEDDING, _OUTPUT = "model.", "model.embed_tokens.weight", "lm_head.weight"
#: Elements that are compared at once.
_PIECE = 1 << 20
#: Where multimodal checkpoints keep the language model: transformers 4, then 5; the first match counts.
_NESTED = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
    "language_model.": "model.",
    "vision_tower.": "model.vision_tower.",
    "multi_modal_projector.": "model.multi_modal_projector.",
}
#: Parts of a multimodal checkpoint that are not the language model.
_OTHER_PARTS = (
    "model.vision_tower.",
    "model.multi_modal_projector.",
    "model.visual.",
    "model.audio_tower.",
    "model.embed_vision.",
    "model.embed_audio.",
    "vision_model.",
)


def config_from_hf(config: Mapping[str, Any], where: str) -> ModelConfig:
    """Hyper-parameters from a Hugging Face config.json.

    Args:
        config: the parsed JSON; of a multimodal model the ``text_config`` is taken.
        where: the file, for messages.

    Raises:
        UnsupportedModelError: a family, or a feature of one, that edgekit does not know.
        InvalidFileError: values of the wrong type, or sizes that no model can have.
    """
    family = _family(config, where)
    refuse_other_weights((), where, config)
    nested = family.nested and "text_config" in config
    given = Section(config, where).section("text_config") if nested else config
    return family.config_from_hf(given, where)


def _family(config: Mapping[str, Any], where: str) -> Family:
    model_type = config.get("model_type")
    found = FAMILIES.of_config(config)
    if found is None:
        known = ", ".join(dict.fromkeys(t for family in FAMILIES.values() for t in family.model_types))
        raise UnsupportedModelError(f"{where}: model_type is {short(model_type)}; edgekit knows {known}")
    return found


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """A config.json that transformers 4 and 5 load as the same model (without token ids and dtype).

    A model that its family's class in transformers does not allow is written as one of a family that computes the same.

    Raises:
        UnsupportedModelError: transformers has no such model of that family; names what it cannot say.
    """
    try:
        return _hf_config(config)
    except UnsupportedModelError:
        for family in FAMILIES[config.family].alike:
            with contextlib.suppress(UnsupportedModelError):
                return _hf_config(attrs.evolve(config, family=family))
        raise


def _hf_config(config: ModelConfig) -> dict[str, Any]:
    written = FAMILIES[config.family].config_to_hf(config)
    read = config_from_hf(written, f"{config.family} model")
    lost = [field for field, value in _essence(config).items() if not _same(value, _essence(read)[field])]
    if lost:
        raise UnsupportedModelError(
            f"a config.json of the {config.family} family cannot say this model's {', '.join(lost)}; "
            "keep it in the format that it is in"
        )
    return written


def _essence(config: ModelConfig) -> dict[str, Any]:
    """What the forward pass sees: the windows of the layers instead of the pattern that makes them.

    Without what follows the last states, which files beside config.json say.
    """
    fields = attrs.asdict(config, recurse=False)
    for hidden in ("name", "full_attention_every", "full_attention_first", "pooling", "dense"):
        del fields[hidden]
    return fields | {"sliding_window": [config.window(layer) for layer in range(config.layers)]}


def _same(a: object, b: object) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-12)  # 1/sqrt(x) is not always x ** -0.5
    return a == b


def hf_names(config: ModelConfig) -> dict[str, str]:
    """A name in Hugging Face's terms for every tensor of such a model, by its canonical name.

    Hugging Face's own, where it has the tensor as one; of a stack of experts a name that it might have.
    """
    links = FAMILIES[config.family].links(config, ())
    return {name: label for link in links for name, label in zip(link.canonical, link.labels, strict=True)}


def hf_tensors(config: ModelConfig, tensors: Mapping[str, AnyTensor]) -> dict[str, tuple[str, AnyTensor]]:
    """The tensors that a Hugging Face directory holds for a model: role and tensor by Hugging Face's name.

    Args:
        config: of the model.
        tensors: by canonical name; read when the result's are.
    """
    written: dict[str, tuple[str, AnyTensor]] = {}
    for link in FAMILIES[config.family].links(config, ()):
        made = link.write(tuple(tensors[name] for name in link.canonical))
        written |= {name: (role, tensor) for name, role, tensor in zip(link.hf, link.roles, made, strict=True)}
    return written


def model_from_hf(
    config: Mapping[str, Any],
    tensors: Mapping[str, AnyTensor],
    where: str = "config.json",
    links: Callable[[ModelConfig, Collection[str]], Sequence[Link]] | None = None,
) -> Model:
    """The family-neutral view of a Hugging Face model; reads values of an output matrix alone.

    Args:
        config: the parsed config.json.
        tensors: by Hugging Face's names.
        where: the file or directory, for messages.
        links: how the tensors hold the model's, for a format that names or shapes some of them otherwise; None:
            as `Family.links` says.

    Returns:
        The model. Where the file has an output matrix that differs from the embedding it is used, even if the
        configuration calls the embedding tied (as transformers does); one that is equal is the embedding. A base model
        (names without ``model.``, as embedding models are published) has no output matrix and counts as tied.

    Raises:
        UnsupportedModelError: an unknown family or feature; raised before the tensors are looked at.
        InvalidFileError: a tensor that is missing, of an odd shape, or that no such model has.
    """
    parsed = config_from_hf(config, where)
    family = FAMILIES[parsed.family]
    found = _language_model(tensors) if family.nested else dict(tensors)
    found = {name: tensor for name, tensor in found.items() if not family.ignores(name)}
    base, found = _is_base(found), _prefixed(found)
    parsed = attrs.evolve(parsed, tied=_tied(parsed.tied, base, found))
    if parsed.tied:
        found.pop(_OUTPUT, None)
    held = (links or family.links)(parsed, found.keys())
    needed = [name for link in held for name in link.hf]
    refuse_missing([name for name in needed if name not in found], len(needed), where)
    known = set(needed)
    refuse_odd([tensor.name for name, tensor in found.items() if name not in known], parsed.family, where)
    view = _read(held, found)
    check_tensors(parsed, view, where)
    view = {name: view[name] for name in tensor_shapes(parsed)}
    roles = {found[name].name: role for link in held for name, role in zip(link.hf, link.roles, strict=True)}
    return Model(parsed, view, roles)


def _read(links: Collection[Link], found: Mapping[str, AnyTensor]) -> dict[str, AnyTensor]:
    view: dict[str, AnyTensor] = {}
    for link in links:
        view |= zip(link.canonical, link.read(tuple(found[name] for name in link.hf)), strict=True)
    return view


def _is_base(tensors: Mapping[str, AnyTensor]) -> bool:
    return _EMBEDDING not in tensors and _EMBEDDING.removeprefix(_PREFIX) in tensors


def _prefixed(tensors: dict[str, AnyTensor]) -> dict[str, AnyTensor]:
    """The tensors of a base model under the names that they have in the whole one."""
    if not _is_base(tensors):
        return tensors
    return {name if name == _OUTPUT else _PREFIX + name: tensor for name, tensor in tensors.items()}


def _tied(said: bool, base: bool, tensors: Mapping[str, AnyTensor]) -> bool:
    """Whether the embedding doubles as the output matrix."""
    output, embedding = tensors.get(_OUTPUT), tensors.get(_EMBEDDING)
    if output is None or embedding is None:
        return said or (base and output is None)
    return equal_values(output, embedding)


def equal_values(a: AnyTensor, b: AnyTensor) -> bool:
    """Whether two tensors have the same values; reads them piece by piece, up to the first difference."""
    if a.shape != b.shape:
        return False
    step = max(1, _PIECE // max(1, a.shape[-1]))
    pieces = ((start, min(start + step, a.rows)) for start in range(0, a.rows, step))
    return all(np.array_equal(a.float32(*piece), b.float32(*piece)) for piece in pieces)


def _language_model(tensors: Mapping[str, AnyTensor]) -> dict[str, AnyTensor]:
    flat: dict[str, AnyTensor] = {}
    for name, tensor in tensors.items():
        # Two names for one place: the second keeps its own, which no model has.
        flat[name if _flat(name) in flat else _flat(name)] = tensor
    return {name: tensor for name, tensor in flat.items() if not name.startswith(_OTHER_PARTS)}


def other_parts(names: Collection[str]) -> list[str]:
    """Those names of a multimodal checkpoint's tensors that are not the language model's."""
    return [name for name in names if _flat(name).startswith(_OTHER_PARTS)]


def _flat(name: str) -> str:
    for prefix, replacement in _NESTED.items():
        if name.startswith(prefix):
            return replacement + name.removeprefix(prefix)
    return name


def to_hf_value(config: ModelConfig, name: str, tensor: AnyTensor) -> AnyTensor:
    """A tensor with the values that Hugging Face stores: Gemma's norms without the one that they multiply with.

    Args:
        config: of the model.
        name: the tensor's canonical name, of one that Hugging Face has as one tensor (`hf_tensors` gives all).
        tensor: its canonical values; read when the result is.
    """
    link = next(each for each in FAMILIES[config.family].links(config, ()) if each.canonical == (name,))
    return link.write((tensor,))[0]
