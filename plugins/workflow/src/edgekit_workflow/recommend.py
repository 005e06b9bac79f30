"""Recommends a framework, a precision and a recipe for a model on a machine, with reasons; and says why not others.

The rules are data (`edgekit_workflow.rules`). Sizes come from the recipes' own plans where the plugin is installed,
else from the tier's bits; speeds are predictions (`edgekit_workflow.speed`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs

from edgekit.architectures import ModelConfig
from edgekit.errors import UsageError
from edgekit.plugin import manager
from edgekit_workflow.assess import plan_of
from edgekit_workflow.hardware import Machine
from edgekit_workflow.memory import Memory, footprint, memory_needed, parameters
from edgekit_workflow.planning import Planned, uniform
from edgekit_workflow.rules import PRIORITIES, USES, Framework, Preference, Priority, Rules, Tier, default_rules
from edgekit_workflow.speed import moved_bytes, predicted_speed


@attrs.frozen
class Candidate:
    """One way to run a model.

    Attributes:
        framework, title: its key in the rules, and its name.
        format, runtime, recipe, tier: what to write, and with what to run it.
        nbytes: of the artifact's tensors.
        memory: predicted peak.
        tokens_per_second: predicted; None where the machine's bandwidth is unknown, and for encoders.
        reasons: sentences, the most important first.
        installed: whether its plugins are.
        command: that makes the artifact, or that installs the plugins.
    """

    framework: str
    title: str
    format: str
    runtime: str
    recipe: str
    tier: str
    nbytes: int
    memory: Memory
    tokens_per_second: float | None
    reasons: tuple[str, ...]
    installed: bool
    command: str


@attrs.frozen
class Rejected:
    """A way that was not taken.

    Attributes:
        framework: its name for people.
        tier: of precision; empty where the framework itself was rejected.
        reason: a sentence.
    """

    framework: str
    tier: str
    reason: str


@attrs.frozen
class Recommendation:
    """What is recommended.

    Attributes:
        machine: for which.
        use, priority: what was asked.
        memory: bytes that the model may take.
        context: tokens.
        preference: name and reason of the rule that gave the order of the frameworks.
        ranked: the best first: each framework's best, then their others.
        rejected: the others.
    """

    machine: Machine
    use: str
    priority: str
    memory: int
    context: int
    preference: tuple[str, str]
    ranked: Sequence[Candidate]
    rejected: Sequence[Rejected]


def recommend(
    config: ModelConfig,
    machine: Machine,
    *,
    memory: int | None = None,
    priority: str = "quality",
    use: str | None = None,
    context: int | None = None,
    rules: Rules | None = None,
    source: str = "MODEL",
) -> Recommendation:
    """Recommend ways to run a model.

    Args:
        config: of the model.
        machine: this one or a profile.
        memory: bytes that the model may take in all; None: the rules' share of the machine's.
        priority: ``quality``, ``speed`` or ``size``.
        use: ``chat``, ``embedding`` or ``vision``; None: ``embedding`` for an encoder, else ``chat``.
        context: tokens; None: the use's, at most the model's.
        rules: None takes the plugin's.
        source: how the commands name the model.

    Raises:
        UsageError: an unknown priority or use, a use that contradicts the model, a memory that no tier fits (states
            what the smallest needs), or more memory or context than there is.
    """
    chosen = rules or default_rules()
    use = use or ("chat" if config.causal else "embedding")
    _refuse(config, machine, memory, priority, use, context)
    allowed = int(chosen.uses[use].share * machine.memory) if memory is None else memory
    tokens = min(config.context, chosen.uses[use].context) if context is None else context
    preference = chosen.preference(machine, use)
    ranked, rejected, smallest = _judged(
        _Question(config, machine, allowed, chosen.priorities[priority], use, tokens, chosen, source), preference
    )
    if not ranked:
        raise UsageError(_nothing(allowed, smallest, rejected))
    name = (preference.name, preference.reason)
    return Recommendation(machine, use, priority, allowed, tokens, name, ranked, rejected)


@attrs.frozen
class _Question:
    config: ModelConfig
    machine: Machine
    memory: int
    priority: Priority
    use: str
    context: int
    rules: Rules
    source: str


def _refuse(
    config: ModelConfig, machine: Machine, memory: int | None, priority: str, use: str, context: int | None
) -> None:
    if priority not in PRIORITIES:
        raise UsageError(f"priority {priority!r:.40}; choose {', '.join(PRIORITIES)}")
    if use not in USES:
        raise UsageError(f"use {use!r:.40}; choose {', '.join(USES)}")
    if use != "embedding" and not config.causal:
        raise UsageError(f"use {use!r}: the model is an encoder, which makes embeddings and writes no text")
    most = max([machine.memory, *(device.memory or 0 for device in machine.devices)])
    if memory is not None and memory > most:
        raise UsageError(f"memory {memory:,} bytes: {machine.name} has {most:,}; give less, or another device")
    if memory is not None and memory < 1:
        raise UsageError("memory 0; give the bytes that the model may take")
    if context is not None and not 1 <= context <= config.context:
        raise UsageError(f"context {context}; the model was trained for 1 to {config.context:,} tokens")


def _judged(question: _Question, preference: Preference) -> tuple[list[Candidate], list[Rejected], int]:
    """The candidates in order, those that were rejected, and the bytes of the smallest that was too large."""
    firsts: list[Candidate] = []
    others: list[Candidate] = []
    rejected: list[Rejected] = []
    smallest = 0
    for key in preference.order:
        framework = question.rules.frameworks[key]
        if problem := _unfit(question, framework):
            rejected.append(Rejected(framework.title, "", problem))
            continue
        fitting: list[Candidate] = []
        for tier in question.rules.tiers:
            if key not in tier.recipes:
                continue
            if problem := _unfit_tier(question, tier):
                rejected.append(Rejected(framework.title, tier.name, problem))
                continue
            candidate = _candidate(question, key, framework, tier, preference)
            needed = candidate.memory.needed
            if needed <= question.memory:
                fitting.append(candidate)
                continue
            smallest = min(smallest or needed, needed)
            reason = f"needs {needed:,} bytes of memory, {question.memory:,} are allowed"
            rejected.append(Rejected(framework.title, tier.name, reason))
        ordered = list(_ordered(fitting, question))
        firsts += ordered[:1]
        others += ordered[1:]
    for key, framework in question.rules.frameworks.items():
        if key not in preference.order:
            rejected.append(Rejected(framework.title, "", f"not a choice for {preference.name}"))
    return [*firsts, *others], rejected, smallest


def _unfit(question: _Question, framework: Framework) -> str:
    if question.machine.system not in framework.systems:
        return f"does not run on {question.machine.system}"
    if question.use not in framework.uses:
        return f"has no models for {question.use}"
    return ""


def _unfit_tier(question: _Question, tier: Tier) -> str:
    use = question.rules.uses[question.use]
    if tier.bits > question.priority.start:
        return f"more than the priority asks for: {question.priority.reason}"
    if tier.bits < use.least_bits:
        return f"too few bits for {question.use}: {use.reason}"
    count = parameters(question.config)
    if count < tier.least_parameters:
        return f"a model of {count:,} weights loses too much: {tier.reason}"
    return ""


def _ordered(candidates: Sequence[Candidate], question: _Question) -> Iterator[Candidate]:
    """Candidates of one framework, the best first."""
    bits = {tier.name: tier.bits for tier in question.rules.tiers}
    prefer, enough = question.priority.prefer, question.priority.enough

    def order(candidate: Candidate) -> tuple[bool, float]:
        width = bits[candidate.tier]
        if prefer == "larger":
            return width > enough, -width
        if prefer == "smaller":
            return width < enough, width if width >= enough else -width
        return False, width

    yield from sorted(candidates, key=order)


def _candidate(question: _Question, key: str, framework: Framework, tier: Tier, preference: Preference) -> Candidate:
    config, recipe = question.config, tier.recipes[key]
    plan: Planned | None = plan_of(config, key, framework, tier)
    exact = plan is not None
    plan = plan or uniform(config, tier.bits, "F16" if tier.bits >= 16 else "other")
    instructions = question.machine.instructions
    memory = memory_needed(config, question.context, framework.runtime, weights=plan.kinds, instructions=instructions)
    speed = predicted_speed(
        config,
        moved_bytes(config, plan.tensors),
        framework.runtime,
        question.machine,
        context=question.context // 2,
        state_element=footprint(framework.runtime).state_bytes,
        accelerator_share=question.rules.accelerator_share,
    )
    known = {registration.name for registration in manager().all("runtimes")}
    installed = exact and framework.runtime in known
    return Candidate(
        framework=key,
        title=framework.title,
        format=framework.format,
        runtime=framework.runtime,
        recipe=recipe,
        tier=tier.name,
        nbytes=plan.nbytes,
        memory=memory,
        tokens_per_second=speed,
        reasons=tuple(_reasons(question, tier, preference, plan)),
        installed=installed,
        command=_command(question.source, recipe, framework) if installed else _install(framework),
    )


def _reasons(question: _Question, tier: Tier, preference: Preference, plan: Planned) -> Iterator[str]:
    yield f"{preference.name}: {preference.reason}"
    yield f"{tier.name}: {tier.reason}"
    if plan.fallbacks:
        name, reason = next(iter(plan.fallbacks.items()))
        yield f"{len(plan.fallbacks)} tensors get another precision ({name}: {reason})"
    if tier.advice:
        yield tier.advice


def _command(source: str, recipe: str, framework: Framework) -> str:
    target = "model.gguf" if framework.format == "gguf" else f"model-{framework.format} --format {framework.format}"
    return f"edgekit quantize {source} {recipe} --to {target}"


def _install(framework: Framework) -> str:
    return f"pip install {' '.join(framework.distributions)}"


def _nothing(memory: int, smallest: int, rejected: Sequence[Rejected]) -> str:
    if smallest:
        return (
            f"nothing fits {memory:,} bytes of memory: the smallest choice needs {smallest:,}; give more memory, a "
            "shorter context, or take a smaller model"
        )
    return "nothing can be recommended: " + "; ".join(
        f"{r.framework}{r.tier and f' {r.tier}'}: {r.reason}" for r in rejected[:4]
    )


__all__ = ["Candidate", "Recommendation", "Rejected", "recommend"]
