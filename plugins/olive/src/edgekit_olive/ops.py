"""The operations of a forward pass as nodes of an ONNX graph; see `edgekit.architectures.ops.Ops`.

Two dialects. The *fused* one uses ONNX Runtime's own operators where they exist: GroupQueryAttention, MatMulNBits,
GatherBlockQuantized, SimplifiedLayerNormalization, SkipSimplifiedLayerNormalization, FusedMatMul, RotaryEmbedding,
QMoE. Where nothing comes between them, one MatMulNBits computes queries, keys and values, and GroupQueryAttention
rotates them, as in the graphs of GenAI's model builder.
The *portable* one uses standard operators only (opset 21).

Heads are [batch, n, heads, head_dim] inside the graph: fused attention takes them side by side, so nothing is
transposed for it. Keys and values of earlier tokens are inputs, ``past_key_values.N.key``, and all of them outputs,
``present.N.key``, [batch, kv_heads, m, head_dim]: what ONNX Runtime GenAI and Optimum call them. On the CPU,
GroupQueryAttention takes several new tokens of several sequences only where there are no earlier ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np

from edgekit.architectures.ops import Activation, Attend, Call, Ffn, Gate, Routing
from edgekit.architectures.rope import Rope
from edgekit_olive.builder import Builder
from edgekit_olive.weights import GraphWeights

#: Added to masked scores; finite, so that rows that consist of padding stay finite.
HIDDEN = -3.0e38
#: Adds the nodes of one step of a recurrence; see `Builder.scan`.
Step = Callable[[Builder, str, Sequence[str]], tuple[str, str]]
_MOST = int(np.iinfo(np.int64).max)
#: Largest size in bytes of the cosines and sines of a whole context, with which GroupQueryAttention rotates.
_TABLES = 64 << 20
#: Ends of the names of the products that may be joined.
_JOINED = (".attn_q", ".attn_k", ".attn_v")


@attrs.frozen
class Value:
    """A value of the graph.

    Attributes:
        name: its name in the graph.
        width: size of its last dimension.
        heads: 0 for states [batch, n, width]; else the number of heads of [batch, n, heads, width].
    """

    name: str
    width: int
    heads: int = 0


@attrs.frozen
class Turned:
    """Heads side by side that are to be rotated.

    Attributes:
        flat: name of the heads before, [batch, n, heads * width].
        rope: how they rotate.
        heads, width: of `flat`.
    """

    flat: str
    rope: Rope
    heads: int
    width: int


@attrs.frozen
class Remembered:
    """The keys or the values of a layer: those of the new tokens, and the names of the graph's input and output.

    Attributes:
        layer: index of the layer.
        new: the heads of the new tokens.
        past, present: names of the graph's input and output.
    """

    layer: int
    new: Value
    past: str
    present: str


class GraphOps:
    """The operations as nodes; one instance builds one graph.

    Args:
        builder: collects the nodes.
        weights: emits nodes for the model's tensors.
        fused: whether ONNX Runtime's own operators may be used.
        grouped: whether GroupQueryAttention computes attention.
        remembers: whether keys and values of earlier tokens are inputs; False for an encoder.
        context: number of tokens for which GroupQueryAttention may rotate; 0 for none.
    """

    def __init__(
        self,
        builder: Builder,
        weights: GraphWeights,
        *,
        fused: bool,
        grouped: bool,
        remembers: bool = True,
        context: int = 0,
    ) -> None:
        self.builder, self.weights, self.fused, self.grouped = builder, weights, fused, grouped
        self._remembers, self._context = remembers, context
        self.tensors: Mapping[str, tuple[int, ...]] = weights.shapes
        self._sums: dict[str, tuple[str, str]] = {}
        self._flat: dict[str, str] = {}
        self._products: dict[str, tuple[str, str]] = {}
        self._turned: dict[str, Turned] = {}
        self._tables: dict[int, tuple[str, str]] = {}
        self._used: dict[str, int] = {}
        self._apart: set[str] = set()
        self._turns: dict[int, tuple[str, str]] = {}
        self._masks: dict[Attend, str] = {}
        self._layers: dict[int, tuple[Remembered, Remembered]] = {}
        self._made: dict[str, str] = {}
        self.ids = builder.input("input_ids", "INT64", ["batch", "new"])
        self.mask = builder.input("attention_mask", "INT64", ["batch", "total"])
        self.positions = builder.input("position_ids", "INT64", ["batch", "new"])

    # Names.

    def real(self, value: Value) -> str:
        """Return the name of a value, whose node may be added only now.

        A norm may compute a sum in the same node, heads may be used side by side, as they were before `heads`, and
        attention may compute products and rotations.
        """
        if value.name in self._sums:
            a, b = self._sums.pop(value.name)
            self.builder.op("Add", a, b, output=value.name)
        elif value.name in self._apart:
            self._apart.remove(value.name)
            shape = self.builder.ints([0, 0, value.heads, value.width])
            self.builder.op("Reshape", self._settled(self._flat[value.name]), shape, output=value.name)
        return self._settled(value.name)

    def _settled(self, name: str) -> str:
        """Add the node of a product or of a rotation that attention did not take over; return its name."""
        if name in self._products:
            role, x = self._products.pop(name)
            self._multiply(role, x, name)
        elif name in self._turned:
            turned = self._turned.pop(name)
            self._rotate(turned, name)
        return name

    def _once(self, key: str, make: Callable[[], str]) -> str:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    # Weights.

    def embed(self, name: str) -> Value:
        """See `Ops.embed`."""
        return Value(self.weights.rows(f"{name}.weight", self.ids), self.tensors[f"{name}.weight"][-1])

    def embed_positions(self, name: str) -> Value:
        """See `Ops.embed_positions`."""
        return Value(self.weights.rows(f"{name}.weight", self.positions), self.tensors[f"{name}.weight"][-1])

    def product(self, name: str, x: Value) -> Value:
        """See `Ops.product`."""
        shape = self.tensors[f"{name}.weight"]
        width, states = shape[0] if len(shape) > 1 else 1, self.real(x)
        if self.grouped and name.endswith(_JOINED) and self.weights.joinable([f"{name}.weight"]):
            later = self.builder.fresh("Product")
            self._products[later] = name, states
            return Value(later, width)
        return Value(self._multiply(name, states), width)

    def _multiply(self, name: str, x: str, output: str | None = None) -> str:
        bias = f"{name}.bias"
        if bias not in self.tensors:
            return self.weights.product(f"{name}.weight", x, output=output)
        return self.builder.op(
            "Add", self.weights.product(f"{name}.weight", x), self.weights.values(bias), output=output
        )

    def row(self, name: str, number: int) -> Value:
        """See `Ops.row`."""
        weight = f"{name}.weight"
        return Value(self.weights.rows(weight, self.builder.ints(number)), self.tensors[weight][-1])

    def vector(self, name: str) -> Value:
        """See `Ops.vector`."""
        return Value(self.weights.values(name), self.tensors[name][-1])

    # Normalization.

    def rms_norm(self, x: Value, eps: float, name: str | None = None) -> Value:
        """See `Ops.rms_norm`."""
        weight = self._ones(x.width) if name is None else self.weights.values(name)
        return attrs.evolve(x, name=self._rms(x, eps, weight))

    def _rms(self, x: Value, eps: float, weight: str) -> str:
        builder = self.builder
        if not self.fused:
            normalized = self._normalized(self.real(x), eps)
            return builder.op("Mul", normalized, weight)
        if x.name in self._sums:
            a, b = self._sums.pop(x.name)
            outputs = [builder.fresh("SkipSimplifiedLayerNormalization"), "", "", x.name]
            kind = "SkipSimplifiedLayerNormalization"
            return builder.several(kind, (a, b, weight), outputs, "com.microsoft", epsilon=eps)[0]
        return builder.op("SimplifiedLayerNormalization", self.real(x), weight, axis=-1, epsilon=eps, stash_type=1)

    def _normalized(self, x: str, eps: float) -> str:
        builder = self.builder
        mean = builder.op("ReduceMean", builder.op("Mul", x, x), builder.ints([-1]), keepdims=1)
        root = builder.op("Sqrt", builder.op("Add", mean, builder.floats(eps)))
        return builder.op("Div", x, root)

    def _ones(self, width: int) -> str:
        return self.builder.floats(np.ones(width, np.float32))

    def group_norm(self, x: Value, eps: float, name: str) -> Value:
        """See `Ops.group_norm`."""
        normalized = self._normalized(self.real(x), eps)
        return attrs.evolve(x, name=self.builder.op("Mul", normalized, self.weights.values(name)))

    def layer_norm(self, x: Value, eps: float, name: str) -> Value:
        """See `Ops.layer_norm`."""
        scale, bias = self.weights.values(f"{name}.weight"), self.weights.values(f"{name}.bias")
        out = self.builder.op("LayerNormalization", self.real(x), scale, bias, axis=-1, epsilon=eps)
        return attrs.evolve(x, name=out)

    def unit(self, x: Value, eps: float) -> Value:
        """See `Ops.unit`."""
        builder, name = self.builder, self.real(x)
        total = builder.op("ReduceSum", builder.op("Mul", name, name), builder.ints([-1]), keepdims=1)
        return attrs.evolve(
            x, name=builder.op("Div", name, builder.op("Sqrt", builder.op("Add", total, builder.floats(eps))))
        )

    # Elementwise.

    def add(self, a: Value, b: Value) -> Value:
        """See `Ops.add`."""
        wide = a if (a.heads, a.width) >= (b.heads, b.width) else b
        name = self.builder.fresh("Sum")
        self._sums[name] = self.real(a), self.real(b)
        return attrs.evolve(wide, name=name)

    def multiply(self, a: Value, b: Value) -> Value:
        """See `Ops.multiply`."""
        wide = a if (a.heads, a.width) >= (b.heads, b.width) else b
        return attrs.evolve(wide, name=self.builder.op("Mul", self.real(a), self.real(b)))

    def scale(self, x: Value, factor: float) -> Value:
        """See `Ops.scale`."""
        return attrs.evolve(x, name=self.builder.op("Mul", self.real(x), self.builder.floats(factor)))

    def activate(self, kind: Activation, x: Value) -> Value:
        """See `Ops.activate`."""
        builder, name = self.builder, self.real(x)
        match kind:
            case "silu":
                out = builder.op("Mul", name, builder.op("Sigmoid", name))
            case "gelu_tanh":
                out = builder.op("Gelu", name, approximate="tanh")
            case "gelu":
                out = builder.op("Gelu", name)
            case "relu2":
                positive = builder.op("Relu", name)
                out = builder.op("Mul", positive, positive)
            case "sigmoid":
                out = builder.op("Sigmoid", name)
            case "softplus":
                out = builder.op("Softplus", name)
            case "tanh":
                out = builder.op("Tanh", name)
        return attrs.evolve(x, name=out)

    def gated(self, kind: Gate, gate: Value, up: Value) -> Value:
        """See `Ops.gated`."""
        if kind != "clipped":
            return self.multiply(self.activate(kind, gate), up)
        builder = self.builder
        low = attrs.evolve(gate, name=builder.op("Min", self.real(gate), builder.floats(7.0)))
        between = builder.op("Clip", self.real(up), builder.floats(-7.0), builder.floats(7.0))
        active = self.multiply(low, self.activate("sigmoid", self.scale(low, 1.702)))
        return attrs.evolve(up, name=builder.op("Mul", builder.op("Add", between, builder.floats(1.0)), active.name))

    def softcap(self, x: Value, cap: float) -> Value:
        """See `Ops.softcap`."""
        builder = self.builder
        inner = builder.op("Tanh", builder.op("Div", self.real(x), builder.floats(cap)))
        return attrs.evolve(x, name=builder.op("Mul", inner, builder.floats(cap)))

    # Shapes.

    def split(self, x: Value, sizes: Sequence[int]) -> list[Value]:
        """See `Ops.split`."""
        outputs = [self.builder.fresh("Split") for _ in sizes]
        self.builder.several("Split", (self.real(x), self.builder.ints(list(sizes))), outputs, axis=-1)
        return [attrs.evolve(x, name=name, width=size) for name, size in zip(outputs, sizes, strict=True)]

    def heads(self, x: Value, count: int) -> Value:
        """See `Ops.heads`; [batch, n, count, head_dim]."""
        flat = x.name if x.name in self._products else self.real(x)
        return self._heads(flat, count, x.width // count)

    def _heads(self, flat: str, count: int, size: int) -> Value:
        name = self.builder.fresh("Reshape")
        self._flat[name] = flat
        self._apart.add(name)
        return Value(name, size, count)

    def joined(self, x: Value) -> Value:
        """See `Ops.joined`."""
        width = x.heads * x.width
        return Value(self._flat.get(x.name) or self._reshaped(self.real(x), [0, 0, width]), width)

    def _reshaped(self, name: str, shape: list[int]) -> str:
        return self.builder.op("Reshape", name, self.builder.ints(shape))

    def _transposed(self, name: str) -> str:
        """Return [batch, n, heads, size] transposed to [batch, heads, n, size], or the inverse."""
        return self.builder.op("Transpose", name, perm=[0, 2, 1, 3])

    # Attention.

    def rotate(self, x: Value, rope: Rope) -> Value:
        """See `Ops.rotate`."""
        if not self.fused:
            return attrs.evolve(x, name=self._rotated(x, rope, *self._turns_of(rope)))
        flat = self.joined(x).name
        turned, name = Turned(flat, rope, x.heads, x.width), self.builder.fresh("RotaryEmbedding")
        if flat in self._products and self._in_tables(rope, x.width):
            self._turned[name] = turned
        else:
            self._rotate(turned, name)
        return self._heads(name, x.heads, x.width)

    def _rotate(self, turned: Turned, output: str) -> None:
        cos, sin = self._turns_of(turned.rope)
        self.builder.fused(
            *("RotaryEmbedding", self._settled(turned.flat), self._once("places", self._places), cos, sin),
            output=output,
            num_heads=turned.heads,
            rotary_embedding_dim=turned.rope.dim if turned.rope.dim < turned.width else 0,
            interleaved=int(turned.rope.neighbours),
        )

    def _turns_of(self, rope: Rope) -> tuple[str, str]:
        """Return the cosines and sines of the new tokens; see `_turn`."""
        if id(rope) not in self._turns:
            self._turns[id(rope)] = self._turn(rope)
        return self._turns[id(rope)]

    def _in_tables(self, rope: Rope, width: int) -> bool:
        """Return whether GroupQueryAttention can rotate: by tables of the whole context, equal for all lengths.

        It rotates heads of a multiple of 16 elements only.
        """
        changing = rope.scaling is not None and rope.scaling.kind in ("longrope", "dynamic")
        return not changing and width % 16 == 0 and 0 < self._context * rope.dim * 4 <= _TABLES

    def _tables_of(self, rope: Rope) -> tuple[str, str]:
        """Return cosines and sines of every position, [context, dim / 2]; computed when the graph is loaded."""
        if id(rope) not in self._tables:
            builder = self.builder
            every = builder.op("Range", builder.ints(0), builder.ints(self._context), builder.ints(1))
            column = builder.op("Reshape", builder.op("Cast", every, to=1), builder.ints([-1, 1]))
            frequency = builder.floats(rope.frequencies(0).astype(np.float32))
            self._tables[id(rope)] = self._cos_sin(builder.op("Mul", column, frequency), rope)
        return self._tables[id(rope)]

    def _places(self) -> str:
        """Return the row of every new token in the tables of cosines and sines, [batch, n]."""
        builder = self.builder
        shape = builder.op("Shape", self.ids)
        count = builder.op("ReduceProd", shape, keepdims=0)
        return builder.op("Reshape", builder.op("Range", builder.ints(0), count, builder.ints(1)), shape)

    def _rotated(self, x: Value, rope: Rope, cos: str, sin: str) -> str:
        builder, half = self.builder, rope.dim // 2
        name, rest = self.real(x), None
        if rope.dim < x.width:
            turning, still = self.split(x, [rope.dim, x.width - rope.dim])
            name, rest = turning.name, still.name
        if rope.neighbours:  # move the pairs' first elements before their second ones, and back afterwards
            name = self._dealt(name, (half, 2), x.heads, rope.dim)
        a, b = (builder.fresh("Split") for _ in range(2))
        builder.several("Split", (name, builder.ints([half, half])), [a, b], axis=-1)
        swapped = builder.op("Concat", builder.op("Neg", b), a, axis=-1)
        turned = builder.op("Add", builder.op("Mul", name, cos), builder.op("Mul", swapped, sin))
        if rope.neighbours:
            turned = self._dealt(turned, (2, half), x.heads, rope.dim)
        return turned if rest is None else builder.op("Concat", turned, rest, axis=-1)

    def _dealt(self, name: str, shape: tuple[int, int], heads: int, size: int) -> str:
        """Return heads with the elements of each transposed as a matrix of that shape."""
        apart = self._reshaped(name, [0, -1, heads, *shape])
        return self._reshaped(self.builder.op("Transpose", apart, perm=[0, 1, 2, 4, 3]), [0, -1, heads, size])

    def _turn(self, rope: Rope) -> tuple[str, str]:
        """Return cosines and sines of the new tokens: [batch * n, dim / 2], or [batch, n, 1, dim] if portable."""
        builder = self.builder
        divisors = self._divisors(rope)
        if divisors is None:
            frequency = builder.floats(rope.frequencies(0).astype(np.float32))
        else:
            plain = attrs.evolve(rope, scaling=None).frequencies(0).astype(np.float32)
            frequency = builder.op("Div", builder.floats(plain), divisors)
        positions = builder.op("Cast", self.positions, to=1)
        if self.fused:
            column = builder.op("Reshape", positions, builder.ints([-1, 1]))
            angle = builder.op("Mul", column, frequency)
        else:
            column = builder.op("Unsqueeze", positions, builder.ints([2, 3]))
            half = builder.op("Mul", column, frequency)
            angle = builder.op("Concat", half, half, axis=-1)
        return self._cos_sin(angle, rope)

    def _cos_sin(self, angle: str, rope: Rope) -> tuple[str, str]:
        builder = self.builder
        cos, sin = builder.op("Cos", angle), builder.op("Sin", angle)
        factor = 1.0 if rope.scaling is None else rope.scaling.attention_factor
        if factor != 1:
            cos, sin = (builder.op("Mul", name, builder.floats(factor)) for name in (cos, sin))
        return cos, sin

    def _divisors(self, rope: Rope) -> str | None:
        """Return the divisors [dim / 2] of the plain frequencies for the present sequence length; or None."""
        builder, scaling, size = self.builder, rope.scaling, rope.dim
        if scaling is None or scaling.kind not in ("longrope", "dynamic"):
            return None
        total = self._once("total", self._total)
        if scaling.kind == "longrope":
            long = builder.op("Greater", total, builder.ints([scaling.original_context]))
            factors = (builder.floats(np.array(f, np.float32)) for f in (scaling.long_factors, scaling.short_factors))
            return builder.op("Where", long, *factors)
        length = builder.op("Div", builder.op("Cast", total, to=1), builder.floats(scaling.original_context))
        beyond = builder.op("Sub", builder.op("Max", length, builder.floats(1.0)), builder.floats(1.0))
        growth = builder.op("Add", builder.op("Mul", beyond, builder.floats(scaling.factor)), builder.floats(1.0))
        exponent = (np.arange(0, size, 2) / max(size - 2, 1)).astype(np.float32)
        return builder.op("Pow", growth, builder.floats(exponent))

    def temper(self, x: Value, scale: float, every: int, ahead: int) -> Value:
        """See `Ops.temper`."""
        builder = self.builder
        positions = builder.op("Cast", self.positions, to=1)
        shifted = builder.op("Add", positions, builder.floats(ahead))
        steps = builder.op("Floor", builder.op("Div", shifted, builder.floats(every)))
        logarithm = builder.op("Log", builder.op("Add", steps, builder.floats(1.0)))
        growth = builder.op("Add", builder.op("Mul", logarithm, builder.floats(scale)), builder.floats(1.0))
        wide = builder.op("Unsqueeze", growth, builder.ints([2, 3]))
        return attrs.evolve(x, name=builder.op("Mul", self.real(x), wide))

    def remember(self, layer: int, keys: Value, values: Value) -> tuple[Remembered, Remembered]:
        """See `Ops.remember`."""
        both = self._remembered(layer, "key", keys), self._remembered(layer, "value", values)
        self._layers[layer] = both
        return both

    def remembered(self, layer: int) -> tuple[Remembered, Remembered]:
        """See `Ops.remembered`."""
        return self._layers[layer]

    def _remembered(self, layer: int, kind: str, new: Value) -> Remembered:
        builder = self.builder
        if not self._remembers:
            return Remembered(layer, new, "", self._transposed(self.real(new)))
        past = builder.input(f"past_key_values.{layer}.{kind}", "FLOAT", ["batch", new.heads, "past", new.width])
        present = f"present.{layer}.{kind}"
        builder.output(present, "FLOAT", ["batch", new.heads, "total", new.width])
        if not self.grouped:
            builder.op("Concat", past, self._transposed(self.real(new)), axis=2, output=present)
        return Remembered(layer, new, past, present)

    def attend(
        self, queries: Value, keys: Remembered, values: Remembered, how: Attend, sinks: str | None = None
    ) -> Value:
        """See `Ops.attend`."""
        if self.grouped:
            return self._grouped(queries, keys, values, how, sinks)
        builder, (heads, size) = self.builder, (queries.heads, values.new.width)
        q = builder.op("Mul", self._transposed(self.real(queries)), builder.floats(how.scale))
        k, v = (self._shared(part, heads) for part in (keys, values))
        scores = builder.op("MatMul", q, builder.op("Transpose", k, perm=[0, 1, 3, 2]))
        if how.softcap is not None:
            scores = self.softcap(Value(scores, 0), how.softcap).name
        place = attrs.evolve(how, scale=1.0, softcap=None)
        if place not in self._masks:
            self._masks[place] = self._additive(how)
        scores = builder.op("Add", scores, self._masks[place])
        shares = builder.op("Softmax", scores, axis=-1) if sinks is None else self._with_sinks(scores, sinks)
        mixed = self._transposed(builder.op("MatMul", shares, v))
        return Value(self._reshaped(mixed, [0, 0, heads * size]), heads * size)

    def _grouped(self, queries: Value, keys: Remembered, values: Remembered, how: Attend, sinks: str | None) -> Value:
        builder = self.builder
        before, total = self._once("before", self._before), self._once("total32", self._total32)
        flat = [self.joined(each).name for each in (queries, keys.new, values.new)]
        packed = self._packed(*flat)
        turns = ["", "", ""]
        if packed is None:
            inputs = [*map(self._settled, flat), keys.past, values.past, before, total]
        else:
            states, rope = packed
            inputs = [states, "", "", keys.past, values.past, before, total]
            turns = turns if rope is None else [*self._tables_of(rope), self.positions]
        if sinks is not None:
            inputs += [*turns, "", self.weights.values(sinks)]
        elif turns[0]:
            inputs += turns
        out = builder.fresh("GroupQueryAttention")
        builder.several(
            "GroupQueryAttention",
            inputs,
            [out, keys.present, values.present],
            "com.microsoft",
            num_heads=queries.heads,
            kv_num_heads=keys.new.heads,
            scale=how.scale,
            local_window_size=-1 if how.window is None else how.window,
            softcap=how.softcap or 0.0,
            **({"do_rotary": 1, "rotary_interleaved": int(rope.neighbours)} if turns[0] and rope else {}),
        )
        return Value(out, queries.heads * values.new.width)

    def _packed(self, queries: str, keys: str, values: str) -> tuple[str, Rope | None] | None:
        """Return queries, keys and values side by side as one product, and how attention rotates them.

        None if something comes between the products and attention, or MatMulNBits cannot compute them together.
        """
        turns = [self._turned.get(name) for name in (queries, keys)]
        ropes = {id(each.rope) if each else None for each in turns}
        names = [each.flat if each else name for each, name in zip(turns, (queries, keys), strict=True)]
        products = [self._products.get(name) for name in (*names, values)]
        roles = [f"{each[0]}.weight" for each in products if each]
        if len(ropes) > 1 or len(roles) < 3 or len(set(roles)) < 3 or not self.weights.joinable(roles):
            return None
        assert products[0] is not None
        states = products[0][1]
        if any(each is None or each[1] != states for each in products):
            return None
        for name in (*names, values):
            del self._products[name]
        for name in (queries, keys):
            self._turned.pop(name, None)
        return self.weights.joined(roles, states), turns[0].rope if turns[0] else None

    def _total(self) -> str:
        """Return the number of tokens so far, including the new ones, [1]."""
        return self._dimension(self.mask, 1)

    def _total32(self) -> str:
        builder = self.builder
        return builder.op("Cast", builder.op("Squeeze", self._once("total", self._total)), to=6)

    def _before(self) -> str:
        """Return the number of tokens in each sequence minus one, int32 [batch]."""
        builder = self.builder
        count = builder.op("ReduceSum", self.mask, builder.ints([1]), keepdims=0)
        return builder.op("Cast", builder.op("Sub", count, builder.ints([1])), to=6)

    def _with_sinks(self, scores: str, sinks: str) -> str:
        """Return the softmax over the scores and each head's sink, without the sink's column."""
        builder = self.builder
        sink = builder.op("Reshape", self.weights.values(sinks), builder.ints([1, -1, 1, 1]))
        most = builder.op("Max", builder.op("ReduceMax", scores, builder.ints([-1]), keepdims=1), sink)
        shares = builder.op("Exp", builder.op("Sub", scores, most))
        total = builder.op("ReduceSum", shares, builder.ints([-1]), keepdims=1)
        return builder.op("Div", shares, builder.op("Add", total, builder.op("Exp", builder.op("Sub", sink, most))))

    def _shared(self, part: Remembered, heads: int) -> str:
        """Return keys or values with each head repeated for the query heads that share it, [batch, heads, m, size]."""
        builder, count, size = self.builder, part.new.heads, part.new.width
        group = heads // count
        if group == 1:
            return part.present
        wide = builder.op("Unsqueeze", part.present, builder.ints([2]))
        wide = builder.op("Expand", wide, builder.ints([1, 1, group, 1, 1]))
        return self._reshaped(wide, [0, heads, -1, size])

    def _additive(self, how: Attend) -> str:
        """Return the mask that is added to the scores, float32 [batch, 1, n, m]."""
        builder = self.builder
        seen = self._once("there", self._there)
        back = self._once("back", self._back)
        conditions = []
        if how.causal:
            conditions.append(builder.op("GreaterOrEqual", back, builder.ints(0)))
        if how.window is not None:
            near = back if how.causal else builder.op("Abs", back)
            conditions.append(builder.op("Less", near, builder.ints(how.window)))
        if how.chunk is not None:
            conditions.append(self._same_chunk(how.chunk))
        for condition in conditions:
            seen = builder.op("And", seen, condition)
        return builder.op("Where", seen, builder.floats(0.0), builder.floats(HIDDEN))

    def _there(self) -> str:
        """Return whether each key is not padding, [batch, 1, 1, m]."""
        builder = self.builder
        return builder.op("Unsqueeze", builder.op("Greater", self.mask, builder.ints(0)), builder.ints([1, 2]))

    def _queries_keys(self) -> tuple[str, str]:
        """Return the positions of the new tokens [n, 1], and of all tokens [1, m], including padding."""
        builder = self.builder
        total = builder.op("Squeeze", self._once("total", self._total))
        new = builder.op("Squeeze", self._dimension(self.ids, 1))
        keys = builder.op("Range", builder.ints(0), total, builder.ints(1))
        queries = builder.op("Range", builder.op("Sub", total, new), total, builder.ints(1))
        return (
            builder.op("Unsqueeze", queries, builder.ints([1])),
            builder.op("Unsqueeze", keys, builder.ints([0])),
        )

    def _back(self) -> str:
        """Return the distance of each key before each query in positions, [n, m]."""
        return self.builder.op("Sub", *self._queries_keys())

    def _same_chunk(self, chunk: int) -> str:
        builder = self.builder
        return builder.op("Equal", *(builder.op("Div", each, builder.ints(chunk)) for each in self._queries_keys()))

    # Other operations with a state.

    def convolve(self, layer: int, name: str, x: Value) -> Value:
        """See `Ops.convolve`; padding counts as zeros."""
        builder = self.builder
        channels, taps = self.tensors[f"{name}.weight"]
        past = builder.input(f"past_conv.{layer}", "FLOAT", ["batch", taps - 1, channels])
        mask = self._once("new mask", self._new_mask)
        whole = builder.op("Concat", past, builder.op("Mul", self.real(x), mask), axis=1)
        builder.op("Slice", whole, *map(builder.ints, ([1 - taps], [_MOST], [1])), output=f"present_conv.{layer}")
        builder.output(f"present_conv.{layer}", "FLOAT", ["batch", taps - 1, channels])
        columns = [builder.fresh("Split") for _ in range(taps)]
        builder.several("Split", (self.weights.values(f"{name}.weight"), builder.ints([1] * taps)), columns, axis=-1)
        out = ""
        for tap, column in enumerate(columns):
            stop = tap - taps + 1 or _MOST
            rows = builder.op("Slice", whole, *map(builder.ints, ([tap], [stop], [1])))
            weighed = builder.op("Mul", rows, builder.op("Squeeze", column, builder.ints([1])))
            out = builder.op("Add", out, weighed) if out else weighed
        if f"{name}.bias" in self.tensors:
            out = builder.op("Mul", builder.op("Add", out, self.weights.values(f"{name}.bias")), mask)
        return attrs.evolve(x, name=out)

    def _new_mask(self) -> str:
        """Return 1 for each new token and 0 for padding, float32 [batch, n, 1]."""
        builder = self.builder
        first = builder.op("Neg", self._dimension(self.ids, 1))
        part = builder.op("Slice", self.mask, first, *map(builder.ints, ([_MOST], [1])))
        return builder.op("Unsqueeze", builder.op("Cast", part, to=1), builder.ints([2]))

    def delta_rule(
        self, layer: int, queries: Value, keys: Value, values: Value, decay: Value, beta: Value, tiled: bool
    ) -> Value:
        """See `Ops.delta_rule`; token by token."""
        heads, size = values.heads, (keys.width, values.width)
        q, k = (self._for_heads(each, heads, tiled) for each in (queries, keys))
        sequences = [q, k, self.real(values), self.real(decay), self.real(beta)]
        found = self._recurrent(layer, [heads, *size], sequences, _delta_step)
        return attrs.evolve(values, name=found)

    def scan(self, layer: int, x: Value, step: Value, decay: str, skip: str, inputs: Value, outputs: Value) -> Value:
        """See `Ops.scan`; token by token."""
        builder, name, dt = self.builder, self.real(x), self.real(step)
        rates = builder.op("Reshape", self.weights.values(decay), builder.ints([-1]))
        kept = builder.op("Exp", builder.op("Mul", dt, rates))
        fed = builder.op("Mul", name, builder.op("Unsqueeze", dt, builder.ints([-1])))
        b, c = (self._for_heads(each, x.heads, False) for each in (inputs, outputs))
        found = self._recurrent(layer, [x.heads, x.width, inputs.width], [kept, fed, b, c], _scan_step)
        skipped = builder.op("Mul", name, self.weights.values(skip))
        return attrs.evolve(x, name=builder.op("Add", found, skipped))

    def _for_heads(self, x: Value, heads: int, tiled: bool) -> str:
        """Return heads with each repeated for the heads that share it, [batch, n, heads, size]."""
        name, shared = self.real(x), heads // x.heads
        if shared == 1:
            return name
        if tiled:
            return self.builder.op("Tile", name, self.builder.ints([1, 1, shared, 1]))
        wide = self.builder.op("Unsqueeze", name, self.builder.ints([3]))
        wide = self.builder.op("Expand", wide, self.builder.ints([1, 1, 1, shared, 1]))
        return self._reshaped(wide, [0, 0, heads, x.width])

    def _recurrent(self, layer: int, shape: list[int], sequences: list[str], step: Step) -> str:
        """Return the result of a recurrence with the layer's state [batch, *shape]."""
        past = self.builder.input(f"past_state.{layer}", "FLOAT", ["batch", *shape])
        present = f"present_state.{layer}"
        self.builder.output(present, "FLOAT", ["batch", *shape])
        return self.builder.scan(past, sequences, step, present)

    # Experts.

    def route(self, scores: Value, how: Routing, bias: str | None = None) -> Value:
        """See `Ops.route`."""
        builder, given = self.builder, self.real(scores)
        every = given
        if how.score != "chosen":
            every = builder.op("Sigmoid", given) if how.score == "sigmoid" else builder.op("Softmax", given, axis=-1)
        ranked = every if bias is None else builder.op("Add", every, self.weights.values(bias))
        if how.groups > 1:
            ranked = self._best_groups(ranked, how, scores.width)
        chosen = self._top(ranked, how.used)[1]
        picked = builder.op("GatherElements", every, chosen, axis=-1)
        if how.score == "chosen":
            picked = builder.op("Softmax", picked, axis=-1)
        elif how.normalized:
            total = builder.op("ReduceSum", picked, builder.ints([-1]), keepdims=1)
            picked = builder.op("Div", picked, builder.op("Max", total, builder.floats(how.floor)))
        if how.scale != 1:
            picked = builder.op("Mul", picked, builder.floats(how.scale))
        none = builder.op("Mul", given, builder.floats(0.0))
        shares = builder.op("ScatterElements", none, chosen, picked, axis=-1)
        self._used[shares] = how.used
        return attrs.evolve(scores, name=shares)

    def route_sparsely(self, scores: Value, jitter: float) -> Value:
        """See `Ops.route_sparsely`."""
        builder, given = self.builder, self.real(scores)
        total, left = builder.op("Mul", given, builder.floats(0.0)), given
        for _ in range(2):
            top, chosen = self._top(left, 1)
            larger = builder.op("Max", builder.op("Abs", given), top)
            distance = builder.op("Div", builder.op("Sub", top, given), larger)
            far = builder.op("Greater", distance, builder.floats(2 * jitter))
            shares = builder.op("Softmax", builder.op("Where", far, builder.floats(HIDDEN), left), axis=-1)
            picked = builder.op("GatherElements", shares, chosen, axis=-1)
            total = builder.op("ScatterElements", total, chosen, picked, axis=-1)
            none = builder.op("Add", builder.op("Mul", top, builder.floats(0.0)), builder.floats(HIDDEN))
            left = builder.op("ScatterElements", left, chosen, none, axis=-1)
        self._used[total] = 2
        return attrs.evolve(scores, name=total)

    def _top(self, values: str, count: int) -> list[str]:
        """Return the `count` largest values and their indices."""
        outputs = [self.builder.fresh("TopK") for _ in range(2)]
        return self.builder.several("TopK", (values, self.builder.ints([count])), outputs, axis=-1)

    def _best_groups(self, ranked: str, how: Routing, count: int) -> str:
        """Return the ranks, with those of experts outside the best groups lowered below all others."""
        builder = self.builder
        apart = self._reshaped(ranked, [0, 0, how.groups, count // how.groups])
        best = builder.op("ReduceSum", self._top(apart, 2)[0], builder.ints([-1]), keepdims=0)
        least = builder.op("ReduceMin", self._top(best, how.groups_used)[0], builder.ints([-1]), keepdims=1)
        kept = builder.op("Unsqueeze", builder.op("GreaterOrEqual", best, least), builder.ints([3]))
        return self._reshaped(builder.op("Where", kept, apart, builder.floats(HIDDEN)), [0, 0, count])

    def experts(self, prefix: str, x: Value, weights: Value, ffn: Ffn) -> Value:
        """See `Ops.experts`.

        QMoE computes the chosen experts where it can; else every expert computes every token, and those not chosen have
        weight 0.
        """
        builder, count = self.builder, weights.width
        given = self.real(x)
        inner = ["gate_up"] if ffn.fused else ["gate", "up"]
        roles = [f"{prefix}ffn_{name}_exps.weight" for name in (*inner, "down")]
        used = self._used.get(weights.name, 0)
        if ffn.gate == "silu" and not ffn.weighted_input and used and self.weights.mixable(roles[:-1], roles[-1]):
            flat = self._reshaped(self.real(weights), [-1, count])
            return attrs.evolve(x, name=self.weights.mixed(roles[:-1], roles[-1], given, flat, used))
        shares = [builder.fresh("Split") for _ in range(count)]
        builder.several("Split", (self.real(weights), builder.ints([1] * count)), shares, axis=-1)
        total = ""
        for number, share in enumerate(shares):
            fed = builder.op("Mul", given, share) if ffn.weighted_input else given
            out = self._expert(prefix, number, Value(fed, x.width), ffn)
            out = out if ffn.weighted_input else builder.op("Mul", out, share)
            total = builder.op("Add", total, out) if total else out
        return attrs.evolve(x, name=total)

    def _expert(self, prefix: str, number: int, x: Value, ffn: Ffn) -> str:
        def product(name: str, values: Value) -> Value:
            full = f"{prefix}ffn_{name}_exps"
            out = self.weights.product(f"{full}.weight", self.real(values), number)
            if f"{full}.bias" in self.tensors:
                row = self.builder.op("Gather", self.weights.values(f"{full}.bias"), self.builder.ints(number), axis=0)
                out = self.builder.op("Add", out, row)
            return Value(out, self.tensors[f"{full}.weight"][1])

        if ffn.gate is None:
            inner = self.activate(ffn.activation, product("up", x))
        elif ffn.fused:
            both = product("gate_up", x)
            gate, up = self.split(both, [both.width // 2] * 2)
            inner = self.gated(ffn.gate, gate, up)
        else:
            inner = self.gated(ffn.gate, product("gate", x), product("up", x))
        return product("down", inner).name

    def _dimension(self, name: str, axis: int) -> str:
        """Return the size of a dimension, [1]."""
        return self.builder.op("Shape", name, start=axis, end=axis + 1)


def _delta_step(inner: Builder, state: str, elements: Sequence[str]) -> tuple[str, str]:
    """Add the nodes of one token of the gated delta rule; the state is [batch, heads, key_dim, value_dim]."""
    q, k, v, decay, beta = elements
    last, both = inner.ints([-1]), inner.ints([2, 3])
    kept = inner.op("Mul", state, inner.op("Unsqueeze", inner.op("Exp", decay), both))
    key = inner.op("Unsqueeze", k, last)
    known = inner.op("ReduceSum", inner.op("Mul", kept, key), inner.ints([2]), keepdims=0)
    change = inner.op("Mul", inner.op("Sub", v, known), inner.op("Unsqueeze", beta, last))
    new = inner.op("Add", kept, inner.op("Mul", key, inner.op("Unsqueeze", change, inner.ints([2]))))
    seen = inner.op("Mul", new, inner.op("Unsqueeze", q, last))
    return new, inner.op("ReduceSum", seen, inner.ints([2]), keepdims=0)


def _scan_step(inner: Builder, state: str, elements: Sequence[str]) -> tuple[str, str]:
    """Add the nodes of one token of Mamba 2's selective scan; the state is [batch, heads, head_dim, state]."""
    kept, x, b, c = elements
    rows, cols = inner.ints([-1]), inner.ints([2])
    old = inner.op("Mul", state, inner.op("Unsqueeze", kept, inner.ints([2, 3])))
    fed = inner.op("Mul", inner.op("Unsqueeze", x, rows), inner.op("Unsqueeze", b, cols))
    new = inner.op("Add", old, fed)
    seen = inner.op("Mul", new, inner.op("Unsqueeze", c, cols))
    return new, inner.op("ReduceSum", seen, rows, keepdims=0)


def groupable(call: Call) -> bool:
    """Return whether GroupQueryAttention supports an attention operation; True for all other operations."""
    if call.operation == "remembered":
        return False
    how: Iterable[Any] = (each for each in call.arguments if isinstance(each, Attend))
    return all(each.chunk is None and each.causal for each in how)


def causal(call: Call) -> bool:
    """Return whether an operation is causal; False only for bidirectional attention."""
    return all(each.causal for each in call.arguments if isinstance(each, Attend))


__all__ = ["HIDDEN", "GraphOps", "Remembered", "Value", "causal", "groupable"]
