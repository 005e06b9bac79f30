"""What a recipe is, and the recipes of the core: one precision for all, as it is, and rules of one's own."""

from __future__ import annotations

import difflib
import re
from abc import ABCMeta
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Protocol

import attrs

from edgekit.architectures import ModelConfig
from edgekit.errors import UsageError
from edgekit.precision import Precision, find_precision, fits
from edgekit.recipe._check import check_plan
from edgekit.recipe._plan import Assignment, Plan, Slot, is_matrix
from edgekit.tensor import EncodedTensor, Tensor

if TYPE_CHECKING:  # what mypy takes a protocol's metaclass for
    _ProtocolMeta = ABCMeta
else:
    _ProtocolMeta = type(Protocol)


class _Making(_ProtocolMeta):
    """Gives `Recipe` its constructor. A method of the protocol itself would be asked of every recipe."""

    def of(
        cls,  # noqa: N805  - a metaclass
        rules: Mapping[str, str | Precision],
        base: str | Precision | Recipe | None = None,
        *,
        name: str = "",
    ) -> Rules:
        """A recipe of one's own: which tensors get which precision; the first pattern that matches decides.

        Args:
            rules: patterns (``*``, ``?``, ``[abc]``) of tensor names, canonical (``blk.0.attn_q.weight``) or the
                target's own, each with a precision: its full name (``"ggml:Q4_0"``), or the target format's short
                one (``"Q4_0"``). A pattern is about matrices; vectors (norms, biases) keep their precision, unless a
                pattern is the tensor's full name.
            base: decides on what no pattern matches: a recipe, a precision, or the name of one. None leaves that as
                it is.
            name: what the manifest calls it; made from the base's name by default.

        Raises:
            UsageError: no rules, or rules that are not patterns with precisions.

        Example:
            >>> recipe = Recipe.of({"*attn*": "Q8_0", "token_embd*": "F16", "*": "Q4_0"})
            >>> [rule.pattern for rule in recipe.rules]
            ['*attn*', 'token_embd*', '*']
        """
        return Rules(tuple(Rule(pattern, precision) for pattern, precision in _pairs(rules)), base, name)


def _pairs(rules: object) -> list[tuple[str, str | Precision]]:
    if not isinstance(rules, Mapping) or not rules:
        raise UsageError('a recipe is made of patterns with precisions, such as {"*attn*": "Q8_0", "*": "Q4_0"}')
    for pattern, precision in rules.items():
        if not isinstance(pattern, str) or not pattern or not isinstance(precision, str | Precision):
            raise UsageError(
                f"rule {pattern!r}: {precision!r:.80}; write a pattern of tensor names and the name of a precision, "
                'such as "*attn*": "Q8_0"'
            )
    return list(rules.items())


class Recipe(Protocol, metaclass=_Making):
    """Chooses a precision for every tensor that a format will store.

    ``Recipe.of`` makes one of rules. A recipe may also have ``describe()``, which gives its `Clause`s for
    ``edgekit recipes``.
    """

    @property
    def name(self) -> str:
        """What the user calls it."""
        ...

    def plan(self, slots: Sequence[Slot], config: ModelConfig | None, importance: bool = False) -> Plan:
        """Choose, giving a reason for each tensor.

        Args:
            slots: the tensors in the order of the file.
            config: the model's hyper-parameters; None where the family is not known.
            importance: whether an importance matrix is at hand.

        Raises:
            UnsupportedModelError: the recipe needs to know the family, and `config` is None.
        """
        ...


@attrs.frozen
class Clause:
    """One line of a recipe's description.

    Attributes:
        tensors: which ones: a pattern, or in words.
        precision: what they get.
        when: a further condition, in words; empty for always.
    """

    tensors: str
    precision: str
    when: str = ""


@attrs.frozen
class Uniform:
    """One precision for every weight matrix; norms, biases and what the blocks do not fit keep theirs."""

    precision: Precision

    @property
    def name(self) -> str:
        """The precision's name."""
        return self.precision.name

    def plan(self, slots: Sequence[Slot], config: ModelConfig | None, importance: bool = False) -> Plan:
        """Assign the precision to every slot of two or more dimensions whose rows it can hold."""
        return Plan(self.name, tuple(self._assign(slot) for slot in slots))

    def _assign(self, slot: Slot) -> Assignment:
        precision, reason, asked = self.precision, "weight matrix", None
        if not is_matrix(slot):
            precision, reason = slot.keep, "not a weight matrix"
            asked = self.precision if len(slot.shape) > 1 else None
        elif not fits(self.precision, slot.shape):
            precision, reason = slot.keep, f"rows of {slot.shape[-1]} are no multiple of {self.precision.block}"
            asked = self.precision
        return Assignment(slot.name, slot.role, slot.shape, precision, reason, asked)

    def describe(self) -> list[Clause]:
        """For people."""
        return [Clause("weight matrices", self.name), Clause("the rest", "as it is")]


@attrs.frozen
class AsIs:
    """Every tensor in the precision it has."""

    name: str = "as is"

    def plan(self, slots: Sequence[Slot], config: object, importance: bool = False) -> Plan:
        """Keep encoded tensors encoded, where the format can, and float matrices in their own type."""
        return Plan(self.name, tuple(_as_it_is(slot, "as in the source") for slot in slots))

    def describe(self) -> list[Clause]:
        """For people."""
        return [Clause("all tensors", "as it is")]


def _as_it_is(slot: Slot, reason: str) -> Assignment:
    precision = slot.keep
    if not isinstance(slot.tensor, EncodedTensor) and len(slot.shape) > 1:
        precision = own_precision(slot.tensor)
    return Assignment(slot.name, slot.role, slot.shape, precision, reason)


