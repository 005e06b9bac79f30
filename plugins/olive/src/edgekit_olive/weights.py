"""Adds a model's tensors to a graph: constants beside it, and the nodes that compute with them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from edgekit.precision import Precision
from edgekit_olive.builder import Builder
from edgekit_olive.elements import Stored, code_bits, has_offsets, is_blockwise, is_hqq
from edgekit_olive.library import onnx

#: The file of the weights, beside the graph.
DATA = "model.onnx.data"

#: MatMulNBits' ``accuracy_level``: activations rounded to 8 bits in blocks, as llama.cpp does; many times as fast.
FAST = 4
#: MatMulNBits' ``accuracy_level``: float32 activations.
EXACT = 0
#: Separator between the name of a stack of experts and the index of an expert.
EXPERT = ".expert."


@attrs.frozen
class Placed:
    """A constant with its position in the file."""

    stored: Stored
    offset: int


@attrs.frozen
class Weight:
    """A tensor of the model.

    Attributes:
        name: its name in the graph.
        precision: its precision.
        shape: its shape, outermost dimension first.
        parts: its constants, by the reference's names of the parts.
    """

    name: str
    precision: Precision
    shape: tuple[int, ...]
    parts: Mapping[str, Placed]


@attrs.define(eq=False)
class GraphWeights:
    """Adds nodes for a model's tensors, by role.

    Attributes:
        builder: collects the nodes.
        weights: the weights by role (``blk.0.attn_q.weight``).
        fused: whether ONNX Runtime's own operators may be used.
    """

    builder: Builder
    weights: Mapping[str, Weight]
    fused: bool
    _values: dict[str, str] = attrs.field(factory=dict, init=False)
    _sums: dict[tuple[str, int], str] = attrs.field(factory=dict, init=False)
    _shifted: dict[str, str] = attrs.field(factory=dict, init=False)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes by role."""
        return {role: weight.shape for role, weight in self.weights.items()}

    def values(self, role: str) -> str:
        """Return all values of a tensor, float32 in its shape."""
        if role not in self._values:
            self._values[role] = self._all(self.weights[role])
        return self._values[role]

    def rows(self, role: str, ids: str) -> str:
        """Return the rows of a matrix for ids [batch, n], float32 [batch, n, cols]."""
        weight = self.weights[role]
        if weight.precision.convention == "float":
            return self._widened(weight, self.builder.op("Gather", self._constant(weight, "values"), ids, axis=0))
        if is_blockwise(weight.precision) and self.fused:
            return self._gathered(weight, ids)
        if is_blockwise(weight.precision) or weight.precision.kind == "qdq_int4":
            return self.builder.op("Gather", self._dequantized(weight), ids, axis=0)
        return self._picked(weight, ids)

    def joinable(self, roles: Sequence[str]) -> bool:
        """Return whether one MatMulNBits can compute the products of the same states with several matrices."""
        weights = [self.weights[role] for role in roles]
        alike = {(weight.precision, weight.shape[1:]) for weight in weights}
        biases = {f"{role.removesuffix('.weight')}.bias" in self.weights for role in roles}
        return self.fused and len(alike) == len(biases) == 1 and is_blockwise(weights[0].precision)

    def joined(self, roles: Sequence[str], x: str) -> str:
        """Return the products with several matrices side by side, [..., sum of out], with their biases.

        The matrices stay apart in the file. The runtime joins them when it loads the graph, as it folds constants.
        """
        weights, builder = [self.weights[role] for role in roles], self.builder
        parts = [builder.op("Concat", *(self._constant(weight, "B") for weight in weights), axis=0)]
        parts.append(builder.op("Concat", *(self._scale(weight, "scales") for weight in weights), axis=0))
        if "zero_points" in weights[0].parts:
            zeros = (self._zero(weight) for weight in weights)
            parts.append(builder.op("Concat", *zeros, axis=0))
        shape = sum(weight.shape[0] for weight in weights), weights[0].shape[1]
        out = self._nbits(x, parts, weights[0].precision, shape)
        if has_offsets(weights[0].precision):
            offsets = builder.op("Concat", *map(self._around, weights), axis=0)
            out = self._added(out, x, offsets, weights[0])
        biases = [f"{role.removesuffix('.weight')}.bias" for role in roles]
        if biases[0] not in self.weights:
            return out
        return builder.op("Add", out, builder.op("Concat", *map(self.values, biases), axis=0))

    def mixable(self, inner: Sequence[str], outer: str) -> bool:
        """Return whether QMoE of the CPU provider computes stacks of experts to float32's precision.

        Blocks of 2 or 4 bits that divide the rows, all alike and without biases. Its 8-bit experts round activations to
        8 bits at every accuracy level.
        """
        roles = [*inner, outer]
        stacks = [self.weights[role] for role in roles]
        precision = stacks[0].precision
        return (
            self.fused
            and {weight.precision for weight in stacks} == {precision}
            and is_blockwise(precision)
            and not is_hqq(precision)
            and not has_offsets(precision)
            and precision.bits in (2, 4)
            and all(len(weight.shape) == 3 and not weight.shape[2] % (precision.block or 1) for weight in stacks)
            and not any(f"{role.removesuffix('.weight')}.bias" in self.weights for role in roles)
        )

    def mixed(self, inner: Sequence[str], outer: str, x: str, shares: str, used: int) -> str:
        """Return the sum of gated experts' outputs for states [batch, n, width], by QMoE.

        The file keeps the stacks of gates and of up projections apart; QMoE takes their rows in turn.

        Args:
            inner: role of the gates' stack and of the up projections', or of both in one, the gates' rows first.
            outer: role of the down projections' stack.
            x: the states.
            shares: the weight of each expert, [batch * n, experts]; 0 for experts that are not used.
            used: number of experts of a token.
        """
        down, precision = self.weights[outer], self.weights[outer].precision
        keys = ("B", "scales", *(["zero_points"] if "zero_points" in down.parts else []))
        first = [self._in_turn([self.weights[role] for role in inner], key) for key in keys] + [""]
        second = [self._stacked(down, key) for key in keys] + [""]
        return self.builder.fused(
            *("QMoE", x, shares, first[0], first[1], "", second[0], second[1], "", "", "", ""),
            *((first[2], second[2]) if len(keys) > 2 else ("", "")),
            *("", shares),
            k=used,
            expert_weight_bits=precision.bits,
            block_size=precision.block,
            activation_type="swiglu",
            swiglu_fusion=1,
            activation_alpha=1.0,
            activation_beta=0.0,
            normalize_routing_weights=0,
            weights_prepacked=0,
            accuracy_level=FAST,
        )

    def _in_turn(self, stacks: Sequence[Weight], part: str) -> str:
        """Return a part of gates and up projections with their rows in turn, [experts, 2 * rows, …]."""
        builder, (experts, rows, _) = self.builder, stacks[0].shape
        if len(stacks) == 1:
            pairs = builder.op("Reshape", self._stacked(stacks[0], part), builder.ints([experts, 2, rows // 2, -1]))
            turned = builder.op("Transpose", pairs, perm=[0, 2, 1, 3])
            return builder.op("Reshape", turned, builder.ints([experts, rows, -1]))
        apart = [builder.op("Unsqueeze", self._stacked(stack, part), builder.ints([2])) for stack in stacks]
        return builder.op("Reshape", builder.op("Concat", *apart, axis=2), builder.ints([experts, 2 * rows, -1]))

    def _stacked(self, weight: Weight, part: str) -> str:
        """Return a part of a stack of experts, [experts, rows, …]."""
        placed, (experts, rows, _) = weight.parts[part], weight.shape
        shape = (experts, rows, math.prod(placed.stored.shape) // (experts * rows))
        name = self._placed(attrs.evolve(placed, stored=attrs.evolve(placed.stored, shape=shape)))
        return self.builder.op("Cast", name, to=1) if placed.stored.element in ("FLOAT16", "BFLOAT16") else name

    def product(self, role: str, x: str, expert: int | None = None, *, output: str | None = None) -> str:
        """Return ``x @ weight.T``, [..., out], with a matrix [out, in] or one of a stack [experts, out, in].

        Args:
            role: the matrix's.
            x: the states.
            expert: index of a matrix in a stack.
            output: name of the result, which only MatMulNBits takes.
        """
        weight = self.weights[role]
        if len(weight.shape) == 1:
            column = self.builder.op("Unsqueeze", self.values(role), self.builder.ints([1]))
            return self.builder.op("MatMul", x, column)
        if is_blockwise(weight.precision) and self.fused:
            return self._multiplied(weight, x, expert, output)
        if weight.precision.kind == "qdq_int4":  # stored as [in, out]
            return self.builder.op("MatMul", x, self._dequantized(weight, expert, transposed=True))
        matrix = self._dequantized(weight, expert)
        if self.fused:
            return self.builder.fused("FusedMatMul", x, matrix, transB=1)
        return self.builder.op("MatMul", x, self.builder.op("Transpose", matrix, perm=[1, 0]))

    def _all(self, weight: Weight) -> str:
        if is_blockwise(weight.precision) and self.fused:
            builder, (rows, _) = self.builder, weight.shape
            every = builder.op("Range", builder.ints(0), builder.ints(rows), builder.ints(1))
            return self._gathered(weight, every)
        return self._dequantized(weight)

    # Operators on codes.

    def _multiplied(self, weight: Weight, x: str, expert: int | None, output: str | None = None) -> str:
        """Return the product of x with a weight, computed by MatMulNBits."""
        parts = [self._constant(weight, "B", expert), self._scale(weight, "scales", expert)]
        if "zero_points" in weight.parts:
            parts.append(self._zero(weight, expert))
        if not has_offsets(weight.precision):
            return self._nbits(x, parts, weight.precision, weight.shape[-2:], output)
        codes = self._nbits(x, parts, weight.precision, weight.shape[-2:])
        return self._added(codes, x, self._around(weight, expert), weight, output)

    def _nbits(
        self, x: str, parts: Sequence[str], precision: Precision, shape: Sequence[int], output: str | None = None
    ) -> str:
        rows, cols = shape
        return self.builder.fused(
            *("MatMulNBits", x, *parts, *self._middle(precision, rows, cols)),
            output=output,
            K=cols,
            N=rows,
            bits=code_bits(precision),
            block_size=precision.block,
            accuracy_level=FAST,
        )

    # Blocks with offsets; see `edgekit_olive.offset`.

    def _middle(self, precision: Precision, rows: int, cols: int) -> list[str]:
        """Return zero points at the middle of the codes of blocks with offsets; none where the operator's are there."""
        width = code_bits(precision)
        if not has_offsets(precision) or width == precision.bits:
            return []
        middle = 1 << (precision.bits - 1)
        byte = sum(middle << low for low in range(0, 8, width))
        shape = self.builder.ints([rows, -(-cols // (precision.block or cols) * width // 8)])
        value = onnx().helper.make_tensor("value", onnx().TensorProto.UINT8, [1], [byte])
        return [self.builder.op("ConstantOfShape", shape, value=value)]

    def _around(self, weight: Weight, expert: int | None = None) -> str:
        """Return each block's value at the middle of its codes, [rows, blocks], which the runtime computes once."""
        scales, offsets = self._constant(weight, "scales", expert), self._constant(weight, "offsets", expert)
        if offsets not in self._shifted:
            middle = self.builder.floats(float(1 << (weight.precision.bits - 1)))
            moved = self.builder.op("Mul", scales, middle)
            self._shifted[offsets] = self.builder.op("Add", offsets, moved)
        return self._shifted[offsets]

    def _added(self, product: str, x: str, offsets: str, weight: Weight, output: str | None = None) -> str:
        """Return the product of x with codes, plus that of the sums of its blocks with offsets [rows, blocks]."""
        block = weight.precision.block or 1
        if (x, block) not in self._sums:
            builder = self.builder
            shape = builder.op("Concat", builder.op("Shape", x, end=-1), builder.ints([-1, block]), axis=0)
            self._sums[x, block] = builder.op(
                "ReduceSum", builder.op("Reshape", x, shape), builder.ints([-1]), keepdims=0
            )
        share = self.builder.fused("FusedMatMul", self._sums[x, block], offsets, transB=1)
        return self.builder.op("Add", product, share, output=output)

    def _gathered(self, weight: Weight, ids: str) -> str:
        """Return rows decoded by GatherBlockQuantized, truncated from whole blocks to the row length."""
        builder, precision, (rows, cols) = self.builder, weight.precision, weight.shape
        packed = weight.parts["B"]
        flat = attrs.evolve(packed.stored, shape=(rows, packed.stored.nbytes // rows), name=f"{weight.name}.rows")
        parts = [self._placed(attrs.evolve(packed, stored=flat)), ids, self._scale(weight, "scales")]
        if "zero_points" in weight.parts:
            parts.append(self._constant(weight, "zero_points"))
        found = builder.fused(
            *("GatherBlockQuantized", *parts, *self._middle(precision, rows, cols)),
            bits=code_bits(precision),
            block_size=precision.block,
            gather_axis=0,
            quantize_axis=1,
        )
        assert precision.block is not None
        if has_offsets(precision):
            return self._moved(found, ids, weight)
        if cols % precision.block == 0:
            return found
        return builder.op("Slice", found, *map(builder.ints, ([0], [cols], [-1])))

    def _moved(self, rows: str, ids: str, weight: Weight) -> str:
        """Return rows [..., cols] of decoded codes with the offsets of their blocks."""
        builder, cols, block = self.builder, weight.shape[1], weight.precision.block or 1
        shape = builder.op("Shape", ids)
        apart = builder.op("Concat", shape, builder.ints([cols // block, block]), axis=0)
        offsets = builder.op("Unsqueeze", builder.op("Gather", self._around(weight), ids, axis=0), builder.ints([-1]))
        moved = builder.op("Add", builder.op("Reshape", rows, apart), offsets)
        return builder.op("Reshape", moved, builder.op("Concat", shape, builder.ints([cols]), axis=0))

    def _picked(self, weight: Weight, ids: str) -> str:
        """Return decoded rows of codes with one scale per row or per tensor."""
        builder = self.builder
        codes = builder.op("Cast", builder.op("Gather", self._constant(weight, "codes"), ids, axis=0), to=1)
        zero = builder.op("Cast", self._constant(weight, "zero_point"), to=1)
        scale = self._scale(weight, "scale")
        if weight.precision.granularity == "channel":
            zero, scale = (
                builder.op("Unsqueeze", builder.op("Gather", each, ids, axis=0), builder.ints([-1]))
                for each in (zero, scale)
            )
        return builder.op("Mul", builder.op("Sub", codes, zero), scale)

    def _dequantized(self, weight: Weight, expert: int | None = None, *, transposed: bool = False) -> str:
        """Return all values of a matrix or of one of a stack; with `transposed`, as [in, out] if stored so."""
        precision = weight.precision
        if precision.convention == "float":
            return self._widened(weight, self._constant(weight, "values", expert))
        builder = self.builder
        codes = "B" if "B" in weight.parts else "codes"
        scale = "scales" if "scales" in weight.parts else "scale"
        zero = "zero_points" if "zero_points" in weight.parts else "zero_point"
        inputs = [self._constant(weight, codes, expert), self._scale(weight, scale, expert)]
        inputs += [self._constant(weight, zero, expert)] if zero in weight.parts else []
        if precision.kind == "qdq_int4":
            found = builder.op("DequantizeLinear", *inputs, axis=0, block_size=precision.block)
            return found if transposed else builder.op("Transpose", found, perm=[1, 0])
        if is_blockwise(precision):
            return builder.op("DequantizeLinear", *inputs, axis=1, block_size=precision.block)
        return builder.op("DequantizeLinear", *inputs, axis=0)

    # Constants.

    def _widened(self, weight: Weight, name: str) -> str:
        return name if weight.precision.kind == "F32" else self.builder.op("Cast", name, to=1)

    def _scale(self, weight: Weight, part: str, expert: int | None = None) -> str:
        """Return scales as float32, the dtype of the products."""
        name = self._constant(weight, part, expert)
        return name if weight.parts[part].stored.element == "FLOAT" else self.builder.op("Cast", name, to=1)

    def _zero(self, weight: Weight, expert: int | None = None) -> str:
        """Return zero points: packed codes, or float32."""
        name = self._constant(weight, "zero_points", expert)
        return self.builder.op("Cast", name, to=1) if weight.parts["zero_points"].stored.element == "FLOAT16" else name

    def _constant(self, weight: Weight, part: str, expert: int | None = None) -> str:
        placed = weight.parts[part]
        if expert is None or not placed.stored.shape:
            return self._placed(placed)
        count, stored = weight.shape[0], placed.stored
        nbytes = stored.nbytes // count
        shape = stored.shape[1:] if len(stored.shape) == len(weight.shape) else stored.shape
        if stored.shape[0] != count:
            shape = (stored.shape[0] // count, *stored.shape[1:])
        name = f"{weight.name}{EXPERT}{expert}{stored.name.removeprefix(weight.name)}"
        one = attrs.evolve(stored, name=name, shape=shape, nbytes=nbytes)
        return self._placed(Placed(one, placed.offset + expert * nbytes))

    def _placed(self, placed: Placed) -> str:
        stored, library = placed.stored, onnx()
        if stored.name not in self.builder.initializers:
            tensor = library.TensorProto()
            tensor.name = stored.name
            tensor.data_type = getattr(library.TensorProto, stored.element)
            tensor.dims.extend(stored.shape)
            tensor.data_location = library.TensorProto.EXTERNAL
            given: dict[str, Any] = {"location": DATA, "offset": placed.offset, "length": stored.nbytes}
            for key, value in given.items():
                entry = tensor.external_data.add()
                entry.key, entry.value = key, str(value)
            self.builder.initializers[stored.name] = tensor
        return stored.name


__all__ = ["DATA", "EXACT", "EXPERT", "FAST", "GraphWeights", "Placed", "Weight"]
