"""The operations of a forward pass as nodes of an OpenVINO graph; see `edgekit.architectures.ops.Ops`.

Keys and values are states of the graph (ReadValue, Assign), [batch, kv_heads, m, head_dim]: what
`openvino_genai.LLMPipeline` calls a stateful model. With a sliding window, a soft cap or a sink, attention consists of
MatMul, Softmax and MatMul instead of ScaledDotProductAttention. GenAI replaces the latter by paged attention, which
does not support soft caps and ignores windows that it does not recognise; other graphs it runs unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np

from edgekit.architectures.ops import Activation, Attend, Call, Ffn, Gate, Routing
from edgekit.architectures.rope import Rope
from edgekit_openvino.library import openvino

#: Added to masked scores; finite in float16, so that rows that consist of padding stay finite.
HIDDEN = -65504.0

#: A node of the graph or one of its outputs; numbers and arrays too, where the API accepts them.
Node = Any
#: Returns the float32 node of a tensor, by its canonical name.
Weights = Callable[[str], Node]


@attrs.frozen
class _Inputs:
    """The graph's inputs, and nodes derived from them that all layers share.

    Attributes:
        ids, mask, positions, beam: the graph's parameters.
        batch: [1], the number of sequences.
        total: [1], the number of tokens so far, including the new ones.
        causal: [batch, 1, n, m], whether a query may attend to a key.
        back: [n, m], the distance of a key before a query in positions.
    """

    ids: Node
    mask: Node
    positions: Node
    beam: Node
    batch: Node
    total: Node
    causal: Node
    back: Node


class GraphOps:
    """The operations as nodes of a graph; one instance builds one graph.

    Args:
        shapes: the shapes of the tensors, by canonical name.
        uses: the operations that the model will use, since its kinds of attention must be known in advance.
        weights: returns the node of a tensor; called once per tensor, in the order in which they are needed.
        predicts: whether the model is a decoder, which goes on after what it has seen; an encoder has no states, and
            its graph no inputs but ids and mask.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], uses: Sequence[Call], weights: Weights, predicts: bool = True
    ) -> None:
        self._weights = weights
        self._predicts = predicts
        self.tensors = shapes
        self.op = openvino().opset13
        self.sinks: list[Node] = []
        self._made: dict[str, Node] = {}
        # One subgraph per Rope object: layers with and without a window have different ones.
        self._turns: dict[int, tuple[Node, Node]] = {}
        self._masks: dict[tuple[int | None, int | None, bool], Node] = {}
        self._states: dict[int, tuple[Node, Node]] = {}
        attends = [call.arguments for call in uses if call.operation == "attend"]
        self._written_out = any(_beyond_fused(arguments) for arguments in attends)
        self.inputs = self._step()

    # The model.

    def model(self, computed: Node, name: str, stand_ins: Iterable[Node]) -> Node:
        """Return the `openvino.Model` that computes the logits, of an encoder the last states."""
        result = self.op.result(computed)
        result.get_output_tensor(0).set_names({"logits" if self._predicts else "last_hidden_state"})
        step = self.inputs
        further = [step.positions, step.beam] if self._predicts else []
        inputs = [step.ids, step.mask, *further, *stand_ins]
        return openvino().Model([result], self.sinks, inputs, name)

    def _step(self) -> _Inputs:
        op = self.op
        ids, mask = self._input("input_ids", [-1, -1]), self._input("attention_mask", [-1, -1])
        positions = self._input("position_ids", [-1, -1]) if self._predicts else self._counted(ids)
        beam = self._input("beam_idx", [-1], np.int32)  # an encoder's graph leaves it out
        batch = self._dimension(ids, 0)
        total, new = self._dimension(mask, 1), self._dimension(ids, 1)
        keys = op.range(self._int(0), op.squeeze(total, self._int([0])), self._int(1), "i64")
        first = op.subtract(total, new)
        queries = op.add(op.range(self._int(0), op.squeeze(new, self._int([0])), self._int(1), "i64"), first)
        back = op.subtract(op.unsqueeze(queries, self._int([1])), op.unsqueeze(keys, self._int([0])))
        there = op.unsqueeze(op.greater(mask, self._int(0)), self._int([1, 2]))
        causal = op.logical_and(op.greater_equal(back, self._int(0)), there)
        return _Inputs(ids, mask, positions, beam, batch, total, causal, back)

    def _counted(self, ids: Node) -> Node:
        """Return the positions of an encoder's tokens, int64 [1, n]."""
        op = self.op
        count = op.squeeze(self._dimension(ids, 1), self._int([0]))
        return op.unsqueeze(op.range(self._int(0), count, self._int(1), "i64"), self._int([0]))

    def _input(self, name: str, shape: list[int], dtype: Node = np.int64) -> Node:
        node = self.op.parameter(shape, dtype, name=name)
        node.get_output_tensor(0).set_names({name})
        return node

    # Weights.

    def embed(self, name: str) -> Node:
        """See `Ops.embed`."""
        return self.op.gather(self._weight(f"{name}.weight"), self.inputs.ids, self._int(0))

    def embed_positions(self, name: str) -> Node:
        """See `Ops.embed_positions`."""
        return self.op.gather(self._weight(f"{name}.weight"), self.inputs.positions, self._int(0))

    def product(self, name: str, x: Node) -> Node:
        """See `Ops.product`."""
        shape = self.tensors[f"{name}.weight"]
        weight = self._weight(f"{name}.weight")
        if len(shape) == 1:  # one row
            weight = self.op.unsqueeze(weight, self._int([0]))
        out = self.op.matmul(x, weight, False, True)
        return self.op.add(out, self._weight(f"{name}.bias")) if f"{name}.bias" in self.tensors else out

    def row(self, name: str, number: int) -> Node:
        """See `Ops.row`."""
        return self.op.gather(self._weight(f"{name}.weight"), self._int(number), self._int(0))

    def vector(self, name: str) -> Node:
        """See `Ops.vector`."""
        return self._weight(name)

    def _weight(self, name: str) -> Node:
        if name not in self._made:
            self._made[name] = self._weights(name)
        return self._made[name]

    # Normalization.

    def rms_norm(self, x: Node, eps: float, name: str | None = None) -> Node:
        """See `Ops.rms_norm`; built from the nodes that the CPU plugin fuses."""
        op = self.op
        squares = op.power(x, self._float(2.0))
        mean = op.reduce_mean(squares, self._int([-1]), True)
        root = op.sqrt(op.add(mean, self._float(eps)))
        normalized = op.multiply(x, op.divide(self._float(1.0), root))
        return normalized if name is None else op.multiply(normalized, self._weight(name))

    def group_norm(self, x: Node, eps: float, name: str) -> Node:
        """See `Ops.group_norm`."""
        return self.op.multiply(self.rms_norm(x, eps), self.op.unsqueeze(self._weight(name), self._int([1])))

    def layer_norm(self, x: Node, eps: float, name: str) -> Node:
        """See `Ops.layer_norm`."""
        normalized = self.op.mvn(x, self._int([-1]), True, eps, "INSIDE_SQRT")
        scaled = self.op.multiply(normalized, self._weight(f"{name}.weight"))
        return self.op.add(scaled, self._weight(f"{name}.bias"))

    def unit(self, x: Node, eps: float) -> Node:
        """See `Ops.unit`."""
        squares = self.op.reduce_sum(self.op.multiply(x, x), self._int([-1]), True)
        return self.op.divide(x, self.op.sqrt(self.op.add(squares, self._float(eps))))

    # Elementwise.

    def add(self, a: Node, b: Node) -> Node:
        """See `Ops.add`."""
        return self.op.add(a, b)

    def multiply(self, a: Node, b: Node) -> Node:
        """See `Ops.multiply`."""
        return self.op.multiply(a, b)

    def scale(self, x: Node, factor: float) -> Node:
        """See `Ops.scale`."""
        return self.op.multiply(x, self._float(factor))

    def activate(self, kind: Activation, x: Node) -> Node:
        """See `Ops.activate`."""
        op = self.op
        match kind:
            case "silu":
                return op.swish(x)
            case "gelu_tanh":
                return op.gelu(x, "TANH")
            case "gelu":
                return op.gelu(x, "ERF")
            case "relu2":
                positive = op.relu(x)
                return op.multiply(positive, positive)
            case "sigmoid":
                return op.sigmoid(x)
            case "softplus":
                return op.softplus(x)
            case "tanh":
                return op.tanh(x)

    def gated(self, kind: Gate, gate: Node, up: Node) -> Node:
        """See `Ops.gated`."""
        if kind != "clipped":
            return self.op.multiply(self.activate(kind, gate), up)
        low = self.op.minimum(gate, self._float(7.0))
        between = self.op.clamp(up, -7.0, 7.0)
        active = self.op.multiply(low, self.op.sigmoid(self.scale(low, 1.702)))
        return self.op.multiply(self.op.add(between, self._float(1.0)), active)

    def softcap(self, x: Node, cap: float) -> Node:
        """See `Ops.softcap`."""
        return self.scale(self.op.tanh(self.op.divide(x, self._float(cap))), cap)

    # Shapes.

    def split(self, x: Node, sizes: Sequence[int]) -> list[Node]:
        """See `Ops.split`."""
        return list(self.op.variadic_split(x, self._int(-1), self._int(list(sizes))).outputs())

    def heads(self, x: Node, count: int) -> Node:
        """See `Ops.heads`."""
        apart = self.op.reshape(x, self._int([0, 0, count, self._last(x) // count]), True)
        return self.op.transpose(apart, self._int([0, 2, 1, 3]))

    def joined(self, x: Node) -> Node:
        """See `Ops.joined`."""
        width = self._size(x, 1) * self._last(x)
        return self.op.reshape(self.op.transpose(x, self._int([0, 2, 1, 3])), self._int([0, 0, width]), True)

    # Attention.

    def rotate(self, x: Node, rope: Rope) -> Node:
        """See `Ops.rotate`."""
        if id(rope) not in self._turns:
            self._turns[id(rope)] = self._turn(rope)
        cos, sin = self._turns[id(rope)]
        size, half, whole = rope.dim, rope.dim // 2, self._last(x)
        rest = None
        if size < whole:
            x, rest = self._part(x, 0, size), self._part(x, size, whole)
        if rope.neighbours:  # move the pairs' first elements before their second ones, and back afterwards
            x = self._dealt(x, (half, 2), size)
        swapped = self.op.concat([self.scale(self._part(x, half, size), -1.0), self._part(x, 0, half)], -1)
        turned = self.op.add(self.op.multiply(x, cos), self.op.multiply(swapped, sin))
        if rope.neighbours:
            turned = self._dealt(turned, (2, half), size)
        return turned if rest is None else self.op.concat([turned, rest], -1)

    def _dealt(self, x: Node, shape: tuple[int, int], size: int) -> Node:
        """Return heads with the elements of each transposed as a matrix of that shape."""
        op, count = self.op, self._size(x, 1)
        apart = op.reshape(x, self._int([0, count, -1, *shape]), True)
        return op.reshape(op.transpose(apart, self._int([0, 1, 2, 4, 3])), self._int([0, count, -1, size]), True)

    def _turn(self, rope: Rope) -> tuple[Node, Node]:
        """Return cosines and sines [batch, 1, n, dim] of the new tokens' positions."""
        op, scaling = self.op, rope.scaling
        divisors = self._divisors(rope)
        if divisors is None:
            frequency = self._float(rope.frequencies(0))
        else:
            frequency = op.divide(self._float(attrs.evolve(rope, scaling=None).frequencies(0)), divisors)
        column = op.unsqueeze(op.convert(self.inputs.positions, np.float32), self._int([-1]))
        angle = op.multiply(column, frequency)
        both = op.unsqueeze(op.concat([angle, angle], -1), self._int([1]))
        factor = 1.0 if scaling is None else scaling.attention_factor
        cos, sin = op.cos(both), op.sin(both)
        return (cos, sin) if factor == 1 else (self.scale(cos, factor), self.scale(sin, factor))

    def _divisors(self, rope: Rope) -> Node:
        """Return the divisors [dim / 2] of the plain frequencies for the present sequence length."""
        op, scaling, size = self.op, rope.scaling, rope.dim
        if scaling is None or scaling.kind not in ("longrope", "dynamic"):
            return None
        total = self._dimension(self.inputs.mask, 1)
        if scaling.kind == "longrope":
            long = op.greater(total, self._int([scaling.original_context]))
            return op.select(long, self._float(scaling.long_factors), self._float(scaling.short_factors))
        length = op.divide(op.convert(total, np.float32), self._float(scaling.original_context))
        beyond = op.subtract(op.maximum(length, self._float(1.0)), self._float(1.0))
        growth = op.add(self.scale(beyond, scaling.factor), self._float(1.0))
        return op.power(growth, self._float(np.arange(0, size, 2) / max(size - 2, 1)))

    def temper(self, x: Node, scale: float, every: int, ahead: int) -> Node:
        """See `Ops.temper`."""
        op = self.op
        positions = op.convert(self.inputs.positions, np.float32)
        steps = op.floor(op.divide(op.add(positions, self._float(ahead)), self._float(every)))
        growth = op.add(self.scale(op.log(op.add(steps, self._float(1.0))), scale), self._float(1.0))
        return op.multiply(x, op.unsqueeze(growth, self._int([1, 3])))

    def remember(self, layer: int, keys: Node, values: Node) -> tuple[Node, Node]:
        """See `Ops.remember`."""
        if not self._predicts:
            return keys, values
        both = self._appended(f"{layer}.key", keys), self._appended(f"{layer}.value", values)
        self._states[layer] = both
        return both

    def remembered(self, layer: int) -> tuple[Node, Node]:
        """See `Ops.remembered`."""
        return self._states[layer]

    def _appended(self, name: str, new: Node) -> Node:
        """Append to a state, and return all of it, [batch, kv_heads, m, head_dim]."""
        op, (count, size) = self.op, (self._size(new, 1), self._last(new))
        shape = op.concat([self.inputs.batch, self._int([count]), self._int([0]), self._int([size])], 0)
        empty = op.broadcast(self._float(0.0), shape)
        dynamic = openvino().PartialShape([-1, count, -1, size])
        past = op.read_value(empty, f"past_key_values.{name}", openvino().Type.f32, dynamic)
        joined = op.concat([op.gather(past, self.inputs.beam, self._int(0)), new], 2)
        self.sinks.append(op.assign(joined, f"past_key_values.{name}"))
        return joined

    def attend(self, queries: Node, keys: Node, values: Node, how: Attend, sinks: str | None = None) -> Node:
        """See `Ops.attend`."""
        op, heads = self.op, self._size(queries, 1)
        keys, values = self._shared(keys, heads), self._shared(values, heads)
        mask = self._mask(how)
        if not self._written_out:
            mixed = op.scaled_dot_product_attention(queries, keys, values, mask, self._float(how.scale))
            return self.joined(mixed)
        scores = op.matmul(self.scale(queries, how.scale), keys, False, True)
        if how.softcap is not None:
            scores = self.softcap(scores, how.softcap)
        scores = op.add(scores, mask)
        shares = op.softmax(scores, -1) if sinks is None else self._with_sinks(scores, sinks)
        return self.joined(op.matmul(shares, values, False, False))

    def _with_sinks(self, scores: Node, sinks: str) -> Node:
        """Return the softmax over the scores and each head's sink, without the sink's column."""
        op = self.op
        sink = op.reshape(self._weight(sinks), self._int([1, -1, 1, 1]), False)
        most = op.maximum(op.reduce_max(scores, self._int([-1]), True), sink)
        shares = op.exp(op.subtract(scores, most))
        total = op.add(op.reduce_sum(shares, self._int([-1]), True), op.exp(op.subtract(sink, most)))
        return op.divide(shares, total)

    def _shared(self, states: Node, heads: int) -> Node:
        """Return keys or values with each head repeated for the query heads that share it."""
        op, count, size = self.op, self._size(states, 1), self._last(states)
        group = heads // count
        if group == 1:
            return states
        # As OpenVINO's fusions expect it: a bidirectional broadcast to a constant shape.
        wide = op.broadcast(op.unsqueeze(states, self._int([2])), self._int([1, 1, group, 1, 1]), None, "bidirectional")
        return op.reshape(wide, self._int([0, heads, -1, size]), True)

    def _mask(self, how: Attend) -> Node:
        """Return the mask that is added to the scores, float32 [batch, 1, n, m]."""
        place = how.window, how.chunk, how.causal
        if place not in self._masks:
            step, back = self.inputs, self.inputs.back
            seen = step.causal
            if not how.causal:
                seen, back = (
                    self.op.unsqueeze(self.op.greater(step.mask, self._int(0)), self._int([1, 2])),
                    self.op.abs(back),
                )
            if how.window is not None:
                seen = self.op.logical_and(seen, self.op.less(back, self._int(how.window)))
            if how.chunk is not None:
                seen = self.op.logical_and(seen, self._same_chunk(how.chunk))
            self._masks[place] = self.op.select(seen, self._float(0.0), self._float(HIDDEN))
        return self._masks[place]

    def _same_chunk(self, chunk: int) -> Node:
        """Return whether query and key are in the same chunk, [n, m]; positions include padding."""
        op = self.op
        keys = op.range(self._int(0), op.squeeze(self.inputs.total, self._int([0])), self._int(1), "i64")
        queries = op.add(self.inputs.back, op.unsqueeze(keys, self._int([0])))
        return op.equal(op.divide(queries, self._int(chunk)), op.divide(keys, self._int(chunk)))

    # Other operations with a state.

    def convolve(self, layer: int, name: str, x: Node) -> Node:
        """See `Ops.convolve`; padding counts as zeros."""
        op, kernel = self.op, self._weight(f"{name}.weight")
        channels, taps = self.tensors[f"{name}.weight"]
        mask = self._new_mask()
        shape = op.concat([self.inputs.batch, self._int([taps - 1, channels])], 0)
        past = self._state(f"past_convolutions.{layer}", shape, [-1, taps - 1, channels])
        whole = op.concat([past, op.multiply(x, mask)], 1)
        self.sinks.append(op.assign(self._rows(whole, 1 - taps, None), f"past_convolutions.{layer}"))
        columns = self.split(kernel, [1] * taps)
        out = None
        for tap, column in enumerate(columns):
            weighed = op.multiply(self._rows(whole, tap, tap - taps + 1 or None), op.squeeze(column, self._int([1])))
            out = weighed if out is None else op.add(out, weighed)
        if f"{name}.bias" not in self.tensors:
            return out
        return op.multiply(op.add(out, self._weight(f"{name}.bias")), mask)

    def delta_rule(
        self, layer: int, queries: Node, keys: Node, values: Node, decay: Node, beta: Node, tiled: bool
    ) -> Node:
        """See `Ops.delta_rule`; padding, whose keys and values are zeros, leaves the state at zeros."""
        heads = self._size(values, 1)
        q, k = (self._tiled(x, heads) if tiled else self._shared(x, heads) for x in (queries, keys))
        fading, rates = self._for_heads(self.op.exp(decay)), self._for_heads(beta)

        def step(op: Node, state: Node, tokens: Sequence[Node]) -> tuple[Node, Node]:
            query, key, value, fade, rate = tokens
            faded = op.multiply(state, fade)
            error = op.subtract(value, op.matmul(key, faded, False, False))
            state = op.add(faded, op.matmul(key, op.multiply(rate, error), True, False))
            return state, op.matmul(query, state, False, False)

        sizes = heads, self._last(keys), self._last(values)
        return self._token_by_token(layer, sizes, [q, k, values, fading, rates], step)

    def scan(self, layer: int, x: Node, step: Node, decay: str, skip: str, inputs: Node, outputs: Node) -> Node:
        """See `Ops.scan`; padding, whose x is zeros, leaves the state at zeros."""
        op, heads = self.op, self._size(x, 1)
        times = self._for_heads(step)
        fading = op.exp(op.multiply(times, op.unsqueeze(self._weight(decay), self._int([1]))))

        def next_token(op: Node, state: Node, tokens: Sequence[Node]) -> tuple[Node, Node]:
            fed, into, out_of, fade = tokens
            state = op.add(op.multiply(state, fade), op.matmul(into, fed, True, False))
            return state, op.matmul(out_of, state, False, False)

        shared = self._shared(inputs, heads), self._shared(outputs, heads)
        sizes = heads, self._last(inputs), self._last(x)
        out = self._token_by_token(layer, sizes, [op.multiply(x, times), *shared, fading], next_token)
        return op.add(out, op.multiply(x, op.unsqueeze(self._weight(skip), self._int([1]))))

    def _token_by_token(
        self,
        layer: int,
        sizes: tuple[int, int, int],
        tokens: Sequence[Node],
        step: Callable[[Node, Node, Sequence[Node]], tuple[Node, Node]],
    ) -> Node:
        """A loop over the tokens with a state [batch, *sizes], which the graph keeps.

        Args:
            layer: whose state.
            sizes: heads, and the rows and columns of the state of one.
            tokens: heads [batch, heads, n, size], of which the loop takes one token after the other.
            step: gives the next state, and what the token gives [batch, heads, 1, columns].

        Returns:
            Heads [batch, heads, n, columns].
        """
        op, name = self.op, f"past_recurrences.{layer}"
        past = self._state(name, op.concat([self.inputs.batch, self._int(list(sizes))], 0), [-1, *sizes])
        state = self._input(f"{name}.state", [-1, *sizes], np.float32)
        given = [
            self._input(f"{name}.{number}", [-1, sizes[0], 1, self._last(x)], np.float32)
            for number, x in enumerate(tokens)
        ]
        following, out = step(op, state, given)
        going_on = op.constant(np.array(True), np.bool_)
        results = [op.result(going_on), op.result(following), op.result(out)]
        for what, result in zip(("going_on", "following", "out"), results, strict=True):
            result.get_output_tensor(0).set_names({f"{name}.{what}"})  # else OpenVINO counts them over the process
        count = op.squeeze(self._dimension(self.inputs.ids, 1), self._int([0]))
        loop = op.loop(count, op.constant(np.array(True), np.bool_))
        loop.set_function(openvino().Model(results, [state, *given], "token"))
        loop.set_special_body_ports([-1, 0])
        loop.set_merged_input(state, past.output(0), following.output(0))
        for parameter, x in zip(given, tokens, strict=True):
            loop.set_sliced_input(parameter, _output(x), 0, 1, 1, -1, 2)
        last = loop.get_iter_value(following.output(0), -1)
        every = loop.get_concatenated_slices(out.output(0), 0, 1, 1, -1, 2)
        self.sinks.append(op.assign(op.convert(last, np.float32), name))  # it takes nodes alone, no outputs
        return every

    def _for_heads(self, x: Node) -> Node:
        """What each token has for each head, [batch, n, heads], as [batch, heads, n, 1]."""
        return self.op.unsqueeze(self.op.transpose(x, self._int([0, 2, 1])), self._int([3]))

    def _tiled(self, states: Node, heads: int) -> Node:
        """All heads, over and over, so that there are `heads`."""
        return self.op.concat([states] * (heads // self._size(states, 1)), 1)

    def _state(self, name: str, shape: Node, sizes: list[int]) -> Node:
        """Return a state of that shape, initially zero, reordered by the continued sequences."""
        op = self.op
        empty = op.broadcast(self._float(0.0), shape)
        past = op.read_value(empty, name, openvino().Type.f32, openvino().PartialShape(sizes))
        return op.gather(past, self.inputs.beam, self._int(0))

    def _new_mask(self) -> Node:
        """Return 1 for each new token and 0 for padding, float32 [batch, n, 1]."""
        op = self.op
        new = op.multiply(self._dimension(self.inputs.ids, 1), self._int([-1]))
        part = op.slice(self.inputs.mask, new, self._int([np.iinfo(np.int64).max]), self._int([1]), self._int([1]))
        return op.unsqueeze(op.convert(part, np.float32), self._int([2]))

    def _rows(self, x: Node, start: int, stop: int | None) -> Node:
        """Return elements start:stop of the second dimension."""
        end = np.iinfo(np.int64).max if stop is None else stop
        return self.op.slice(x, self._int([start]), self._int([end]), self._int([1]), self._int([1]))

    # Experts.

    def route(self, scores: Node, how: Routing, bias: str | None = None) -> Node:
        """See `Ops.route`."""
        op = self.op
        every = scores
        if how.score != "chosen":
            every = op.sigmoid(scores) if how.score == "sigmoid" else op.softmax(scores, -1)
        ranked = every if bias is None else op.add(every, self._weight(bias))
        if how.groups > 1:
            ranked = self._best_groups(ranked, how)
        chosen = op.topk(ranked, self._int(how.used), -1, "max", "value").output(1)
        picked = op.gather_elements(every, chosen, -1)
        if how.score == "chosen":
            picked = op.softmax(picked, -1)
        elif how.normalized:
            total = op.reduce_sum(picked, self._int([-1]), True)
            picked = op.divide(picked, op.maximum(total, self._float(how.floor)))
        picked = picked if how.scale == 1 else self.scale(picked, how.scale)
        none = op.multiply(scores, self._float(0.0))
        return op.scatter_elements_update(none, chosen, picked, self._int(-1))

    def route_sparsely(self, scores: Node, jitter: float) -> Node:
        """See `Ops.route_sparsely`."""
        op, last = self.op, self._int(-1)
        total, left = op.multiply(scores, self._float(0.0)), scores
        for _ in range(2):
            best = op.topk(left, self._int(1), -1, "max", "value")
            top, chosen = best.output(0), best.output(1)
            larger = op.maximum(op.abs(scores), top)
            far = op.greater(op.divide(op.subtract(top, scores), larger), self._float(2 * jitter))
            shares = op.softmax(op.select(far, self._float(HIDDEN), left), -1)
            total = op.scatter_elements_update(total, chosen, op.gather_elements(shares, chosen, -1), last)
            none = op.add(op.multiply(top, self._float(0.0)), self._float(HIDDEN))
            left = op.scatter_elements_update(left, chosen, none, last)
        return total

    def _best_groups(self, ranked: Node, how: Routing) -> Node:
        """Return the ranks, with those of experts outside the best groups lowered below all others."""
        op, count = self.op, self._last(ranked)
        apart = op.reshape(ranked, self._int([0, 0, how.groups, count // how.groups]), True)
        best = op.reduce_sum(op.topk(apart, self._int(2), -1, "max", "value").output(0), self._int([-1]), False)
        top = op.topk(best, self._int(how.groups_used), -1, "max", "value").output(0)
        least = op.reduce_min(top, self._int([-1]), True)
        kept = op.unsqueeze(op.greater_equal(best, least), self._int([3]))
        return op.reshape(op.select(kept, apart, self._float(HIDDEN)), self._int([0, 0, count]), True)

    def experts(self, prefix: str, x: Node, weights: Node, ffn: Ffn) -> Node:
        """See `Ops.experts`; every expert computes every token, in products that the plugin can run as one."""
        op = self.op
        each = op.unsqueeze(x, self._int([1]))  # [batch, 1, n, width]
        shares = op.unsqueeze(op.transpose(weights, self._int([0, 2, 1])), self._int([3]))
        if ffn.weighted_input:
            each = op.multiply(each, shares)

        def product(name: str, values: Node) -> Node:
            full = f"{prefix}ffn_{name}_exps"
            out = op.matmul(values, self._weight(f"{full}.weight"), False, True)
            if f"{full}.bias" not in self.tensors:
                return out
            return op.add(out, op.unsqueeze(self._weight(f"{full}.bias"), self._int([1])))

        out = product("down", self._inner(product, each, ffn))
        return op.reduce_sum(out if ffn.weighted_input else op.multiply(out, shares), self._int([1]), False)

    def _inner(self, product: Callable[[str, Node], Node], x: Node, ffn: Ffn) -> Node:
        if ffn.gate is None:
            return self.activate(ffn.activation, product("up", x))
        if ffn.fused:
            both = product("gate_up", x)
            gate, up = self.split(both, [self._last(both) // 2] * 2)
            return self.gated(ffn.gate, gate, up)
        return self.gated(ffn.gate, product("gate", x), product("up", x))

    # Small parts.

    def _part(self, x: Node, start: int, stop: int) -> Node:
        """Return elements start:stop of the last dimension."""
        return self.op.slice(x, self._int([start]), self._int([stop]), self._int([1]), self._int([-1]))

    def _dimension(self, x: Node, axis: int) -> Node:
        return self.op.gather(self.op.shape_of(x), self._int([axis]), self._int(0))

    def _size(self, x: Node, axis: int) -> int:
        """Return the size of a static dimension."""
        return int(_shape(x)[axis].get_length())

    def _last(self, x: Node) -> int:
        shape = _shape(x)
        return int(shape[len(shape) - 1].get_length())

    def _int(self, value: Node) -> Node:
        return self.op.constant(np.array(value, np.int64))

    def _float(self, value: Node) -> Node:
        return self.op.constant(np.asarray(value, np.float32))


def _beyond_fused(arguments: tuple[object, ...]) -> bool:
    """Return whether attention needs features that ScaledDotProductAttention lacks or GenAI would ignore."""
    how = next(each for each in arguments if isinstance(each, Attend))
    sinks = any(isinstance(each, str) for each in arguments)
    return sinks or how.window is not None or how.chunk is not None or how.softcap is not None


def _output(x: Node) -> Node:
    """An output of a node: its first, or the one that is given."""
    return x.output(0) if hasattr(x, "output") else x


def _shape(x: Node) -> Node:
    """Return the partial shape of a node's first output, or of an output."""
    return x.get_output_partial_shape(0) if hasattr(x, "get_output_partial_shape") else x.partial_shape


__all__ = ["HIDDEN", "GraphOps", "Weights"]
