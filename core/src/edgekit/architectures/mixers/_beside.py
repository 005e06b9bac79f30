"""Experts beside a dense network that all tokens use, each with norms of its own (Gemma 4)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import attrs

from edgekit.architectures.mixers._dense import Gated
from edgekit.architectures.mixers._mixer import Shape, matrix
from edgekit.architectures.ops import Ffn, Ops, Routing, V


@attrs.frozen
class ExpertsBeside:
    """A dense network and experts, which both take the states as they come in, without a norm of the block's.

    The router's input is divided by its root mean square and by the root of the width, and multiplied by a vector.

    Attributes:
        width: of the model.
        dense: the network that all tokens use.
        count: number of experts.
        ffn: inner width of an expert.
        routing: how the router's scores become weights; those are multiplied by ``ffn_down_exps.scale``.
        network: what an expert computes.
        eps: epsilon of the norms.
    """

    width: int
    dense: Gated
    count: int
    ffn: int
    routing: Routing
    network: Ffn
    eps: float

    name: ClassVar[str] = "experts"

    def shapes(self, width: int) -> Iterator[tuple[str, Shape]]:
        """See `Mixer.shapes`."""
        yield "ffn_norm.weight", (width,)
        yield from self.dense.shapes(width)
        yield "post_ffw_norm_1.weight", (width,)
        yield "ffn_gate_inp.scale", (width,)
        yield from matrix("ffn_gate_inp", (self.count, width))
        yield "ffn_down_exps.scale", (self.count,)
        yield "pre_ffw_norm_2.weight", (width,)
        yield from matrix("ffn_gate_up_exps", (self.count, 2 * self.ffn, width))
        yield from matrix("ffn_down_exps", (self.count, width, self.ffn))
        yield "post_ffw_norm_2.weight", (width,)

    def forward(self, ops: Ops[V], layer: int, x: V) -> V:
        """See `Mixer.forward`."""
        block = f"blk.{layer}."

        def norm(name: str, values: V) -> V:
            return ops.rms_norm(values, self.eps, f"{block}{name}.weight")

        dense = norm("post_ffw_norm_1", self.dense.forward(ops, layer, norm("ffn_norm", x)))
        routed = ops.scale(ops.rms_norm(x, self.eps), self.width**-0.5)
        scores = ops.product(f"{block}ffn_gate_inp", ops.multiply(routed, ops.vector(f"{block}ffn_gate_inp.scale")))
        weights = ops.multiply(ops.route(scores, self.routing), ops.vector(f"{block}ffn_down_exps.scale"))
        mixed = ops.experts(block, norm("pre_ffw_norm_2", x), weights, self.network)
        return ops.add(dense, norm("post_ffw_norm_2", mixed))


__all__ = ["ExpertsBeside"]
