"""MLX's recipes: one width for every matrix, and mlx-lm's mixtures of two.

    recipe               most matrices   v_proj and down_proj in the layers that get more, lm_head
    2bit … 8bit          2 … 8 bits      the same
    mixed_2_6            2               6
    mixed_3_4            3               4
    mixed_3_6            3               6
    mixed_4_6            4               6

The recipes of one width give 8 bits to the matrices that mlx-lm gives 8 bits: routers, and ``o_proj``, ``down_proj``
and ``lm_head`` of Granite 3.

All use groups of 64. Of n layers, the first n // 8, the last n // 8 and every third one between them get more bits.
Vectors, and matrices whose number of columns no group size divides, stay in float. Phi 3's fused ``qkv_proj`` counts as
a v_proj, as in mlx-lm, whose rule searches the name for ``v_proj``.

Source: mlx-lm 0.32.2, ``convert.py`` (`mixed_quant_predicate_builder`), ``models/<model type>.py``
(`quant_predicate`); compared with it model by model.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from edgekit.architectures import ModelConfig
from edgekit.errors import UnsupportedModelError
from edgekit.precision import Precision, find_precision
from edgekit.recipe import Assignment, Clause, Plan, Slot, Uniform, fits, is_matrix, quantized

GROUP = 64
_MORE = ("v_proj", "down_proj")
#: By family, how the names of the modules end that get 8 bits whatever the recipe's width.
_EIGHT_BITS = {
    "gemma4": ("router.proj",),
    "gpt_oss": ("mlp.router",),
    "granite": ("self_attn.o_proj", "mlp.down_proj", "lm_head"),
    "granite4_moe": ("block_sparse_moe.router.layer",),
    "granitemoehybrid": ("block_sparse_moe.router.layer",),
    "lfm2_moe": ("feed_forward.gate",),
    "qwen3_5_moe": ("mlp.gate", "mlp.shared_expert_gate"),
    "qwen3_moe": ("mlp.gate",),
    "qwen3_next": ("mlp.gate", "mlp.shared_expert_gate"),
}


@attrs.frozen
class Width(Uniform):
    """One width for every matrix except those of `_EIGHT_BITS`, under MLX's name; see `edgekit.recipe.Recipe`.

    Attributes:
        precision: the precision of every other matrix.
        given_name: the recipe's name, such as ``4bit``.
    """

    given_name: str = ""

    @property
    def name(self) -> str:
        """The name under which the recipe is registered."""
        return self.given_name

    def plan(self, slots: Sequence[Slot], config: ModelConfig | None, importance: bool = False) -> Plan:
        """Choose for every slot."""
        careful = _EIGHT_BITS.get(config.family, ()) if config else ()
        lines = super().plan(slots, config, importance)
        return Plan(self.name, tuple(_in_eight_bits(line, careful) for line in lines))

    def describe(self) -> list[Clause]:
        """Return the recipe in words."""
        clauses = [Clause("weight matrices", self.precision.name), Clause("the rest", "as it is")]
        if self.precision.bits == 8:
            return clauses
        eight = Clause("routers", _affine(8).name, "and o_proj, down_proj, lm_head of Granite 3, as mlx-lm has it")
        return [eight, *clauses]


def _in_eight_bits(line: Assignment, careful: tuple[str, ...]) -> Assignment:
    """Return the line with 8 bits if it quantizes a matrix whose module's name has one of the endings."""
    if line.asked or not quantized(line.precision) or not line.name.removesuffix(".weight").endswith(careful):
        return line
    return attrs.evolve(line, precision=_affine(8), reason="8 bits whatever the width")


@attrs.frozen
class Mixed:
    """A mixture of two widths; see `edgekit.recipe.Recipe`.

    Attributes:
        low: bits of most matrices.
        high: bits of the matrices that get more.
    """

    low: int
    high: int

    @property
    def name(self) -> str:
        """The name of the mixture in mlx-lm."""
        return f"mixed_{self.low}_{self.high}"

    def plan(self, slots: Sequence[Slot], config: ModelConfig | None, importance: bool = False) -> Plan:
        """Assign a precision to every slot.

        Raises:
            UnsupportedModelError: the family is unsupported, so that the number of layers is unknown.
        """
        if config is None:
            raise UnsupportedModelError(f"recipe {self.name} counts layers, and the model's family is unknown")
        return Plan(self.name, tuple(self._assign(slot, config.layers) for slot in slots))

    def describe(self) -> list[Clause]:
        """Return the mixture in words; see `edgekit.recipe.Recipe`."""
        low, high = _affine(self.low), _affine(self.high)
        return [
            Clause("lm_head", high.name),
            Clause("*v_proj*, *down_proj*", high.name, "in the first and last eighth of the layers, and each third"),
            Clause("other weight matrices", low.name),
            Clause("rows that no group divides", "as they are"),
            Clause("the rest", "as it is"),
        ]

    def _assign(self, slot: Slot, layers: int) -> Assignment:
        if not is_matrix(slot):
            return Assignment(slot.name, slot.role, slot.shape, slot.keep, "not a weight matrix")
        bits, reason = self._bits(slot.name, layers)
        precision, asked = _affine(bits), None
        if not fits(precision, slot.shape):
            asked, reason = precision, f"rows of {slot.shape[-1]} are no multiple of {GROUP}"
            precision = slot.keep
        return Assignment(slot.name, slot.role, slot.shape, precision, reason, asked)

    def _bits(self, name: str, layers: int) -> tuple[int, str]:
        if "lm_head" in name:
            return self.high, "output matrix"
        if any(word in name for word in _MORE) and gets_more(_layer(name), layers):
            return self.high, "among the layers that get more"
        return self.low, f"default of {self.name}"


def gets_more(layer: int, layers: int) -> bool:
    """Return whether a layer, counted from 0, gets more bits."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _layer(name: str) -> int:
    return next((int(word) for word in name.split(".") if word.isdigit()), 0)


def _affine(bits: int) -> Precision:
    return find_precision(f"mlx:int{bits}-g{GROUP}")


BITS_2, BITS_3, BITS_4, BITS_5, BITS_6, BITS_8 = (
    Width(_affine(bits), given_name=f"{bits}bit") for bits in (2, 3, 4, 5, 6, 8)
)
MIXED_2_6, MIXED_3_4, MIXED_3_6, MIXED_4_6 = Mixed(2, 6), Mixed(3, 4), Mixed(3, 6), Mixed(4, 6)

__all__ = [
    "BITS_2",
    "BITS_3",
    "BITS_4",
    "BITS_5",
    "BITS_6",
    "BITS_8",
    "GROUP",
    "MIXED_2_6",
    "MIXED_3_4",
    "MIXED_3_6",
    "MIXED_4_6",
    "Mixed",
    "Width",
    "gets_more",
]
