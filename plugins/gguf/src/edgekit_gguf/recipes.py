"""llama.cpp's recipes: which tensor gets which block type.

A recipe has a default type, and rules for the tensors that suffer most. Tensors are met in the order of the file;
i counts those of one kind (attn_v, ffn_down) so far, n is how many there are. The first rule whose condition
holds decides.

Not quantized: vectors, norms (``*_norm.weight``), expert routers (``ffn_gate_inp``), and what is no ``weight``.
``output.weight``, or ``token_embd.weight`` where it is tied: Q8_0 if the default's block does not divide its rows,
or if Q8_0 is the default; else Q6_K.
A row that the chosen type's block does not divide falls back to a smaller block (`FALLBACKS`), else to F16; Q1_0 goes
to F16 at once, where llama.cpp gives up.
Models of exactly eight experts and those of the 70B class have exceptions, below.

Source: ``llama-quant.cpp`` (llama_tensor_get_type_impl, tensor_type_fallback) of llama-cpp-python 0.3.36; Falcon and
GLM5-next, for which llama.cpp has rules of their own, get the general ones.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import attrs

from edgekit.architectures import ModelConfig
from edgekit.errors import UnsupportedModelError
from edgekit.precision import Precision, find_precision
from edgekit.recipe import Assignment, Clause, Plan, Slot, fits
from edgekit_gguf.types import FILE_TYPES

Kind = Literal["output", "token_embd", "attn_v", "attn_k", "attn_output", "ffn_down", "other"]


@attrs.frozen
class Facts:
    """The properties of a model that the rules use.

    Attributes:
        layers: their number.
        sharing: query heads that share a key head.
        experts: their number in a layer; 0 or 1 for dense models.
        tied: whether the embedding doubles as the output matrix.
        importance: whether an importance matrix is at hand.
        attn_v: number of attn_v (or fused attn_qkv) tensors.
    """

    layers: int
    sharing: int
    experts: int
    tied: bool
    importance: bool
    attn_v: int

    @property
    def is_70b(self) -> bool:
        """The class of Llama 2 70B: 80 layers, grouped queries."""
        return self.layers == 80 and self.sharing > 1


@attrs.frozen
class Place:
    """The tensor that a rule is applied to: number i of n of its kind."""

    i: int
    n: int
    facts: Facts


@attrs.frozen
class When:
    """A condition and its description."""

    words: str
    holds: Callable[[Place], bool]


@attrs.frozen
class Rule:
    """A type and the condition under which a tensor gets it."""

    type: str
    when: When


def _more(at: Place) -> bool:
    """The first and last eighth of the layers, and every third between them."""
    eighth = at.n // 8
    return at.i < eighth or at.i >= 7 * at.n // 8 or (at.i - eighth) % 3 == 2


ALWAYS = When("always", lambda at: True)
SHARED = When("4 or more query heads share a key head", lambda at: at.facts.sharing >= 4)
FIRST_2 = When("one of the first 2", lambda at: at.i < 2)
FIRST_4 = When("one of the first 4", lambda at: at.i < 4)
FIRST_8TH = When("in the first eighth", lambda at: at.i < at.n // 8)
FIRST_16TH = When("in the first sixteenth", lambda at: at.i < at.n // 16)
MORE = When("in the first or last eighth, or every third between", _more)
FIRST_8TH_BLIND = When(
    "in the first eighth, no importance matrix", lambda at: not at.facts.importance and at.i < at.n // 8
)
FIRST_8TH_WEIGHED = When(
    "in the first eighth, with an importance matrix", lambda at: at.facts.importance and at.i < at.n // 8
)

#: What a type becomes where its block does not divide the rows; what has none becomes F16.
FALLBACKS = {
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "TQ1_0": "Q4_0",
    "TQ2_0": "Q4_0",
    "Q2_0": "Q4_0",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
    "IQ4_XS": "IQ4_NL",
}
#: Files of eight experts whose attn_output becomes Q5_K.
_EIGHT_EXPERTS_OUTPUT = ("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "IQ4_NL", "IQ4_XS")
#: Types of attn_v that become Q5_K in models of the 70B class.
_RAISED_IN_70B = ("Q3_K", "Q4_K")
#: Names of matrices that stay as they are, and why.
LEFT_ALONE = {
    r"_norm\.weight": "a norm",
    r"ffn_gate_inp\.weight": "routes to the experts",
    r"position_embd|token_types\.weight|attn_rel_b\.weight": "positions or token types",
    r"ssm_conv1d|shortconv\.conv\.weight": "a small convolution",
    r"altup|laurel|per_layer_model_proj": "small",
    r"time_mix_(first|[wvag]\d|decay_w\d|lerp_fused)\.weight": "small",
}
_FLOATS = ("F32", "F16", "BF16")


@attrs.frozen
class GgufRecipe:
    """One of llama.cpp's file types; see `edgekit.recipe.Recipe`.

    Attributes:
        name: llama.cpp's name.
        default: block type of what no rule is about.
        attn_v, ffn_down, attn_output: rules for those tensors, the first that holds decides.
        token_embd: type of an embedding that is not tied, where it is not the default.
    """

    name: str
    default: str
    attn_v: tuple[Rule, ...] = ()
    ffn_down: tuple[Rule, ...] = ()
    attn_output: tuple[Rule, ...] = ()
    token_embd: str = ""

    @property
    def file_type(self) -> int:
        """Its number under ``general.file_type``."""
        return FILE_TYPES[self.name]

    def plan(self, slots: Sequence[Slot], config: ModelConfig | None, importance: bool = False) -> Plan:
        """Choose a type for every slot; see `edgekit.recipe.Recipe.plan`.

        Where `config` is None the facts are read off the slots' canonical names and shapes.

        Raises:
            UnsupportedModelError: a mixture is asked for a model that shows neither layers nor a configuration.
        """
        facts = _facts(slots, config, importance)
        if config is None and not facts.layers and (self.attn_v or self.ffn_down or self.attn_output):
            raise UnsupportedModelError(
                f"recipe {self.name} depends on the model's layers, and these tensors have none (blk.<i>.*); "
                f"choose the precision ggml:{self.default}"
            )
        counts: dict[str, int] = {}
        return Plan(self.name, tuple(self._assign(slot, facts, counts) for slot in slots))

    def describe(self) -> list[Clause]:
        """The rules in words, in the order in which they are tried; see `edgekit.recipe.Recipe`."""
        if self.default in _FLOATS:
            return [Clause("weight matrices", self.default), Clause("the rest", "as it is")]
        output = "Q8_0" if self.default in ("Q8_0", "MXFP4") else "Q6_K"
        clauses = [Clause("output.weight, or a tied token_embd.weight", output)]
        clauses += [Clause("token_embd.weight", self.token_embd)] if self.token_embd else []
        for kind, rules in (("attn_v", self.attn_v), ("ffn_down", self.ffn_down), ("attn_output", self.attn_output)):
            clauses += [Clause(kind, r.type, "" if r.when is ALWAYS else r.when.words) for r in rules]
        if self.default == "MXFP4":
            clauses.append(Clause("matrices outside experts", "Q8_0"))
        else:
            attn_output = "Q5_K" if self.name in _EIGHT_EXPERTS_OUTPUT else self.default
            clauses.append(Clause("attn_v, attn_k", "Q8_0", "exactly 8 experts"))
            clauses.append(Clause("attn_output", attn_output, "exactly 8 experts"))
            clauses += self._describe_70b()
        clauses.append(Clause("other weight matrices", self.default))
        smaller = FALLBACKS.get(self.default)
        if smaller:
            clauses.append(Clause("rows that no block divides", smaller, f"a smaller block than {self.default}'s"))
        return [*clauses, Clause("the rest", "as it is")]

    def _describe_70b(self) -> list[Clause]:
        types = {self.default, *(rule.type for rule in self.attn_v)} & set(_RAISED_IN_70B)
        return [Clause("attn_v", "Q5_K", f"instead of {' or '.join(sorted(types))}, in 70B models")] if types else []

    def _assign(self, slot: Slot, facts: Facts, counts: dict[str, int]) -> Assignment:
        refusal = not_quantized(slot)
        if refusal:
            return Assignment(slot.name, slot.role, slot.shape, slot.keep, refusal)
        asked, reason = self._choose(slot, facts, counts)
        kind, reason = _fall_back(asked, reason, slot.shape)
        if kind == "Q8_0" and self._output_fell_back(slot, facts):
            asked = "Q6_K"
        return Assignment(
            slot.name, slot.role, slot.shape, _precision(kind), reason, None if kind == asked else _precision(asked)
        )

    def _choose(self, slot: Slot, facts: Facts, counts: dict[str, int]) -> tuple[str, str]:
        if self.default in _FLOATS:
            return self.default, "every weight matrix"
        kind = kind_of(slot.role)
        if kind == "output" or (kind == "token_embd" and facts.tied):
            return self._for_output(slot, facts)
        if kind == "token_embd" and self.token_embd:
            return self.token_embd, f"embedding of a {self.name} file"
        return self._exceptions(kind, facts, *self._by_rules(slot, kind, facts, counts))

    def _output_fell_back(self, slot: Slot, facts: Facts) -> bool:
        """Whether it is the output matrix and gets Q8_0 instead of Q6_K because the block does not divide its rows."""
        kind = kind_of(slot.role)
        is_output = kind == "output" or (kind == "token_embd" and facts.tied)
        return is_output and self.default not in _FLOATS and not fits(_precision(self.default), slot.shape)

    def _for_output(self, slot: Slot, facts: Facts) -> tuple[str, str]:
        what = "embedding doubles as output matrix" if facts.tied else "output matrix"
        if not fits(_precision(self.default), slot.shape):
            return "Q8_0", f"{what} whose rows of {slot.shape[-1]} {self.default} does not divide"
        return ("Q8_0" if self.default in ("Q8_0", "MXFP4") else "Q6_K"), what

    def _by_rules(self, slot: Slot, kind: Kind, facts: Facts, counts: dict[str, int]) -> tuple[str, str]:
        rules: Mapping[str, tuple[Rule, ...]] = {
            "attn_v": self.attn_v,
            "ffn_down": self.ffn_down,
            "attn_output": self.attn_output,
        }
        if self.default == "MXFP4" and len(slot.shape) < 3:
            return "Q8_0", "only experts get MXFP4"
        at = _place(slot.role, kind, facts, counts)
        for rule in rules.get(kind, ()):
            if rule.when.holds(at):
                where = "" if rule.when is ALWAYS else f", number {at.i} of {at.n}: {rule.when.words}"
                return rule.type, f"{kind}{where}"
        return self.default, f"default of {self.name}"

    def _exceptions(self, kind: Kind, facts: Facts, chosen: str, reason: str) -> tuple[str, str]:
        if facts.experts == 8 and self.default != "MXFP4":
            if kind in ("attn_v", "attn_k"):
                return "Q8_0", f"{kind} of eight experts"
            if kind == "attn_output":
                eight_experts = self.name in _EIGHT_EXPERTS_OUTPUT
                return (
                    ("Q5_K", "attn_output of eight experts")
                    if eight_experts
                    else (self.default, f"default of {self.name}")
                )
        if kind == "attn_v" and facts.is_70b and chosen in _RAISED_IN_70B:
            return "Q5_K", f"attn_v of a 70B model, {reason}"
        return chosen, reason


def not_quantized(slot: Slot) -> str:
    """Why llama.cpp leaves a tensor as it is; empty if it quantizes it."""
    if sum(1 for _ in _from_first_above_1(slot.shape)) < 2:
        return "a vector"
    if not slot.role.endswith("weight"):
        return "no weight"
    return next((why for pattern, why in LEFT_ALONE.items() if re.search(pattern, slot.role)), "")


def _from_first_above_1(shape: Sequence[int]) -> Iterator[int]:
    """The dimensions that ggml counts: without leading ones of size 1."""
    return itertools.dropwhile(lambda size: size == 1, shape)


def kind_of(role: str) -> Kind:
    """The kind of a tensor in the rules, from its canonical name."""
    if role == "output.weight":
        return "output"
    if role in ("token_embd.weight", "per_layer_token_embd.weight"):
        return "token_embd"
    if "attn_qkv.weight" in role or "attn_v.weight" in role:
        return "attn_v"
    if "attn_k.weight" in role:
        return "attn_k"
    if "attn_output.weight" in role:
        return "attn_output"
    return "ffn_down" if "ffn_down" in role else "other"


def _place(role: str, kind: Kind, facts: Facts, counts: dict[str, int]) -> Place:
    i = counts[kind] = counts.get(kind, -1) + 1
    if kind == "ffn_down" and facts.experts > 1:
        i = layer_of(role)
    return Place(i, facts.attn_v if kind == "attn_v" else facts.layers, facts)


def layer_of(role: str) -> int:
    """Number of the layer; -1 for a tensor outside the layers."""
    parts = role.split(".")
    return int(parts[1]) if parts[0] == "blk" and len(parts) > 2 and parts[1].isdecimal() else -1


def _facts(slots: Sequence[Slot], config: ModelConfig | None, importance: bool) -> Facts:
    shapes = {slot.role: slot.shape for slot in slots}
    routers = [shape[0] for role, shape in shapes.items() if role.endswith("ffn_gate_inp.weight")]
    return Facts(
        layers=config.layers if config else max(map(layer_of, shapes), default=-1) + 1,
        sharing=_sharing(shapes, config),
        experts=routers[0] if routers else 0,
        tied="output.weight" not in shapes,
        importance=importance,
        attn_v=sum(kind_of(role) == "attn_v" for role in shapes),
    )


def _sharing(shapes: Mapping[str, tuple[int, ...]], config: ModelConfig | None) -> int:
    """Query heads that share a key head; llama.cpp takes the first layer's: 0 where that has neither."""
    if config:
        attends = any(f"blk.0.{name}.weight" in shapes for name in ("attn_k", "attn_qkv"))
        return config.heads // config.kv_heads if attends else 0
    return _sharing_shown(shapes)


