"""The operations of encoders' forward passes in MLX, and the modules that hold their weights.

mlx-lm has decoders alone. Encoders run through the core's own forward pass (`edgekit.architectures.blocks`) instead,
whose operations are these. A weight is a module of `mlx.nn` under its canonical name, so that `mlx.nn.quantize`
replaces it by a quantized one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attrs
import numpy as np

from edgekit.architectures import FAMILIES, ModelConfig
from edgekit.architectures.blocks import Network, calls
from edgekit.architectures.mixers import Shape
from edgekit.architectures.ops import OPERATIONS, Activation, Attend, Call, Gate, refuse_missing
from edgekit.architectures.rope import Rope
from edgekit.typing import Bools
from edgekit_mlx.library import core, nn, to_mlx, tree_flatten, tree_unflatten


@attrs.frozen(eq=False)
class MlxOps:
    """One step in MLX; see `edgekit.architectures.ops.Ops` for what each operation computes.

    Attributes:
        modules: the modules that hold the weights, by canonical name without ``.weight``.
        tokens: ids of the new tokens, int [batch, n].
        start: the position of the first new token.
        past: keys and values of earlier steps, by layer; the step adds its own.
    """

    modules: Mapping[str, Any]
    tokens: Any
    start: int = 0
    past: dict[int, tuple[Any, Any]] = attrs.field(factory=dict)

    @property
    def _stop(self) -> int:
        return self.start + int(self.tokens.shape[1])

    def embed(self, name: str) -> Any:
        """See `Ops.embed`."""
        return self.modules[name](self.tokens)

    def embed_positions(self, name: str) -> Any:
        """See `Ops.embed_positions`."""
        rows = self.modules[name](core().arange(self.start, self._stop))
        return core().broadcast_to(rows, (self.tokens.shape[0], *rows.shape))

    def row(self, name: str, number: int) -> Any:
        """See `Ops.row`."""
        return self.modules[name](core().array([number]))[0]

    def product(self, name: str, x: Any) -> Any:
        """See `Ops.product`."""
        return self.modules[name](x)

    def rms_norm(self, x: Any, eps: float, name: str | None = None) -> Any:
        """See `Ops.rms_norm`."""
        weight = None if name is None else self.modules[name.removesuffix(".weight")].weight
        return core().fast.rms_norm(x, weight, eps)

    def layer_norm(self, x: Any, eps: float, name: str) -> Any:
        """See `Ops.layer_norm`."""
        module = self.modules[name]
        return core().fast.layer_norm(x, module.weight, module.bias, eps)

    def add(self, a: Any, b: Any) -> Any:
        """See `Ops.add`."""
        return a + b

    def scale(self, x: Any, factor: float) -> Any:
        """See `Ops.scale`."""
        return x * factor

    def activate(self, kind: Activation, x: Any) -> Any:
        """See `Ops.activate`."""
        return _activation(kind)(x)

    def gated(self, kind: Gate, gate: Any, up: Any) -> Any:
        """See `Ops.gated`."""
        if kind == "clipped":
            mx = core()
            gate, up = mx.minimum(gate, 7.0), mx.clip(up, -7.0, 7.0)
            return (up + 1.0) * gate * mx.sigmoid(1.702 * gate)
        return self.activate(kind, gate) * up

    def heads(self, x: Any, count: int) -> Any:
        """See `Ops.heads`."""
        return x.reshape(*x.shape[:2], count, -1).swapaxes(1, 2)

    def joined(self, x: Any) -> Any:
        """See `Ops.joined`."""
        return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)

    def rotate(self, x: Any, rope: Rope) -> Any:
        """See `Ops.rotate`; computed in float32 and returned in the dtype of `x`."""
        mx, turns, half = core(), rope.rotation(self.start, self._stop), rope.dim // 2
        cos, sin = to_mlx(turns.cos), to_mlx(turns.sin)
        rest = x[..., 2 * half :]
        if rope.neighbours:
            a, b = x[..., : 2 * half : 2], x[..., 1 : 2 * half : 2]
            turned = mx.stack((a * cos - b * sin, b * cos + a * sin), axis=-1).flatten(-2)
        else:
            a, b = x[..., :half], x[..., half : 2 * half]
            turned = mx.concatenate((a * cos - b * sin, b * cos + a * sin), axis=-1)
        return mx.concatenate((turned.astype(x.dtype), rest), axis=-1)

    def remember(self, layer: int, keys: Any, values: Any) -> tuple[Any, Any]:
        """See `Ops.remember`."""
        if layer in self.past:
            before = self.past[layer]
            keys, values = (core().concatenate(pair, axis=2) for pair in zip(before, (keys, values), strict=True))
        self.past[layer] = keys, values
        return keys, values

    def remembered(self, layer: int) -> tuple[Any, Any]:
        """See `Ops.remembered`."""
        return self.past[layer]

    def attend(self, queries: Any, keys: Any, values: Any, how: Attend, sinks: str | None = None) -> Any:
        """See `Ops.attend`; scores and softmax in float32."""
        mx = core()
        batch, heads, n, size = queries.shape
        grouped = queries.reshape(batch, keys.shape[1], heads // keys.shape[1], n, size).astype(mx.float32)
        scores = (grouped * how.scale) @ keys[:, :, None].astype(mx.float32).swapaxes(-1, -2)
        if how.softcap is not None:
            scores = how.softcap * mx.tanh(scores / how.softcap)
        scores = mx.where(to_mlx(_seen(n, keys.shape[2], how)), scores, -mx.inf)
        if sinks is not None:
            sink = self.modules[sinks.removesuffix(".weight")].weight.astype(mx.float32)
            shape = (batch, keys.shape[1], heads // keys.shape[1], n, 1)
            column = mx.broadcast_to(sink.reshape(1, keys.shape[1], -1, 1, 1), shape)
            scores = mx.concatenate((scores, column), axis=-1)
        shares = mx.softmax(scores, axis=-1)[..., : keys.shape[2]].astype(values.dtype)
        return self.joined((shares @ values[:, :, None]).reshape(batch, heads, n, -1))


def _seen(new: int, every: int, how: Attend) -> Bools:
    """Return whether each of the last `new` of `every` positions sees each of them, bool [new, every]."""
    queries, keys = np.arange(every - new, every)[:, None], np.arange(every)
    seen = np.ones((new, every), bool)
    if how.causal:
        seen &= keys <= queries
    if how.window is not None:
        seen &= np.abs(queries - keys) < how.window
    if how.chunk is not None:
        seen &= queries // how.chunk == keys // how.chunk
    return seen


def _activation(kind: Activation) -> Any:
    mx, layers = core(), nn()
    found = {
        "silu": layers.silu,
        "gelu_tanh": layers.gelu_approx,
        "gelu": layers.gelu,
        "relu2": layers.relu2,
        "sigmoid": mx.sigmoid,
        "softplus": layers.softplus,
        "tanh": mx.tanh,
    }
    return found[kind]


#: The names of the operations that there are.
AVAILABLE = tuple(name for name in OPERATIONS if hasattr(MlxOps, name))
_EMBEDS = ("embed", "embed_positions", "row")


def encoder_of(config: ModelConfig) -> Network | None:
    """Return the blocks of an encoder, which MLX computes through the core's forward pass; None for a decoder.

    Raises:
        UnsupportedModelError: it needs an operation that is not in `AVAILABLE`; names it, the mixer and the family.
    """
    network = FAMILIES[config.family].network(config)
    if network.predicts:
        return None
    refuse_missing(calls(network), AVAILABLE, config.family, "mlx")
    return network


def modules_of(shapes: Iterable[tuple[str, Shape]], used: Iterable[Call]) -> Any:
    """Return a module with one in it for each weight, under its canonical name, not yet filled.

    Args:
        shapes: name and shape of every tensor (`Network.shapes`).
        used: what the forward pass does with them (`edgekit.architectures.blocks.calls`).
    """
    embedded = {call.arguments[0] for call in used if call.operation in _EMBEDS}
    every = dict(shapes)
    root = nn().Module()
    leaves = [
        (stem, _leaf(shape, stem in embedded, f"{stem}.bias" in every))
        for stem, shape in ((n.removesuffix(".weight"), s) for n, s in every.items() if n.endswith(".weight"))
    ]
    for name, child in tree_unflatten()(leaves).items():
        setattr(root, name, child)
    return root


def _leaf(shape: Shape, embedded: bool, bias: bool) -> Any:
    layers = nn()
    if len(shape) == 1:
        return layers.LayerNorm(shape[0]) if bias else layers.RMSNorm(shape[0])
    return layers.Embedding(*shape) if embedded else layers.Linear(shape[1], shape[0], bias=bias)


def leaves(root: Any) -> dict[str, Any]:
    """Return the modules in a module of `modules_of` that hold weights, by canonical name."""
    return dict(tree_flatten()(root.leaf_modules(), is_leaf=nn().Module.is_module))


__all__ = ["AVAILABLE", "MlxOps", "encoder_of", "leaves", "modules_of"]
