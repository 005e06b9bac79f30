"""The decoder as an OpenVINO graph, built from a configuration: what `edgekit.architectures.forward` computes.

    input_ids       i64 [batch, n]       the new tokens
    attention_mask  i64 [batch, m]       1 for a token, 0 for padding on the left, of all m tokens so far
    position_ids    i64 [batch, n]       positions of the new tokens, counted without padding
    beam_idx        i32 [batch]          which sequence of the step before each sequence goes on with
    logits          f32 [batch, n, vocab]

Keys and values are states of the graph (ReadValue, Assign), [batch, kv_heads, m, head_dim]: what
`openvino_genai.LLMPipeline` calls a stateful model. Where a sliding window or a soft cap is at work, attention is
written out (MatMul, Softmax, MatMul) instead of the ScaledDotProductAttention that GenAI turns into its paged
attention: it supports no soft cap, and ignores a window that it does not recognise. GenAI then runs the graph as
it is. Norm weights are canonical: Gemma's with their one added.

Longrope and dynamic scaling turn all tokens of a sequence anew when it outgrows the original context. A graph cannot
go back to tokens it has seen: whoever runs it has to start over there (`edgekit_openvino.runtime` does).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import attrs
import numpy as np

from edgekit.architectures import ModelConfig, tensor_shapes
from edgekit.architectures.rope import frequencies
from edgekit_openvino.library import openvino

#: Added to the scores of what is not to be seen: finite in float16, so that rows of nothing but padding stay finite.
HIDDEN = -65504.0

#: Gives the float32 node of a tensor, by its canonical name.
Weights = Callable[[str], Any]


def build(config: ModelConfig, weights: Weights, stand_ins: Callable[[], Iterable[Any]] = tuple) -> Any:
    """The decoder of a model.

    Args:
        config: its hyper-parameters.
        weights: called once for each tensor, in the order in which they are needed.
        stand_ins: called at the end; Parameters that the weights are made of, where they are not constants yet.

    Returns:
        An `openvino.Model` whose nodes have names that depend on `config` alone.
    """
    return _Decoder(config, weights, stand_ins).model()


@attrs.frozen
class _Step:
    """What all layers of one step share.

    Attributes:
        ids, mask, positions, beam: the inputs.
        batch: [1], the number of sequences.
        turns: cos and sin [batch, 1, n, rotary_dim] of full and of sliding-window layers.
        masks: what is added to the scores [batch, 1, n, m], by window.
    """

    ids: Any
    mask: Any
    positions: Any
    beam: Any
    batch: Any
    turns: dict[bool, tuple[Any, Any]]
    masks: dict[int | None, Any]


class _Decoder:
    def __init__(self, config: ModelConfig, weights: Weights, stand_ins: Callable[[], Iterable[Any]]) -> None:
        self.c, self._weights, self._stand_ins = config, weights, stand_ins
        self.op = openvino().opset13
        self.tensors = tensor_shapes(config)
        self.sinks: list[Any] = []
        self._made: dict[str, Any] = {}

    # The whole.

    def model(self) -> Any:
        step = self._step()
        x = self._embed(step.ids)
        for layer in range(self.c.layers):
            x = self._block(layer, x, step)
        logits = self._product("token_embd" if self.c.tied else "output", self._norm("output_norm", x))
        if self.c.output_softcap is not None:
            logits = self._softcap(logits, self.c.output_softcap)
        result = self.op.result(logits)
        result.get_output_tensor(0).set_names({"logits"})
        inputs = [step.ids, step.mask, step.positions, step.beam, *self._stand_ins()]
        return openvino().Model([result], self.sinks, inputs, self.c.name or self.c.family)

    def _step(self) -> _Step:
        ids, mask = self._input("input_ids", [-1, -1]), self._input("attention_mask", [-1, -1])
        positions, beam = self._input("position_ids", [-1, -1]), self._input("beam_idx", [-1], np.int32)
        batch = self._dimension(ids, 0)
        windows = {self.c.window(layer) for layer in range(self.c.layers)}
        masks = self._masks(ids, mask, sorted(windows, key=lambda w: w or 0))
        divisors = self._divisors(self._dimension(mask, 1))
        turns = {bool(w): self._turns(positions, bool(w), divisors) for w in windows}
        return _Step(ids, mask, positions, beam, batch, turns, masks)

    def _input(self, name: str, shape: list[int], dtype: Any = np.int64) -> Any:
        node = self.op.parameter(shape, dtype, name=name)
        node.get_output_tensor(0).set_names({name})
        return node

    # Rotary embeddings.

    def _divisors(self, total: Any) -> Any:
        """What the plain frequencies are divided by in a sequence of `total` [1] tokens: [rotary_dim / 2]; or None."""
        op, scaling, size = self.op, self.c.rope_scaling, self.c.rotary_dim
        if scaling is None or scaling.kind not in ("longrope", "dynamic"):
            return None
        if scaling.kind == "longrope":
            long = op.greater(total, self._int([scaling.original_context]))
            return op.select(long, self._float(scaling.long_factors), self._float(scaling.short_factors))
        length = op.divide(op.convert(total, np.float32), self._float(scaling.original_context))
        beyond = op.subtract(op.maximum(length, self._float(1.0)), self._float(1.0))
        growth = op.add(self._scaled(beyond, scaling.factor), self._float(1.0))
        return op.power(growth, self._float(np.arange(0, size, 2) / max(size - 2, 1)))

    def _turns(self, positions: Any, sliding: bool, divisors: Any = None) -> tuple[Any, Any]:
        """Cos and sin [batch, 1, n, rotary_dim] of positions [batch, n]."""
        local = self.c.rope_theta_local if sliding else None
        scaling = self.c.rope_scaling if local is None else None
        if divisors is None or scaling is None:
            frequency = self._float(frequencies(self.c, 0, local))
        else:
            plain = attrs.evolve(self.c, rope_scaling=None)
            frequency = self.op.divide(self._float(frequencies(plain, 0)), divisors)
        column = self.op.unsqueeze(self.op.convert(positions, np.float32), self._int([-1]))
        angle = self.op.multiply(column, frequency)
        both = self.op.unsqueeze(self.op.concat([angle, angle], -1), self._int([1]))
        factor = 1.0 if scaling is None else scaling.attention_factor
        turns = self.op.cos(both), self.op.sin(both)
        return turns if factor == 1 else tuple(self._scaled(t, factor) for t in turns)

    def _rotate(self, x: Any, turns: tuple[Any, Any]) -> Any:
        """Rotate heads [batch, heads, n, head_dim]; elements beyond rotary_dim stay as they are."""
        size, half = self.c.rotary_dim, self.c.rotary_dim // 2
        rest = None
        if size < self.c.head_dim:
            x, rest = self._part(x, 0, size), self._part(x, size, self.c.head_dim)
        swapped = self.op.concat([self._scaled(self._part(x, half, size), -1.0), self._part(x, 0, half)], -1)
        turned = self.op.add(self.op.multiply(x, turns[0]), self.op.multiply(swapped, turns[1]))
        return turned if rest is None else self.op.concat([turned, rest], -1)

    # What a query sees.

    def _masks(self, ids: Any, mask: Any, windows: list[int | None]) -> dict[int | None, Any]:
        """For each window what is added to the scores, float32 [batch, 1, n, m]."""
        op = self.op
        total, new = self._dimension(mask, 1), self._dimension(ids, 1)
        keys = op.range(self._int(0), op.squeeze(total, self._int([0])), self._int(1), "i64")
        first = op.subtract(total, new)
        queries = op.add(op.range(self._int(0), op.squeeze(new, self._int([0])), self._int(1), "i64"), first)
        back = op.subtract(op.unsqueeze(queries, self._int([1])), op.unsqueeze(keys, self._int([0])))
        there = op.unsqueeze(op.greater(mask, self._int(0)), self._int([1, 2]))
        causal = op.logical_and(op.greater_equal(back, self._int(0)), there)
        return {window: self._mask(causal, back, window) for window in windows}

    def _mask(self, causal: Any, back: Any, window: int | None) -> Any:
        seen = causal if window is None else self.op.logical_and(causal, self.op.less(back, self._int(window)))
        return self.op.select(seen, self._float(0.0), self._float(HIDDEN))

    # A layer.

    def _embed(self, ids: Any) -> Any:
        rows = self.op.gather(self._weight("token_embd.weight"), ids, self._int(0))
        return rows if self.c.embedding_scale == 1 else self._scaled(rows, self.c.embedding_scale)

    def _block(self, layer: int, x: Any, step: _Step) -> Any:
        block = f"blk.{layer}."
        attended = self._attention(layer, self._norm(f"{block}attn_norm", x), step)
        x = self.op.add(x, self._optional_norm(f"{block}post_attention_norm", attended))
        fed = self._feed_forward(block, self._norm(f"{block}ffn_norm", x))
        return self.op.add(x, self._optional_norm(f"{block}post_ffw_norm", fed))

    def _attention(self, layer: int, x: Any, step: _Step) -> Any:
        block = f"blk.{layer}."
        queries, keys, values = self._queries_keys_values(block, x)
        turns = step.turns[self.c.window(layer) is not None]
        queries = self._rotate(self._optional_norm(f"{block}attn_q_norm", queries), turns)
        keys = self._rotate(self._optional_norm(f"{block}attn_k_norm", keys), turns)
        keys, values = self._remember(f"{layer}.key", keys, step), self._remember(f"{layer}.value", values, step)
        mixed = self._attend(queries, self._shared(keys), self._shared(values), step, self.c.window(layer))
        joined = self.op.reshape(
            self.op.transpose(mixed, self._int([0, 2, 1, 3])), self._int([0, 0, self.c.heads * self.c.head_dim]), True
        )
        return self._product(f"{block}attn_output", joined)

    def _queries_keys_values(self, block: str, x: Any) -> list[Any]:
        c = self.c
        counts = (c.heads, c.kv_heads, c.kv_heads)
        if f"{block}attn_qkv.weight" in self.tensors:
            lengths = self._int([count * c.head_dim for count in counts])
            split = self.op.variadic_split(self._product(f"{block}attn_qkv", x), self._int(-1), lengths).outputs()
        else:
            split = [self._product(f"{block}{name}", x) for name in ("attn_q", "attn_k", "attn_v")]
        return [self._heads(states, count) for states, count in zip(split, counts, strict=True)]

    def _heads(self, states: Any, count: int) -> Any:
        """[batch, n, count * head_dim] to [batch, count, n, head_dim]."""
        apart = self.op.reshape(states, self._int([0, 0, count, self.c.head_dim]), True)
        return self.op.transpose(apart, self._int([0, 2, 1, 3]))

    def _remember(self, name: str, new: Any, step: _Step) -> Any:
        """Append to a state, and give all of it: [batch, kv_heads, m, head_dim]."""
        op, c = self.op, self.c
        shape = op.concat([step.batch, self._int([c.kv_heads]), self._int([0]), self._int([c.head_dim])], 0)
        empty = op.broadcast(self._float(0.0), shape)
        dynamic = openvino().PartialShape([-1, c.kv_heads, -1, c.head_dim])
        past = op.read_value(empty, f"past_key_values.{name}", openvino().Type.f32, dynamic)
        joined = op.concat([op.gather(past, step.beam, self._int(0)), new], 2)
        self.sinks.append(op.assign(joined, f"past_key_values.{name}"))
        return joined

    def _shared(self, states: Any) -> Any:
        """Each key's or value's head once for every query head that it serves."""
        c, op = self.c, self.op
        group = c.heads // c.kv_heads
        if group == 1:
            return states
        # In the words that OpenVINO's fusions know: broadcast both ways, to a constant shape.
        wide = op.broadcast(op.unsqueeze(states, self._int([2])), self._int([1, 1, group, 1, 1]), None, "bidirectional")
        return op.reshape(wide, self._int([0, c.heads, -1, c.head_dim]), True)

    def _attend(self, queries: Any, keys: Any, values: Any, step: _Step, window: int | None) -> Any:
        op, mask = self.op, step.masks[window]
        if not self._written_out:
            scale = self._float(self.c.attention_scale)
            return op.scaled_dot_product_attention(queries, keys, values, mask, scale)
        scores = op.matmul(self._scaled(queries, self.c.attention_scale), keys, False, True)
        if self.c.attention_softcap is not None:
            scores = self._softcap(scores, self.c.attention_softcap)
        return op.matmul(op.softmax(op.add(scores, mask), -1), values, False, False)

    @property
    def _written_out(self) -> bool:
        windows = any(self.c.window(layer) is not None for layer in range(self.c.layers))
        return windows or self.c.attention_softcap is not None

    def _feed_forward(self, block: str, x: Any) -> Any:
        if f"{block}ffn_gate.weight" in self.tensors:
            gate, up = self._product(f"{block}ffn_gate", x), self._product(f"{block}ffn_up", x)
        else:
            lengths = self._int([self.c.ffn, self.c.ffn])
            gate, up = self.op.variadic_split(self._product(f"{block}ffn_up", x), self._int(-1), lengths).outputs()
        active = self.op.swish(gate) if self.c.activation == "silu" else self.op.gelu(gate, "TANH")
        return self._product(f"{block}ffn_down", self.op.multiply(active, up))

    # The smallest parts.

    def _norm(self, name: str, x: Any) -> Any:
        """Divide by the root of the mean square, and multiply: in the shape that the CPU plugin fuses."""
        op = self.op
        squares = op.power(x, self._float(2.0))
        mean = op.reduce_mean(squares, self._int([-1]), True)
        root = op.sqrt(op.add(mean, self._float(self.c.norm_eps)))
        normalized = op.multiply(x, op.divide(self._float(1.0), root))
        return op.multiply(normalized, self._weight(f"{name}.weight"))

    def _optional_norm(self, name: str, x: Any) -> Any:
        return self._norm(name, x) if f"{name}.weight" in self.tensors else x

    def _product(self, name: str, x: Any) -> Any:
        out = self.op.matmul(x, self._weight(f"{name}.weight"), False, True)
        return self.op.add(out, self._weight(f"{name}.bias")) if f"{name}.bias" in self.tensors else out

    def _weight(self, name: str) -> Any:
        if name not in self._made:
            self._made[name] = self._weights(name)
        return self._made[name]

    def _softcap(self, x: Any, cap: float) -> Any:
        return self._scaled(self.op.tanh(self.op.divide(x, self._float(cap))), cap)

    def _scaled(self, x: Any, factor: float) -> Any:
        return self.op.multiply(x, self._float(factor))

    def _part(self, x: Any, start: int, stop: int) -> Any:
        """Elements start:stop of the last dimension."""
        return self.op.slice(x, self._int([start]), self._int([stop]), self._int([1]), self._int([-1]))

    def _dimension(self, x: Any, axis: int) -> Any:
        return self.op.gather(self.op.shape_of(x), self._int([axis]), self._int(0))

    def _int(self, value: Any) -> Any:
        return self.op.constant(np.array(value, np.int64))

    def _float(self, value: Any) -> Any:
        return self.op.constant(np.asarray(value, np.float32))


def name_nodes(model: Any) -> None:
    """Give every node without a name of its own one that is the same in every process: type and place.

    OpenVINO counts unnamed nodes over the whole process, and the names are written into the IR. A constant may have
    the made-up name of the nodes that were folded into it.
    """
    for place, node in enumerate(model.get_ordered_ops()):
        name, kind = node.friendly_name, node.get_type_name()
        if re.fullmatch(r"[A-Za-z]+_\d+", name) and (name == node.get_name() or kind == "Constant"):
            node.friendly_name = f"{kind.lower()}.{place}"


__all__ = ["HIDDEN", "Weights", "build", "name_nodes"]
