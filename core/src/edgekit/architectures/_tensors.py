"""Which tensors a model has, by their canonical names, and of what shapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from edgekit.architectures._config import FAMILIES, ModelConfig
from edgekit.errors import InvalidFileError
from edgekit.tensor import AnyTensor

Shape = tuple[int, ...]

#: How many names an error lists before it only counts.
LISTED = 4


def tensor_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Name and shape of every tensor of such a model, in the order in which the forward pass meets them.

    Shapes are numpy's: [out, in] for a weight matrix.
    """
    shapes: dict[str, Shape] = {"token_embd.weight": (config.vocab, config.width)}
    for layer in range(config.layers):
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in _layer_shapes(config)}
    shapes["output_norm.weight"] = (config.width,)
    if not config.tied:
        shapes["output.weight"] = (config.vocab, config.width)
    return shapes


def _layer_shapes(config: ModelConfig) -> Iterator[tuple[str, Shape]]:
    family = FAMILIES[config.family]
    yield "attn_norm.weight", (config.width,)
    yield from _attention_shapes(config)
    if family.post_norms:
        yield "post_attention_norm.weight", (config.width,)
    yield "ffn_norm.weight", (config.width,)
    yield from _feed_forward_shapes(config)
    if family.post_norms:
        yield "post_ffw_norm.weight", (config.width,)


def _attention_shapes(config: ModelConfig) -> Iterator[tuple[str, Shape]]:
    family = FAMILIES[config.family]
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    split = {"attn_q": queries, "attn_k": keys, "attn_v": keys}
    for name, rows in ({"attn_qkv": queries + 2 * keys} if family.fused else split).items():
        yield from _matrix(name, (rows, config.width), config.qkv_bias)
    if family.qk_norm:
        yield "attn_q_norm.weight", (config.head_dim,)
        yield "attn_k_norm.weight", (config.head_dim,)
    yield from _matrix("attn_output", (config.width, queries), config.attn_output_bias)


def _feed_forward_shapes(config: ModelConfig) -> Iterator[tuple[str, Shape]]:
    if FAMILIES[config.family].fused:
        yield from _matrix("ffn_up", (2 * config.ffn, config.width), config.ffn_bias)
    else:
        yield from _matrix("ffn_gate", (config.ffn, config.width), config.ffn_bias)
        yield from _matrix("ffn_up", (config.ffn, config.width), config.ffn_bias)
    yield from _matrix("ffn_down", (config.width, config.ffn), config.ffn_bias)


def _matrix(name: str, shape: Shape, bias: bool) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", shape
    if bias:
        yield f"{name}.bias", shape[:1]


def check_tensors(
    config: ModelConfig,
    tensors: Mapping[str, AnyTensor],
    where: str,
    names: Mapping[str, str] | None = None,
) -> None:
    """Refuse a model in which a tensor is missing, odd or too many; reads no values.

    Args:
        config: the model's hyper-parameters.
        tensors: by canonical name.
        where: the file, for the error's message.
        names: the file's own name of each canonical one, for the message; canonical names without it.

    Raises:
        InvalidFileError: names the tensors, what came and what was expected.
    """
    names = names or {}
    shapes = tensor_shapes(config)
    missing = [names.get(name, name) for name in shapes if name not in tensors]
    if missing:
        cure = (
            f"{len(shapes) - len(missing)} of {len(shapes)} are there: weights and configuration are of different "
            "models, or were saved in part; take both from one place"
        )
        raise InvalidFileError(f"{where}: tensors are missing: {_some(missing)}; {cure}")
    odd = [tensors[name].name for name in tensors if name not in shapes]
    if odd:
        raise InvalidFileError(f"{where}: no {config.family} model has the tensors {_some(odd)}")
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise InvalidFileError(
                f"{where}: tensor {tensors[name].name} has shape {list(tensors[name].shape)}, "
                f"the configuration asks for {list(shape)}; the two do not belong together"
            )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
