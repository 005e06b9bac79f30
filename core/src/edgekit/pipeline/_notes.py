"""Notes of a conversion: a sentence by kind, for the manifest (except `OF_THE_RUN`) and for one line on stderr.

| kind           | says                                                                            |
|----------------|---------------------------------------------------------------------------------|
| `precisions`   | how many tensors have which precision, and the bits a weight                     |
| `fell_back`    | matrices that could not have the precision asked for                            |
| `merged`       | the adapter that was merged into the model                                      |
| `carried`      | matrices that were quantized before and keep their codes in another precision   |
| `decoded`      | matrices that were quantized before and are floats now                          |
| `requantized`  | matrices that were quantized before, and are again                              |
| `importance`   | columns and matrices without importance                                         |
| `rounding`     | matrices rounded with error feedback, and others                                |
| `no_tokenizer` | the model has none                                                              |
| `merged_tokens`| tokens that only files beside the vocabulary name                               |
| `tokenizer`    | end tokens that do not exist; placeholders that were given a name               |
| `source`       | what its reader left out or took for the same: an adapter, a copy of a matrix   |
| `replaced`     | an earlier artifact stood at the target                                         |
| `restarted`    | an interrupted run's work could not be used                                     |
| `sent_back`    | workers elsewhere do not see the target, and sent what they encoded             |

Formats add kinds of their own (`edgekit.artifact.Layout.notes`, and ``notes(layout, plan)`` of a format): tokens that
were added to fill the embedding, or other readers that cannot load the target. A writer adds what turns out while it
writes (``remarks``).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from edgekit.artifact import Artifact, Format, Layout
from edgekit.encoding._importance import Filled, stack_of
from edgekit.errors import EdgekitError, UsageError, counted, option
from edgekit.files._problems import writing
from edgekit.plugin._registry import manager
from edgekit.recipe import Assignment, Plan, Slot, quantized
from edgekit.tensor import EncodedTensor

#: The kinds in the order of the line; all others follow.
ORDER = (
    "precisions",
    "merged",
    "fell_back",
    "carried",
    "decoded",
    "requantized",
    "importance",
    "rounding",
    "no_tokenizer",
)
#: Kinds that are left out of the manifest, so that the same command always writes the same bytes.
OF_THE_RUN = ("replaced", "restarted", "sent_back")
#: The share of the weights to be quantized that must be quantized.
HALF = 0.5


def summary_line(notes: Mapping[str, str]) -> str:
    """Return the notes as one line."""
    kinds = sorted(notes, key=lambda kind: (ORDER.index(kind) if kind in ORDER else len(ORDER), kind))
    return "; ".join(notes[kind] for kind in kinds)


def conversion_notes(
    chosen: Format, layout: Layout, plan: Plan, target: Path, filled: Filled | None = None
) -> dict[str, str]:
    """Return the notes of a plan before it is executed, by kind.

    Args:
        chosen: the format.
        layout: the tensors to store.
        plan: the precision of each tensor.
        target: the path to write.
        filled: the importance matrix, if one is used.
    """
    pairs = list(zip(layout.slots, plan, strict=True))
    format_notes = getattr(chosen, "notes", None)
    sentences = {
        "precisions": _precisions(plan),
        "merged": layout.source.run_notes.get("merged", ""),
        "fell_back": _fell_back(plan),
        "carried": _carried(pairs),
        "decoded": _decoded(pairs),
        "requantized": _requantized(pairs),
        "importance": _importance(plan, filled) if filled else "",
        "no_tokenizer": "" if layout.model is None else without_tokenizer(layout.source),
        "merged_tokens": "" if layout.model is None else _merged_tokens(layout.source),
        "tokenizer": "" if layout.model is None else _tokenizer(layout.source),
        "replaced": replaced(target),
        **layout.notes,
        **(format_notes(layout, plan) if format_notes else {}),
    }
    return {kind: sentence for kind, sentence in sentences.items() if sentence}


def without_tokenizer(artifact: Artifact) -> str:
    """Return the note on a missing tokenizer; empty if the artifact has one, even one that edgekit cannot read."""
    try:
        tokenizer = artifact.tokenizer
    except EdgekitError:
        return ""
    return "" if tokenizer is not None else "the model has no tokenizer, so it takes token ids only"


def replaced(target: Path) -> str:
    """Return the note on a target that is replaced; empty if nothing exists there."""
    with writing(target):
        exists = any(target.iterdir()) if target.is_dir() else os.path.lexists(target)
    return "what was at the target before is replaced" if exists else ""


def _merged_tokens(artifact: Artifact) -> str:
    try:
        merged = artifact.tokenizer.merged if artifact.tokenizer else 0
    except EdgekitError:
        return ""
    if not merged:
        return ""
    lacking = "that the vocabulary lacks"
    tokens = counted(merged, f"token {lacking} was", f"tokens {lacking} were")
    return f"{tokens} taken from tokenizer_config.json or added_tokens.json"


def _tokenizer(artifact: Artifact) -> str:
    try:
        return "; ".join(artifact.tokenizer.remarks) if artifact.tokenizer else ""
    except EdgekitError:
        return ""


def _precisions(plan: Plan) -> str:
    counts = Counter(line.precision.name for line in plan)
    if not counts:
        return ""
    shown = ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])))
    return f"{counted(len(plan), 'tensor')}: {shown}; {float(plan.bits_per_weight):.2f} bits a weight"


def _fell_back(plan: Plan) -> str:
    fallen = [line for line in plan if line.fell_back]
    if not fallen:
        return ""
    kinds = Counter(f"{line.asked} → {line.precision}" for line in fallen)
    shown = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items(), key=lambda item: (-item[1], item[0])))
    bits, asked = float(plan.bits_per_weight), float(plan.asked_bits_per_weight)
    return f"{_matrices(len(fallen))} fell back ({shown}): {bits:.2f} bits a weight instead of {asked:.2f}"


def _carried(pairs: Iterable[tuple[Slot, Assignment]]) -> str:
    kinds = Counter(
        f"{tensor.origin} → {tensor.precision}"
        for tensor, line in _encoded(pairs)
        if tensor.origin is not None and tensor.precision == line.precision
    )
    return f"{_matrices(kinds.total())} carried over without changing a value ({_listed(kinds)})" if kinds else ""


def _decoded(pairs: Iterable[tuple[Slot, Assignment]]) -> str:
    kinds = Counter(_before(tensor) for tensor, line in _encoded(pairs) if not quantized(line.precision))
    return f"{_matrices(kinds.total())} quantized already ({_listed(kinds)}) were decoded to floats" if kinds else ""


def _requantized(pairs: Iterable[tuple[Slot, Assignment]]) -> str:
    again = Counter(
        _before(tensor)
        for tensor, line in _encoded(pairs)
        if quantized(line.precision) and tensor.precision != line.precision
    )
    if not again:
        return ""
    return (
        f"{_matrices(again.total())} quantized already ({_listed(again)}) were quantized again; "
        "start from the full precision"
    )


def _encoded(pairs: Iterable[tuple[Slot, Assignment]]) -> Iterator[tuple[EncodedTensor, Assignment]]:
    """Yield the tensors that are quantized already."""
    for slot, line in pairs:
        if isinstance(slot.tensor, EncodedTensor) and quantized(slot.tensor.precision):
            yield slot.tensor, line


def _before(tensor: EncodedTensor) -> str:
    return (tensor.origin or tensor.precision).name


def _listed(kinds: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))


def _importance(plan: Plan, filled: Filled) -> str:
    used = {stack_of(line.role)[0] for line in plan if quantized(line.precision)}
    columns = {name: count for name, count in filled.columns.items() if name in used}
    without = [name for name in filled.without if name in used]
    experts = {name: count for name, count in filled.experts.items() if name in used}
    unreached = counted(sum(experts.values()), "expert")
    missing = sum(1 for n in used if n not in filled.importance and n not in filled.without and n not in _OUTPUTS)
    low = f"{counted(sum(columns.values()), 'column')} of {_matrices(len(columns))} without importance"
    parts = [
        f"{low} got the smallest of their matrix" if columns else "",
        f"{unreached} in {_matrices(len(experts))} that the text never reached encoded without" if experts else "",
        f"{_matrices(len(without))} without any importance encoded without" if without else "",
        f"{_matrices(missing)} not in the importance matrix" if missing else "",
    ]
    return ", ".join(filter(None, parts))


#: Matrices that calibration leaves out by default.
_OUTPUTS = ("output.weight", "token_embd.weight")


def _matrices(count: int) -> str:
    return counted(count, "matrix", "matrices")


def refuse_unquantized(plan: Plan, where: str, format_name: str) -> None:
    """Raise if a plan quantizes nothing, or less than half of the weights that its recipe should quantize.

    Args:
        plan: of the artifact to be written; a plan whose recipe specifies only floats passes.
        where: the source, for the message.
        format_name: of the target.

    Raises:
        UsageError: states the share that is quantized, why it is not more, and which recipes fall back.
    """
    asked = [line for line in plan if quantized(line.asked or line.precision)]
    done = [line for line in asked if quantized(line.precision)]
    requested = sum(line.size for line in asked)
    share = sum(line.size for line in done) / requested if requested else 0.0
    if not len(plan) or (not asked and any(len(line.shape) > 1 for line in plan)):
        return
    if asked and share >= HALF:
        return
    allow = f"or allow it with {option('allow_unquantized')}"
    if not asked:
        raise UsageError(f"{where}: {plan.recipe} finds no weight matrix to quantize; convert the model, {allow}")
    left = next(line for line in asked if line not in done)
    cure = _recipes_that_fall_back(left, format_name)
    raise UsageError(
        f"{where}: {plan.recipe} quantizes {len(done)} of {_matrices(len(asked))}, {share:.1%} of the weights "
        f"({left.name}: {left.reason}); take {cure}a precision with a smaller block, {allow}"
    )


def _recipes_that_fall_back(line: Assignment, format_name: str) -> str:
    kind = line.asked.kind if line.asked else ""
    names = [
        r.name
        for r in manager().all("recipes")
        if r.name.startswith(f"{kind}_") and format_name in r.options.get("formats", (format_name,))
    ]
    return f"a recipe, which falls back by itself ({', '.join(names)}), " if names else ""


__all__ = ["OF_THE_RUN", "ORDER", "conversion_notes", "refuse_unquantized", "summary_line", "without_tokenizer"]