def own_precision(tensor: Tensor) -> Precision:
    """The plain float precision of a tensor's dtype; F32 for what has none."""
    return find_precision({"float16": "float:F16", "bfloat16": "float:BF16"}.get(tensor.dtype, "float:F32"))


@attrs.frozen
class Rule:
    """Tensors whose name matches a pattern get a precision.

    Attributes:
        pattern: of shell wildcards, matched against the tensor's canonical and target names; upper and lower case
            differ.
        precision: a precision, or a name that `edgekit.quantize` resolves for the target's format.
    """

    pattern: str
    precision: str | Precision

    def matches(self, slot: Slot) -> bool:
        """Whether the slot is one of those tensors."""
        return fnmatchcase(slot.role, self.pattern) or fnmatchcase(slot.name, self.pattern)

    def names(self, slot: Slot) -> bool:
        """Whether the pattern is the slot's full name."""
        return self.pattern in (slot.role, slot.name)

    @property
    def shown(self) -> str:
        """As it is written on the command line."""
        return f"{self.pattern}={self.precision}"


@attrs.frozen
class Rules:
    """Rules on top of a recipe, the first that matches decides; made by ``Recipe.of``.

    Attributes:
        rules: in order.
        base: decides on the rest; None leaves it as it is.
        given_name: overrides `name`.
    """

    rules: tuple[Rule, ...]
    base: str | Precision | Recipe | None = None
    given_name: str = ""

    @property
    def name(self) -> str:
        """As given, or the base's name with ``+rules``, or ``rules``."""
        base = self.base if isinstance(self.base, str) else getattr(self.base, "name", "")
        return self.given_name or (f"{base}+rules" if base else "rules")

    def resolved(self, precision: Callable[[str], Precision], base: Callable[[str | Precision], Recipe]) -> Rules:
        """The same with names looked up: of precisions, and of the base."""
        rules = (attrs.evolve(r, precision=_looked_up(r, precision)) for r in self.rules)
        found = base(self.base) if isinstance(self.base, str | Precision) else self.base
        return attrs.evolve(self, rules=tuple(rules), base=found, given_name=self.name)

    def plan(self, slots: Sequence[Slot], config: ModelConfig | None, importance: bool = False) -> Plan:
        """Assign by the first rule that matches; see `Recipe.plan`.

        Raises:
            UsageError: a pattern that decides on no tensor; names those that are near.
            UnknownPrecisionError: of a rule's precision.
        """
        self._refuse_idle(slots)
        base = self._base()
        rest = check_plan(base.plan(slots, config, importance), slots, base.name)
        return Plan(self.name, tuple(self._assign(slot, line) for slot, line in zip(slots, rest, strict=True)))

    def describe(self) -> list[Clause]:
        """For people."""
        rest = self._base()
        describe = getattr(rest, "describe", None)
        own = [Clause(rule.pattern, str(rule.precision)) for rule in self.rules]
        return [*own, *(describe() if describe else [Clause("the rest", rest.name)])]

    def _base(self) -> Recipe:
        if self.base is None:
            return AsIs()
        if isinstance(self.base, str):
            return Uniform(find_precision(self.base))
        return Uniform(self.base) if isinstance(self.base, Precision) else self.base

    def _assign(self, slot: Slot, rest: Assignment) -> Assignment:
        rule = self._rule_of(slot)
        if rule is None:
            return rest
        precision = find_precision(rule.precision)
        return Assignment(slot.name, slot.role, slot.shape, precision, f"rule {rule.shown}")

    def _rule_of(self, slot: Slot) -> Rule | None:
        found = next((rule for rule in self.rules if rule.matches(slot)), None)
        return found if found and (len(slot.shape) > 1 or found.names(slot)) else None

    def _refuse_idle(self, slots: Sequence[Slot]) -> None:
        decided = {id(self._rule_of(slot)) for slot in slots}
        for rule in self.rules:
            if slots and id(rule) not in decided:
                raise UsageError(f"pattern {rule.pattern!r} {self._why_idle(rule, slots)}")

    def _why_idle(self, rule: Rule, slots: Sequence[Slot]) -> str:
        matched = [slot for slot in slots if rule.matches(slot)]
        if not matched:
            return f"matches no tensor; near it are {', '.join(_near(rule.pattern, slots))}"
        earlier = next((self._rule_of(slot) for slot in matched if self._rule_of(slot)), None)
        if earlier is not None:
            return f"decides on nothing: {earlier.pattern!r} before it takes all that it matches; put it first"
        return (
            f"matches only vectors ({', '.join(slot.role for slot in matched[:3])}); "
            "write a name in full to choose its precision"
        )


def _near(pattern: str, slots: Sequence[Slot]) -> list[str]:
    """Names that look like what the pattern says between its wildcards; the first ones where none does."""
    names = list(dict.fromkeys(name for slot in slots for name in (slot.role, slot.name)))
    words = list(dict.fromkeys(word for name in names for word in (name, *name.split("."))))
    literals = [literal.strip(".") for literal in re.split(r"\[.*?\]|[*?]+", pattern.lower())]
    near = [word for literal in literals if literal for word in difflib.get_close_matches(literal, words, n=2)]
    found = [next(name for name in names if word == name or word in name.split(".")) for word in near]
    return list(dict.fromkeys(found))[:3] or names[:3]


def _looked_up(rule: Rule, find: Callable[[str], Precision]) -> Precision:
    return find(rule.precision) if isinstance(rule.precision, str) else rule.precision


__all__ = ["AsIs", "Clause", "Recipe", "Rule", "Rules", "Uniform", "own_precision"]
