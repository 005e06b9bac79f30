"""The recipe protocol and the core's recipes: one precision for all matrices, no change, and the user's rules."""

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

if TYPE_CHECKING:  # mypy's view of a protocol's metaclass
    _ProtocolMeta = ABCMeta
else:
    _ProtocolMeta = type(Protocol)


class _Making(_ProtocolMeta):
    """Adds the constructor `of` to `Recipe`. As a method of the protocol, every recipe would have to implement it."""

    def of(
        cls,  # noqa: N805  - a metaclass
        rules: Mapping[str, str | Precision],
        base: str | Precision | Recipe | None = None,
        *,
        name: str = "",
    ) -> Rules:
        """Return a recipe of rules; the first pattern that matches a tensor decides.

        Args:
            rules: patterns (``*``, ``?``, ``[abc]``) of tensor names, canonical (``blk.0.attn_q.weight``) or the
                target's own, each with a precision: its full name (``"ggml:Q4_0"``), or the target format's short
                one (``"Q4_0"``). A pattern is about matrices; vectors (norms, biases) keep their precision, unless a
                pattern is the tensor's full name.
            base: for tensors that no pattern matches: a recipe, a precision, or the name of one. None leaves them
                unchanged.
            name: for the manifest; derived from the base's name by default.

        Raises:
            UsageError: there are no rules, or a rule is not a pattern with a precision.

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
        """The name by which users choose it."""
        ...

    def plan(self, slots: Sequence[Slot], config: ModelConfig | None, importance: bool = False) -> Plan:
        """Return the precision of each tensor, with a reason.

        Args:
            slots: the tensors in the order of the file.
            config: the model's hyper-parameters; None if the family is unknown.
            importance: whether an importance matrix is used.

        Raises:
            UnsupportedModelError: the recipe requires the family, and `config` is None.
        """
        ...


@attrs.frozen
class Clause:
    """One line of a recipe's description.

    Attributes:
        tensors: a pattern of names, or a description.
        precision: of those tensors.
        when: a condition in words; empty if there is none.
    """

    tensors: str
    precision: str
    when: str = ""


@attrs.frozen
class Uniform:
    """One precision for every weight matrix whose rows fit its blocks; all other tensors are unchanged."""

    precision: Precision

    @property
    def name(self) -> str:
        """The precision's name."""
        return self.precision.name

    def plan(self, slots: Sequence[Slot], config: ModelConfig | None, importance: bool = False) -> Plan:
        """Assign the precision to every weight matrix whose rows fit its blocks."""
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
        """Return the description that ``edgekit recipes`` shows."""
        return [Clause("weight matrices", self.name), Clause("the rest", "as it is")]


@attrs.frozen
class AsIs:
    """Leaves every tensor in its precision."""

    name: str = "as is"

    def plan(self, slots: Sequence[Slot], config: object, importance: bool = False) -> Plan:
        """Keep encoded tensors encoded, if the format supports it, and float matrices in their type."""
        return Plan(self.name, tuple(_as_it_is(slot, "as in the source") for slot in slots))

    def describe(self) -> list[Clause]:
        """Return the description that ``edgekit recipes`` shows."""
        return [Clause("all tensors", "as it is")]


def _as_it_is(slot: Slot, reason: str) -> Assignment:
    precision = slot.keep
    if not isinstance(slot.tensor, EncodedTensor) and len(slot.shape) > 1:
        precision = own_precision(slot.tensor)
    return Assignment(slot.name, slot.role, slot.shape, precision, reason)


def own_precision(tensor: Tensor) -> Precision:
    """Return the float precision of a tensor's dtype; F32 for other dtypes."""
    return find_precision({"float16": "float:F16", "bfloat16": "float:BF16"}.get(tensor.dtype, "float:F32"))


@attrs.frozen
class Rule:
    """A precision for the tensors whose name matches a pattern.

    Attributes:
        pattern: with shell wildcards, matched against the tensor's canonical and target names; case-sensitive.
        precision: a precision, or a name that `edgekit.quantize` resolves for the target's format.
    """

    pattern: str
    precision: str | Precision

    def matches(self, slot: Slot) -> bool:
        """Return whether the pattern matches a slot."""
        return fnmatchcase(slot.role, self.pattern) or fnmatchcase(slot.name, self.pattern)

    def names(self, slot: Slot) -> bool:
        """Return whether the pattern is the full name of a slot."""
        return self.pattern in (slot.role, slot.name)

    @property
    def shown(self) -> str:
        """The rule as it is written on the command line."""
        return f"{self.pattern}={self.precision}"


@attrs.frozen
class Rules:
    """Rules with a base recipe, returned by ``Recipe.of``; the first rule that matches decides.

    Attributes:
        rules: in order.
        base: for the other tensors; None leaves them unchanged.
        given_name: overrides `name`.
    """

    rules: tuple[Rule, ...]
    base: str | Precision | Recipe | None = None
    given_name: str = ""

    @property
    def name(self) -> str:
        """The given name, or the base's name with ``+rules``, or ``rules``."""
        base = self.base if isinstance(self.base, str) else getattr(self.base, "name", "")
        return self.given_name or (f"{base}+rules" if base else "rules")

    def resolved(self, precision: Callable[[str], Precision], base: Callable[[str | Precision], Recipe]) -> Rules:
        """Return the rules with the names of precisions and of the base looked up."""
        rules = (attrs.evolve(r, precision=_looked_up(r, precision)) for r in self.rules)
        base_recipe = base(self.base) if isinstance(self.base, str | Precision) else self.base
        return attrs.evolve(self, rules=tuple(rules), base=base_recipe, given_name=self.name)

    def plan(self, slots: Sequence[Slot], config: ModelConfig | None, importance: bool = False) -> Plan:
        """Assign each tensor the precision of the first rule that matches; see `Recipe.plan`.

        Raises:
            UsageError: a pattern decides on no tensor; names similar tensors.
            UnknownPrecisionError: a rule's precision does not exist.
        """
        self._refuse_idle(slots)
        base = self._base()
        rest = check_plan(base.plan(slots, config, importance), slots, base.name)
        return Plan(self.name, tuple(self._assign(slot, line) for slot, line in zip(slots, rest, strict=True)))

    def describe(self) -> list[Clause]:
        """Return the description that ``edgekit recipes`` shows."""
        rest = self._base()
        describe = getattr(rest, "describe", None)
        clauses = [Clause(rule.pattern, str(rule.precision)) for rule in self.rules]
        return [*clauses, *(describe() if describe else [Clause("the rest", rest.name)])]

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
        first = next((rule for rule in self.rules if rule.matches(slot)), None)
        return first if first and (len(slot.shape) > 1 or first.names(slot)) else None

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
    """Return names similar to the literal parts of a pattern; the first names if there are none."""
    names = list(dict.fromkeys(name for slot in slots for name in (slot.role, slot.name)))
    words = list(dict.fromkeys(word for name in names for word in (name, *name.split("."))))
    literals = [literal.strip(".") for literal in re.split(r"\[.*?\]|[*?]+", pattern.lower())]
    near = [word for literal in literals if literal for word in difflib.get_close_matches(literal, words, n=2)]
    similar = [next(name for name in names if word == name or word in name.split(".")) for word in near]
    return list(dict.fromkeys(similar))[:3] or names[:3]


def _looked_up(rule: Rule, find: Callable[[str], Precision]) -> Precision:
    return find(rule.precision) if isinstance(rule.precision, str) else rule.precision


__all__ = ["AsIs", "Clause", "Recipe", "Rule", "Rules", "Uniform", "own_precision"]