def _sharing_shown(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Query rows per key row of the first layer that shows them; 1 where none does."""
    for role, shape in shapes.items():
        keys = shapes.get(role.replace("attn_q.", "attn_k."))
        if role.endswith("attn_q.weight") and keys:
            return shape[0] // max(1, keys[0])
    return 1


def _fall_back(kind: str, reason: str, shape: Sequence[int]) -> tuple[str, str]:
    if fits(_precision(kind), shape):
        return kind, reason
    smaller = FALLBACKS.get(kind, kind)
    chosen = smaller if fits(_precision(smaller), shape) else "F16"
    return chosen, f"{reason}; rows of {shape[-1]} are no multiple of {kind}'s block"


def _precision(kind: str) -> Precision:
    return find_precision(f"float:{kind}" if kind in _FLOATS else f"ggml:{kind}")


def _only(kind: str) -> tuple[Rule, ...]:
    return (Rule(kind, ALWAYS),)


F32 = GgufRecipe("F32", "F32")
F16 = GgufRecipe("F16", "F16")
BF16 = GgufRecipe("BF16", "BF16")
Q8_0 = GgufRecipe("Q8_0", "Q8_0")
Q6_K = GgufRecipe("Q6_K", "Q6_K")
Q5_1 = GgufRecipe("Q5_1", "Q5_1")
Q5_0 = GgufRecipe("Q5_0", "Q5_0", ffn_down=(Rule("Q5_1", FIRST_8TH_WEIGHED),))
Q5_K_M = GgufRecipe("Q5_K_M", "Q5_K", attn_v=(Rule("Q6_K", MORE),), ffn_down=(Rule("Q6_K", MORE),))
Q5_K_S = GgufRecipe("Q5_K_S", "Q5_K")
Q4_1 = GgufRecipe("Q4_1", "Q4_1")
Q4_0 = GgufRecipe("Q4_0", "Q4_0", ffn_down=(Rule("Q4_1", FIRST_8TH_WEIGHED),))
Q4_K_M = GgufRecipe("Q4_K_M", "Q4_K", attn_v=(Rule("Q6_K", MORE),), ffn_down=(Rule("Q6_K", MORE),))
Q4_K_S = GgufRecipe("Q4_K_S", "Q4_K", attn_v=(Rule("Q5_K", FIRST_4),), ffn_down=(Rule("Q5_K", FIRST_8TH),))
IQ4_NL = GgufRecipe("IQ4_NL", "IQ4_NL", attn_v=(Rule("Q5_K", SHARED),), ffn_down=(Rule("Q5_K", FIRST_8TH_BLIND),))
IQ4_XS = GgufRecipe("IQ4_XS", "IQ4_XS", attn_v=(Rule("Q5_K", SHARED),), ffn_down=(Rule("Q5_K", FIRST_8TH_BLIND),))
MXFP4_MOE = GgufRecipe("MXFP4_MOE", "MXFP4")
Q3_K_L = GgufRecipe("Q3_K_L", "Q3_K", attn_v=_only("Q5_K"), ffn_down=_only("Q5_K"), attn_output=_only("Q5_K"))
Q3_K_M = GgufRecipe(
    "Q3_K_M",
    "Q3_K",
    attn_v=(Rule("Q5_K", FIRST_2), Rule("Q4_K", ALWAYS)),
    ffn_down=(Rule("Q5_K", FIRST_16TH), Rule("Q4_K", ALWAYS)),
    attn_output=_only("Q4_K"),
)
Q3_K_S = GgufRecipe("Q3_K_S", "Q3_K")
Q2_K = GgufRecipe(
    "Q2_K",
    "Q2_K",
    attn_v=(Rule("Q4_K", SHARED), Rule("Q3_K", ALWAYS)),
    ffn_down=_only("Q3_K"),
    attn_output=_only("Q3_K"),
)
Q2_K_S = GgufRecipe("Q2_K_S", "Q2_K", attn_v=(Rule("Q4_K", SHARED),), ffn_down=(Rule("Q4_K", FIRST_8TH),))
Q2_0 = GgufRecipe("Q2_0", "Q2_0", token_embd="Q4_K")
TQ2_0 = GgufRecipe("TQ2_0", "TQ2_0", token_embd="Q4_K")
TQ1_0 = GgufRecipe("TQ1_0", "TQ1_0", token_embd="Q4_K")
Q1_0 = GgufRecipe("Q1_0", "Q1_0")

__all__ = [
    "ALWAYS",
    "BF16",
    "F16",
    "F32",
    "FALLBACKS",
    "FIRST_2",
    "FIRST_4",
    "FIRST_8TH",
    "FIRST_8TH_BLIND",
    "FIRST_8TH_WEIGHED",
    "FIRST_16TH",
    "IQ4_NL",
    "IQ4_XS",
    "LEFT_ALONE",
    "MORE",
    "MXFP4_MOE",
    "Q1_0",
    "Q2_0",
    "Q2_K",
    "Q2_K_S",
    "Q3_K_L",
    "Q3_K_M",
    "Q3_K_S",
    "Q4_0",
    "Q4_1",
    "Q4_K_M",
    "Q4_K_S",
    "Q5_0",
    "Q5_1",
    "Q5_K_M",
    "Q5_K_S",
    "Q6_K",
    "Q8_0",
    "SHARED",
    "TQ1_0",
    "TQ2_0",
    "Facts",
    "GgufRecipe",
    "Kind",
    "Place",
    "Rule",
    "When",
    "kind_of",
    "layer_of",
    "not_quantized",
]
