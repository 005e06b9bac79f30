"""What a model is, and what each backend and precision would make of it; from its header alone.

Whether weights were quantized once before is told from a few rows: values of a coarse grid repeat within groups in
which those of trained floats are nearly all different.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import attrs
import numpy as np

from edgekit.architectures import FAMILIES, ModelConfig, tensor_shapes
from edgekit.artifact import Artifact
from edgekit.errors import EdgekitError, UnsupportedModelError
from edgekit.plugin import manager
from edgekit.tensor import AnyTensor, EncodedTensor
from edgekit.typing import F32
from edgekit_workflow.memory import CONTEXT, Memory, kind_of, memory_needed, state_bytes
from edgekit_workflow.planning import Planned, planned
from edgekit_workflow.rules import Framework, Rules, Tier, default_rules
from edgekit_workflow.speed import active_share

#: Rows that are read of each of `_MATRICES` matrices to tell a coarse grid.
ROWS, _MATRICES = 16, 3
#: Lengths of groups in which values are counted, with the most different ones of a grid: half of those that trained
#: floats have, and 256 in a whole row.
_GROUPS = (32, 64, 128, 256)
_ROLES = {
    "embedding": re.compile(r"token_embd|position_embd|token_types|per_layer"),
    "output": re.compile(r"^output\.|^output$|dense_"),
    "experts": re.compile(r"_exps"),
    "router": re.compile(r"ffn_gate_inp"),
    "attention": re.compile(r"attn_(?!norm)(?!.*norm)|attn_q|attn_k|attn_v"),
    "recurrence": re.compile(r"ssm_|shortconv"),
    "feed-forward": re.compile(r"ffn_(?!.*norm)"),
}


@attrs.frozen
class Grid:
    """A sign that weights were quantized once.

    Attributes:
        tensor: in which it was seen, by its own name.
        bits: that suffice for the different values of a group.
        group: how many neighbouring values share so few; 0 for a whole row.
    """

    tensor: str
    bits: int
    group: int


@attrs.frozen
class Option:
    """What a backend would make of a model.

    Attributes:
        framework, title: its key in the rules, and its name.
        format, recipe, tier: of the artifact.
        nbytes: of its tensors on disk; headers and tokenizer not counted.
        memory: predicted peak at the context.
        fallbacks: tensors that cannot have the recipe's precision, by canonical name, with the reason.
        installed: whether the plugins that write and run it are.
    """

    framework: str
    title: str
    format: str
    recipe: str
    tier: str
    nbytes: int
    memory: Memory
    fallbacks: Mapping[str, str]
    installed: bool


@attrs.frozen
class Assessment:
    """What a model is.

    Attributes:
        path, format, family: of the artifact; the family is empty where edgekit does not know it.
        name: the model's own.
        parameters: all weights; `active`: those that a token uses.
        nbytes: on disk; `tensor_nbytes`: of the tensors.
        precisions: bytes by kind of precision.
        blocks: number of mixers by kind.
        roles: parameters by role of their tensors.
        context: tokens that the model was trained for; `planned_context`: for which memory is stated.
        state: bytes of keys, values and recurrences at that context, 2 bytes an element.
        predicts: whether it predicts next tokens; an encoder makes embeddings.
        multimodal: whether the checkpoint has parts for images or sound.
        options: what each backend and precision would make of it.
        grids: signs that the weights were quantized before.
        stored_quantized: whether the artifact itself stores quantized weights.
        problem: why there are no options; empty otherwise.
    """

    path: str
    format: str
    family: str
    name: str
    parameters: int
    active: int
    nbytes: int
    tensor_nbytes: int
    precisions: Mapping[str, int]
    blocks: Mapping[str, int]
    roles: Mapping[str, int]
    context: int
    planned_context: int
    state: int
    predicts: bool
    multimodal: bool
    options: Sequence[Option]
    grids: Sequence[Grid]
    stored_quantized: bool
    problem: str = ""


def assess(
    artifact: Artifact, context: int | None = None, *, rules: Rules | None = None, values: bool = True
) -> Assessment:
    """Assess a model.

    Args:
        artifact: of any format.
        context: tokens for which memory is stated; None for the model's own, at most `CONTEXT`.
        rules: that name the recipes to plan; None takes the plugin's.
        values: whether to read `ROWS` rows of three matrices, to tell whether the weights were quantized before.

    Raises:
        UsageError: a context below 1.
    """
    precisions: Counter[str] = Counter()
    for tensor in artifact.tensors.values():
        precisions[kind_of(tensor)] += tensor.nbytes
    encoded = any(isinstance(tensor, EncodedTensor) for tensor in artifact.tensors.values())
    grids = tuple(found_grids(artifact)) if values and not encoded else ()
    try:
        config = artifact.model.config
    except UnsupportedModelError as error:
        return _unknown(artifact, precisions, grids, encoded, str(error))
    tokens = min(config.context, CONTEXT) if context is None else context
    shapes = tensor_shapes(config)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    return Assessment(
        path=str(artifact.path),
        format=artifact.format,
        family=config.family,
        name=config.name,
        parameters=artifact.parameters,
        active=round(sum(size * active_share(config, name) for name, size in sizes.items())),
        nbytes=artifact.nbytes,
        tensor_nbytes=artifact.tensor_nbytes,
        precisions=dict(precisions),
        blocks=blocks(config),
        roles=roles(sizes),
        context=config.context,
        planned_context=tokens,
        state=state_bytes(config, tokens),
        predicts=config.causal,
        multimodal=is_multimodal(artifact),
        options=tuple(options(config, tokens, rules or default_rules())),
        grids=grids,
        stored_quantized=encoded,
    )


def _unknown(
    artifact: Artifact, precisions: Mapping[str, int], grids: tuple[Grid, ...], encoded: bool, problem: str
) -> Assessment:
    return Assessment(
        path=str(artifact.path),
        format=artifact.format,
        family="",
        name="",
        parameters=artifact.parameters,
        active=artifact.parameters,
        nbytes=artifact.nbytes,
        tensor_nbytes=artifact.tensor_nbytes,
        precisions=dict(precisions),
        blocks={},
        roles={},
        context=0,
        planned_context=0,
        state=0,
        predicts=False,
        multimodal=is_multimodal(artifact),
        options=(),
        grids=grids,
        stored_quantized=encoded,
        problem=problem,
    )


def blocks(config: ModelConfig) -> dict[str, int]:
    """Return the number of mixers of each kind in a model's blocks."""
    found: Counter[str] = Counter()
    for block in FAMILIES[config.family].network(config).blocks:
        found.update(mixer.name for mixer, _, _ in block.halves)
    return dict(found)


