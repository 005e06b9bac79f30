"""The operations that a forward pass is written in, once for all runtimes.

A mixer (`edgekit.architectures.mixers`) is a function of `Ops` and a frozen record. numpy computes the operations
(`edgekit.architectures.numpy_ops`) and is the judge; a runtime that builds a graph emits nodes for them. An operation
is coarse: attention over a state, not the matrix products and the softmax that make it up, so that a runtime can use
the fused kernel it has.

Values are of the runtime's own type V. ``states`` below are [batch, n, width] of the n new tokens; ``heads`` are
[batch, heads, n, head_dim]. Weights are called by canonical name without ``.weight`` (``blk.0.attn_q``). One instance
computes one step: it holds the new tokens and what was remembered of those before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal, Protocol, TypeVar

import attrs

from edgekit.architectures._config import Pooling
from edgekit.architectures.rope import Rope
from edgekit.errors import UnsupportedModelError

V = TypeVar("V")

#: ``silu``: x * sigmoid(x); ``gelu_tanh``: GELU's tanh approximation; ``gelu``: by the error function;
#: ``relu2``: max(x, 0)²; ``softplus``: log(1 + exp(x)).
Activation = Literal["silu", "gelu_tanh", "gelu", "relu2", "sigmoid", "softplus", "tanh"]
#: How a gate and an up projection become one: activation(gate) * up, or gpt-oss's clipped SwiGLU,
#: (min(max(up, -7), 7) + 1) * g * sigmoid(1.702 g) with g = min(gate, 7).
Gate = Literal["silu", "gelu_tanh", "gelu", "clipped"]


@attrs.frozen
class Attend:
    """What attention computes.

    Attributes:
        scale: multiplies the scores.
        window: how many positions back a query sees, its own included; None for all.
        softcap: soft cap of the scores, or None.
        chunk: a query sees the keys of its own chunk of so many positions only (Llama 4); None for all.
        causal: whether a query sees no later key; False for encoders, whose window reaches to both sides.
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    chunk: int | None = None
    causal: bool = True


@attrs.frozen
class Routing:
    """How a router's scores become the weights of the chosen experts.

    Attributes:
        used: how many experts each token uses.
        score: what the scores become first: ``softmax`` or ``sigmoid`` over all experts; ``chosen``: a softmax over
            the chosen ones alone.
        normalized: whether the chosen experts' weights are divided by their sum.
        scale: multiplies the weights.
        groups, groups_used: experts are chosen from the best groups only, by the sum of each group's best two.
        floor: the least sum that weights are divided by.
    """

    used: int
    score: Literal["softmax", "sigmoid", "chosen"] = "softmax"
    normalized: bool = True
    scale: float = 1.0
    groups: int = 1
    groups_used: int = 1
    floor: float = 0.0


@attrs.frozen
class Ffn:
    """The feed-forward network of one expert.

    Attributes:
        gate: as `Gate`; None for a network without a gate, whose `activation` follows the up projection.
        activation: where there is no gate.
        fused: whether gate and up are one matrix, the gate's rows first (``ffn_gate_up_exps``).
        weighted_input: whether the expert's weight multiplies its input instead of its output (Llama 4).
    """

    gate: Gate | None = "silu"
    activation: Activation = "silu"
    fused: bool = False
    weighted_input: bool = False


