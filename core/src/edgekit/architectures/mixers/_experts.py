"""Mixtures of experts: a router chooses some of many feed-forward networks for each token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import attrs

from edgekit.architectures.mixers._dense import Gated, Plain
from edgekit.architectures.mixers._mixer import Shape, matrix
from edgekit.architectures.ops import Ffn, Ops, Routing, V


@attrs.frozen
class Experts:
    """A router and its experts, whose matrices are stacked: [experts, out, in].

    Attributes:
        count: how many experts there are.
        ffn: the inner width of one.
        routing: how the router's scores become weights.
        network: what an expert computes.
        bias: whether the experts' matrices have biases.
        router_bias: whether the router has one.
        choice_bias: whether ``exp_probs_b.bias`` is added to the scores for the choice alone.
        shared: an expert that all tokens use, or None.
        shared_gate: whether the sigmoid of ``ffn_gate_inp_shexp`` multiplies what it gives.
        jitter: of a sparse router (`edgekit.architectures.ops.Ops.route_sparsely`); None for `routing`.
        latent: the width that experts work in, between ``ffn_latent_down`` and ``ffn_latent_up``; 0: the model's own.
    """

    count: int
    ffn: int
    routing: Routing
    network: Ffn
    bias: bool = False
    router_bias: bool = False
    choice_bias: bool = False
    shared: Gated | Plain | None = None
    shared_gate: bool = False
    jitter: float | None = None
    latent: int = 0

    name: ClassVar[str] = "experts"

    def shapes(self, width: int) -> Iterator[tuple[str, Shape]]:
        """See `Mixer.shapes`."""
        inner = self.latent or width
        yield from matrix("ffn_gate_inp", (self.count, width), self.router_bias)
        if self.choice_bias:
            yield "exp_probs_b.bias", (self.count,)
        if self.latent:
            yield from matrix("ffn_latent_down", (self.latent, width))
        rows = {"ffn_gate_up_exps": 2 * self.ffn} if self.network.fused else {"ffn_gate_exps": self.ffn}
        rows |= {} if self.network.fused else {"ffn_up_exps": self.ffn}
        for name in [name for name in rows if self.network.gate or name != "ffn_gate_exps"]:
            yield from matrix(name, (self.count, rows[name], inner), self.bias)
        yield from matrix("ffn_down_exps", (self.count, inner, self.ffn), self.bias)
        if self.latent:
            yield from matrix("ffn_latent_up", (width, self.latent))
        if self.shared is not None:
            yield from self.shared.shapes(width)
        if self.shared_gate:
            yield "ffn_gate_inp_shexp.weight", (width,)

    def forward(self, ops: Ops[V], layer: int, x: V) -> V:
        """See `Mixer.forward`."""
        block = f"blk.{layer}."
        bias = f"{block}exp_probs_b.bias" if self.choice_bias else None
        scores = ops.product(f"{block}ffn_gate_inp", x)
        if self.jitter is None:
            weights = ops.route(scores, self.routing, bias)
        else:
            weights = ops.route_sparsely(scores, self.jitter)
        inner = ops.product(f"{block}ffn_latent_down", x) if self.latent else x
        mixed = ops.experts(block, inner, weights, self.network)
        if self.latent:
            mixed = ops.product(f"{block}ffn_latent_up", mixed)
        return mixed if self.shared is None else ops.add(mixed, self._shared(ops, layer, x, self.shared))

    def _shared(self, ops: Ops[V], layer: int, x: V, shared: Gated | Plain) -> V:
        out = shared.forward(ops, layer, x)
        if not self.shared_gate:
            return out
        return ops.multiply(out, ops.activate("sigmoid", ops.product(f"blk.{layer}.ffn_gate_inp_shexp", x)))


__all__ = ["Experts"]
