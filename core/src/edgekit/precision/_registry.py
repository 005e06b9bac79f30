"""The conventions, and the look-up of a precision by its name."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

import attrs

from edgekit.errors import PluginError, UnknownPrecisionError, near_names
from edgekit.precision import _affine, _floats, _mlx, _olive, _onnx, _openvino, _packed, ggml
from edgekit.precision._record import Precision, Spec

Resolve = Callable[[Spec], Precision | None]


class Implementation(Protocol):
    """What a plugin registers: the reference of one precision; see `edgekit.reference.Reference`."""

    @property
    def precision(self) -> Precision:
        """The record of the precision."""
        ...


@attrs.frozen
class Family:
    """A convention: the function that resolves a `Spec` to a `Precision`, and its catalogue."""

    name: str
    resolve: Resolve
    catalogue: Callable[[], Iterator[Precision]]


FAMILIES: dict[str, Family] = {
    module.CONVENTION: Family(module.CONVENTION, module.resolve, module.catalogue)
    for module in (_floats, _affine, ggml, _mlx, _openvino, _onnx, _olive, _packed)
}
# Precisions that plugins bring, and their implementations, by full name; filled by `register`.
_REGISTERED: dict[str, Precision] = {}
_IMPLEMENTATIONS: dict[str, object] = {}
_loading = threading.local()


def register(implementation: Implementation) -> None:
    """Make a plugin's precision known to `find_precision`, and its implementation to `edgekit.reference.reference`.

    Raises:
        PluginError: a convention of the core already has that name, or another record is registered under it.
    """
    precision = implementation.precision
    built_in = _built_in(Spec.parse(precision.name))
    if built_in or _REGISTERED.get(precision.name, precision) != precision:
        raise PluginError(
            f"precision {precision.name!r} exists already and cannot be replaced; give yours a convention of its own"
        )
    _REGISTERED[precision.name] = precision
    _IMPLEMENTATIONS[precision.name] = implementation


def implementation(precision: Precision) -> object | None:
    """Return the implementation that a plugin registered for a precision; None for the core's own and unknown ones."""
    if precision.name not in _IMPLEMENTATIONS and not _is_built_in(precision.name):
        load_plugins()
    return _IMPLEMENTATIONS.get(precision.name)


def catalogue() -> list[Precision]:
    """Return the precisions of the catalogue: the core's conventions first, then those that plugins registered."""
    core = [precision for family in FAMILIES.values() for precision in family.catalogue()]
    return core + list(_REGISTERED.values())


def find_precision(name: str | Precision) -> Precision:
    """Return the precision of that name, of the core or an installed plugin.

    Accepts ``<convention>:<kind>[-sym|-asym][-g<size>|-channel|-tensor][-reduced]``, or a name without
    convention if only one has it (``Q4_K``). Case is ignored. A `Precision` is returned unchanged.

    Raises:
        UnknownPrecisionError: no convention has it, or more than one has; the message lists similar names.
    """
    if isinstance(name, Precision):
        return name
    if not isinstance(name, str):
        raise UnknownPrecisionError(f"a precision is a Precision or its name, such as 'ggml:Q4_K'; not {name!r:.80}")
    spec = Spec.parse(name)
    matches = _known(name, spec)
    if not matches and spec:
        load_plugins()
        matches = _known(name, spec)
    matches = matches or _in_another_case(name)
    if len(matches) == 1:
        return matches[0]
    if matches:
        names = ", ".join(p.name for p in matches)
        raise UnknownPrecisionError(f"precision {name!r} is ambiguous: choose one of {names}")
    raise UnknownPrecisionError(_unknown(name, spec))


def _in_another_case(name: str) -> list[Precision]:
    """Return the precisions whose name differs from it in case only, as ``q4_k`` and ``GGML:Q4_K`` do."""
    lower = name.lower()
    convention, colon, kind = lower.rpartition(":")
    spellings = (lower, f"{convention}{colon}{kind.upper()}")
    matches = {p.name: p for spelling in spellings for p in _known(spelling, Spec.parse(spelling))}
    matches |= {p.name: p for p in catalogue() if lower in (p.name.lower(), p.name.lower().partition(":")[2])}
    return list(matches.values())


def _known(name: str, spec: Spec | None) -> list[Precision]:
    return _built_in(spec) + [p for p in _REGISTERED.values() if name in (p.name, p.name.partition(":")[2])]


def load_plugins() -> None:
    """Register the precisions that plugins bring; one that fails is skipped with a warning.

    A look-up by a plugin that is being loaded only sees what is registered by then.
    """
    from edgekit.plugin._registry import manager, skipped

    if getattr(_loading, "now", False):
        return
    _loading.now = True
    try:
        for registration in manager().all("precisions"):
            try:
                register(registration.load())
            except PluginError as error:
                skipped(registration, error)
    finally:
        _loading.now = False


@functools.lru_cache(1024)  # called for each chunk of rows; each name is parsed and resolved once
def _is_built_in(name: str) -> bool:
    return bool(_built_in(Spec.parse(name)))


def _built_in(spec: Spec | None) -> list[Precision]:
    if spec is None:
        return []
    if spec.convention is not None:
        families = [FAMILIES[spec.convention]] if spec.convention in FAMILIES else []
    else:
        families = list(FAMILIES.values())
    return [p for family in families if (p := family.resolve(spec)) is not None]


def limits(name: str) -> str:
    """Return what the convention of a name that it does not have allows; empty where the name's form says it all."""
    spec = Spec.parse(name)
    return _onnx.limits(spec) if spec is not None and spec.convention == _onnx.CONVENTION else ""


def _unknown(name: str, spec: Spec | None) -> str:
    names = [p.name for p in catalogue()]
    bare = {n.partition(":")[2]: n for n in names}
    near = near_names(name, names) or [bare[each] for each in near_names(name, bare)]
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    form = "" if spec else " (the form is <convention>:<kind>[-sym|-asym][-g<size>|-channel|-tensor])"
    allowed = f"; {limits(name)}" if limits(name) else ""
    return f"unknown precision {name!r}{form}{allowed}{hint}; `edgekit precisions` lists all"