class Ops(Protocol[V]):
    """The operations. A runtime may lack some: `refuse_missing` says so before a tensor is read."""

    # Weights.

    def embed(self, name: str) -> V:
        """The rows of a matrix for the new tokens: [batch, n, cols]."""
        ...

    def embed_positions(self, name: str) -> V:
        """The rows of a matrix for the positions of the new tokens: [batch, n, cols]."""
        ...

    def product(self, name: str, x: V) -> V:
        """``x @ weight.T``, plus the bias where the model has one: [..., in] to [..., out]."""
        ...

    def row(self, name: str, number: int) -> V:
        """One row of a matrix: [cols]."""
        ...

    def vector(self, name: str) -> V:
        """A weight of one dimension under its full name (``blk.0.ssm_a``), to multiply or add."""
        ...

    # Normalization.

    def rms_norm(self, x: V, eps: float, name: str | None = None) -> V:
        """Divide by the root of the mean square over the last dimension; multiply by the weight of that name."""
        ...

    def layer_norm(self, x: V, eps: float, name: str) -> V:
        """Subtract the mean, divide by the deviation; multiply by the weight and add the bias."""
        ...

    def group_norm(self, x: V, eps: float, name: str) -> V:
        """RMSNorm of heads [batch, groups, n, size], each with its own row of the weight [groups, size]."""
        ...

    def unit(self, x: V, eps: float) -> V:
        """``x / sqrt(sum(x²) + eps)`` over the last dimension."""
        ...

    # Elementwise.

    def add(self, a: V, b: V) -> V:
        """The sum; dimensions broadcast."""
        ...

    def multiply(self, a: V, b: V) -> V:
        """The product; dimensions broadcast."""
        ...

    def scale(self, x: V, factor: float) -> V:
        """``x * factor``."""
        ...

    def activate(self, kind: Activation, x: V) -> V:
        """The activation of every element."""
        ...

    def gated(self, kind: Gate, gate: V, up: V) -> V:
        """A gate and an up projection as one, as `Gate` says."""
        ...

    def softcap(self, x: V, cap: float) -> V:
        """``cap * tanh(x / cap)``."""
        ...

    # Shapes.

    def split(self, x: V, sizes: Sequence[int]) -> list[V]:
        """The last dimension in parts of those sizes."""
        ...

    def heads(self, x: V, count: int) -> V:
        """[batch, n, count * head_dim] to [batch, count, n, head_dim]."""
        ...

    def joined(self, x: V) -> V:
        """[batch, count, n, head_dim] to [batch, n, count * head_dim]."""
        ...

    # Attention.

    def rotate(self, x: V, rope: Rope) -> V:
        """Rotate heads by the positions of the new tokens."""
        ...

    def temper(self, x: V, scale: float, every: int, ahead: int) -> V:
        """Multiply heads by ``1 + scale * log(1 + floor((position + ahead) / every))``: sharper in long contexts."""
        ...

    def remember(self, layer: int, keys: V, values: V) -> tuple[V, V]:
        """Append keys and values, heads of the new tokens, to a layer's; all of them."""
        ...

    def remembered(self, layer: int) -> tuple[V, V]:
        """All keys and values of a layer that has remembered the new ones already."""
        ...

    def attend(self, queries: V, keys: V, values: V, how: Attend, sinks: str | None = None) -> V:
        """Attention of grouped queries [batch, heads, n, head_dim]; keys and values as `remember` gives them.

        Args:
            queries: heads of the new tokens.
            keys: of all tokens.
            values: of all tokens.
            how: scale, window, cap.
            sinks: full name of a weight [heads]: a score that takes part in the softmax and has no value.

        Returns:
            [batch, n, heads * head_dim].
        """
        ...

    # What remembers in other ways.

    def convolve(self, layer: int, name: str, x: V) -> V:
        """A causal convolution of each channel with its own kernel [channels, taps], plus a bias if there is one.

        The state is the last taps - 1 inputs.
        """
        ...

    def delta_rule(self, layer: int, queries: V, keys: V, values: V, decay: V, beta: V, tiled: bool) -> V:
        """The gated delta rule, with a state S [key_dim, value_dim] a head.

        ``S = exp(g) S``, ``S += k (beta (v - S' k))'``, ``out = S' q``.

        Args:
            layer: whose state.
            queries: heads [batch, key_heads, n, key_dim].
            keys: as `queries`.
            values: heads [batch, value_heads, n, value_dim].
            decay: g, [batch, n, value_heads].
            beta: [batch, n, value_heads].
            tiled: whether value head i uses key head ``i % key_heads``; else ``i // (value_heads / key_heads)``.

        Returns:
            Heads [batch, value_heads, n, value_dim].
        """
        ...

    def scan(self, layer: int, x: V, step: V, decay: str, skip: str, inputs: V, outputs: V) -> V:
        """The selective scan of Mamba 2, with a state S [head_dim, state] a head.

        ``S = exp(dt a) S + dt x B'``, ``y = S C + d x``.

        Args:
            layer: whose state.
            x: heads [batch, heads, n, head_dim].
            step: dt, [batch, n, heads].
            decay: full name of a, [heads, 1]; below 0.
            skip: full name of d, [heads, 1].
            inputs: B, heads [batch, groups, n, state]; heads / groups heads share one.
            outputs: C, as `inputs`.

        Returns:
            Heads [batch, heads, n, head_dim].
        """
        ...

    # Experts.

    def route(self, scores: V, how: Routing, bias: str | None = None) -> V:
        """The weight of every expert, 0 for those not chosen: [batch, n, experts].

        Args:
            scores: the router's, [batch, n, experts].
            how: which are chosen, and what weights they get.
            bias: full name of a weight [experts] that is added for the choice alone.
        """
        ...

    def route_sparsely(self, scores: V, jitter: float) -> V:
        """The weights of two experts, as Phi-3.5 MoE's sparse mixer chooses them: [batch, n, experts].

        Of each of the two likeliest the softmax over scores that lie within ``2 * jitter`` of its own, relative to the
        larger of the two magnitudes, the first one's left out for the second; they do not sum to 1.

        Source: Liu et al., arXiv:2409.12136; transformers 5.23, ``models/phimoe/modeling_phimoe.py``.

        Args:
            scores: the router's, [batch, n, experts].
            jitter: half of the relative distance.
        """
        ...

    def experts(self, prefix: str, x: V, weights: V, ffn: Ffn) -> V:
        """The weighted sum of the experts' outputs: [batch, n, width].

        Args:
            prefix: of the names of the stacked matrices [experts, out, in]: ``{prefix}ffn_gate_exps``,
                ``{prefix}ffn_up_exps`` (or ``{prefix}ffn_gate_up_exps``) and ``{prefix}ffn_down_exps``, biases beside
                them where the model has some, [experts, out].
            x: states.
            weights: as `route` gives them.
            ffn: what an expert computes.
        """
        ...

    # Embeddings of texts.

    def pool(self, x: V, how: Pooling) -> V:
        """One vector for each sequence, [batch, width], of states [batch, n, width]."""
        ...


