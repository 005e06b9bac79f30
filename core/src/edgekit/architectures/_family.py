"""What a model family is: a protocol, and what its GGUF files look like.

A family is one file (`edgekit.architectures.families`, or a plugin's). `edgekit.architectures.decoder.Decoder` has
everything that decoders share; a family states what is its own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import attrs

from edgekit.architectures._config import ModelConfig
from edgekit.architectures._section import Section
from edgekit.architectures.blocks import Network
from edgekit.architectures.links import Link
from edgekit.tensor import AnyTensor

#: A value of GGUF metadata, in Python's types: an int is written as uint32, a float as float32, a tuple as an array
#: (of int32, float32, bool, or string).
Setting = int | float | bool | str | tuple[int, ...] | tuple[float, ...] | tuple[bool, ...] | tuple[str, ...]


@attrs.frozen
class Key:
    """A hyper-parameter of the family's own, and the key it has under ``<architecture>.``.

    Attributes:
        name: in `ModelConfig.own`.
        key: in GGUF metadata.
        default: of a file without the key; ``...``: the key must be there.
    """

    name: str
    key: str
    default: object = ...


@attrs.frozen
class Gguf:
    """What GGUF files of a family hold, and what llama.cpp computes where they say nothing.

    Tensors have their canonical names.

    Attributes:
        architecture: ``general.architecture``.
        interleaved: whether Q and K rows are permuted so that rotary pairs are neighbours.
        gelu: GeGLU instead of SwiGLU, and embeddings times the square root of the width.
        window_period: with a sliding window every n-th layer attends to all; 0: none does.
        window: of a file that names none.
        softcaps: of attention scores and logits, in a file that names none.
        caps_output: whether a cap on the logits is looked for.
        untied: whether an output matrix of its own is loaded.
        ties: whether a file without an output matrix is loaded.
        biases: whether biases of attention and feed-forward are loaded.
        epsilon: key of the norms' epsilon.
        rotates: whether the files have keys for rotary embeddings.
        dense: whether matrices after the pooling are loaded.
        wide_layers: number of layers of the one model whose attention is scaled by width / heads.
        divisors: which rope tensors are loaded.
        keys: the family's own hyper-parameters.
        names_no_window: whether a window of 0 is written for a model without one.
        ignores_window: whether llama.cpp attends to all tokens all the same, which is noted at conversion.
        local_theta: rotary base of layers with a window, in a file that names none; None where they have no own one.
        states: fields of `ModelConfig` that the family has keys of its own for; what differs from llama.cpp's own value
            in another field is refused.
        per_layer: keys whose arrays may differ from layer to layer; the largest counts for the model.
    """

    architecture: str
    interleaved: bool = False
    gelu: bool = False
    window_period: int = 0
    window: int | None = None
    softcaps: tuple[float | None, float | None] = (None, None)
    caps_output: bool = False
    untied: bool = True
    ties: bool = True
    biases: bool = True
    epsilon: str = "attention.layer_norm_rms_epsilon"
    rotates: bool = True
    dense: bool = False
    wide_layers: int = 0
    divisors: tuple[str, ...] = ()
    keys: tuple[Key, ...] = ()
    names_no_window: bool = False
    ignores_window: bool = False
    local_theta: float | None = None
    states: tuple[str, ...] = ()
    per_layer: tuple[str, ...] = ()


class Family(Protocol):
    """A model family; registered with ``edgekit_register_families``.

    Attributes:
        name: edgekit's name, `ModelConfig.family`.
        model_types: ``model_type`` in a Hugging Face config.json; the first one is written.
        apart: what sets the family apart, a few words for the table of families.
        gguf: what its GGUF files hold; None where llama.cpp does not know the family.
        nested: whether the model may be the text part of a multimodal one, in ``text_config`` and under
            ``language_model.``.
        alike: families that compute the same under another class of transformers, by name.
    """

    name: str
    model_types: tuple[str, ...]
    apart: str
    gguf: Gguf | None
    nested: bool
    alike: tuple[str, ...]

    def hf_fits(self, config: Mapping[str, Any]) -> bool:
        """Whether a config.json of one of the `model_types` is of this family: several may share one."""
        ...

    def config_from_hf(self, config: Mapping[str, Any], where: str) -> ModelConfig:
        """Hyper-parameters from a config.json (the ``text_config`` of a nested one).

        Raises:
            UnsupportedModelError: a feature that is not implemented and would change the result.
            InvalidFileError: values of a wrong type, or sizes that no model can have.
        """
        ...

    def config_to_hf(self, config: ModelConfig) -> dict[str, Any]:
        """A config.json that transformers reads; `edgekit.architectures.hf.hf_config` checks that it says everything.

        Raises:
            UnsupportedModelError: transformers' class allows no such model.
        """
        ...

    def network(self, config: ModelConfig) -> Network:
        """The blocks that the model is made of.

        Raises:
            InvalidFileError: hyper-parameters of the family's own that no model can have.
        """
        ...

    def links(self, config: ModelConfig, names: Collection[str]) -> Sequence[Link]:
        """How Hugging Face's tensors hold the model's, in the order of `Network.shapes`.

        Args:
            config: of the model.
            names: of the checkpoint's tensors, to tell its form where there are several; empty: the form to write.
        """
        ...

    def ignores(self, name: str) -> bool:
        """Whether a tensor of a checkpoint is no part of the model: a buffer, a part for training."""
        ...

    def gguf_metadata(self, config: ModelConfig) -> Mapping[str, Setting]:
        """Further keys under ``<architecture>.``, and a refusal of what llama.cpp would compute otherwise.

        Raises:
            UnsupportedModelError: GGUF cannot say what the model computes, or llama.cpp computes something else.
        """
        ...

    def gguf_fits(self, keys: Section) -> bool:
        """Whether a file of the architecture is of this family: several may share one (Llama, Mistral, Mixtral)."""
        ...

    def gguf_config(self, config: ModelConfig, keys: Section, tensors: Mapping[str, AnyTensor]) -> ModelConfig:
        """The configuration of a GGUF file, completed: what `config` has is read from the keys that all share.

        Args:
            config: with everything that has a key of its own.
            keys: the metadata under ``<architecture>.``.
            tensors: the file's, by name.
        """
        ...


__all__ = ["Family", "Gguf", "Key", "Setting"]