def roles(sizes: Mapping[str, int]) -> dict[str, int]:
    """Return the number of weights by role, of tensors by canonical name."""
    found: Counter[str] = Counter()
    for name, size in sizes.items():
        role = next((role for role, pattern in _ROLES.items() if pattern.search(name)), "norms and others")
        found[role] += size
    return dict(found.most_common())


def is_multimodal(artifact: Artifact) -> bool:
    """Whether a checkpoint has parts for images or sound beside its language model."""
    return any(key in artifact.config for key in ("vision_config", "audio_config", "clip.has_vision_encoder"))


def options(config: ModelConfig, context: int, rules: Rules) -> Iterator[Option]:
    """What each framework of the rules would make of a model in each tier, as far as its plugin is installed."""
    runtimes = {registration.name for registration in manager().all("runtimes")}
    for key, framework in rules.frameworks.items():
        for tier in rules.tiers:
            plan = plan_of(config, key, framework, tier)
            if plan is not None:
                recipe = tier.recipes[key]
                memory = memory_needed(config, context, framework.runtime, weights=plan.kinds)
                yield Option(
                    key,
                    framework.title,
                    framework.format,
                    recipe,
                    tier.name,
                    plan.nbytes,
                    memory,
                    plan.fallbacks,
                    framework.runtime in runtimes,
                )


def plan_of(config: ModelConfig, key: str, framework: Framework, tier: Tier) -> Planned | None:
    """Return what a framework makes of a model in a tier; None if it has no recipe there, or no plugin is installed."""
    recipe = tier.recipes.get(key)
    if recipe is None or framework.format not in {registration.name for registration in manager().all("formats")}:
        return None
    try:
        return planned(config, recipe, framework.format)
    except EdgekitError:  # the recipe is another plugin's, or does not fit such a model
        return None


def found_grids(artifact: Artifact) -> Iterator[Grid]:
    """The signs in an artifact of floats that its weights were quantized once; reads a few rows."""
    for name, tensor in _matrices(artifact.tensors):
        found = grid_of(tensor.float32(0, min(ROWS, tensor.rows)))
        if found is not None:
            yield Grid(name, *found)


def _matrices(tensors: Mapping[str, AnyTensor]) -> list[tuple[str, AnyTensor]]:
    """Three large matrices from the first, the middle and the last third, the embedding left out where possible."""
    wide = [(name, each) for name, each in tensors.items() if len(each.shape) > 1 and each.shape[-1] >= 64]
    inner = [(name, each) for name, each in wide if "embed" not in name and "lm_head" not in name] or wide
    if len(inner) <= _MATRICES:
        return inner
    return [inner[len(inner) * part // (2 * _MATRICES)] for part in (1, 3, 5)]


def grid_of(rows: F32) -> tuple[int, int] | None:
    """Return bits and group of the grid that rows lie on; None if they do not lie on one, or are constant.

    Values of 4 bits are at most 16 in each group; of 32 trained floats, about 31 differ even in bfloat16. Grids of more
    than 4 bits in groups of 32 cannot be told so: of 8 bits, only those whose scale a whole row shares.

    Args:
        rows: float32 [n, columns].
    """
    columns = rows.shape[-1]
    found: list[tuple[int, int]] = []
    for group in (size for size in _GROUPS if columns % size == 0):
        most = _different(rows.reshape(-1, group))
        if most is not None and most <= group // 2:
            found.append((max(1, math.ceil(math.log2(most))), group))
    most = _different(rows)
    if most is not None and most <= 256 and columns >= 1024:
        found.append((max(1, math.ceil(math.log2(most))), 0))
    return min(found, default=None)


def _different(groups: F32) -> int | None:
    """The most different values of any group but the 1 % with most; None where all are constant."""
    ordered = np.sort(groups, axis=-1)
    counts = 1 + np.count_nonzero(ordered[:, 1:] != ordered[:, :-1], axis=-1)
    varied = counts[counts > 1]
    if 2 * varied.size < counts.size:  # most groups are constant: an empty or a pruned matrix
        return None
    return int(np.quantile(varied, 0.99, method="lower"))


__all__ = [
    "ROWS",
    "Assessment",
    "Grid",
    "Option",
    "assess",
    "blocks",
    "found_grids",
    "grid_of",
    "is_multimodal",
    "options",
    "plan_of",
    "roles",
]