#: The names of all operations.
OPERATIONS = tuple(name for name in vars(Ops) if not name.startswith("_"))


@attrs.frozen
class Call:
    """An operation that a forward pass uses.

    Attributes:
        mixer: the part of the model that uses it (``attention``, ``experts``, ``head``).
        operation: its name.
        arguments: everything that is no value: names, records, sizes.
    """

    mixer: str
    operation: str
    arguments: tuple[object, ...]


class Recorder:
    """Records which operations a forward pass uses, without a tensor: an `Ops` of placeholders."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.mixer = ""

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        if operation not in OPERATIONS:
            raise AttributeError(operation)

        def record(*arguments: object, **named: object) -> object:
            given = (*arguments, *named.values())
            self.calls.append(Call(self.mixer, operation, tuple(a for a in given if a is not _VALUE)))
            if operation == "split":
                sizes = arguments[1]
                return [_VALUE] * len(sizes)  # type: ignore[arg-type]
            return (_VALUE, _VALUE) if operation in ("remember", "remembered") else _VALUE

        return record


#: What a recorded operation gives.
_VALUE = object()


def refuse_missing(calls: Sequence[Call], available: Collection[str], family: str, runtime: str) -> None:
    """Refuse a model that needs an operation which a runtime lacks; reads no tensor.

    Args:
        calls: what the model's forward pass uses (`edgekit.architectures.blocks.calls`).
        available: the names of the operations that the runtime has.
        family: of the model, for the message.
        runtime: its name, for the message.

    Raises:
        UnsupportedModelError: names the mixer, the family, and the operation.
    """
    for call in calls:
        if call.operation not in available:
            raise UnsupportedModelError(
                f"runtime {runtime} cannot run {family} models: their {call.mixer} needs the operation "
                f"{call.operation}, which it lacks; use runtime numpy, or llamacpp with a GGUF file"
            )


__all__ = [
    "OPERATIONS",
    "Activation",
    "Attend",
    "Call",
    "Ffn",
    "Gate",
    "Ops",
    "Pooling",
    "Recorder",
    "Routing",
    "V",
    "refuse_missing",
]
