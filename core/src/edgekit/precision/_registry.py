"""Which conventions there are, and how a name finds its precision."""

from __future__ import annotations

import difflib
import threading
from collections.abc import Callable, Iterator

import attrs

from edgekit.errors import PluginError, UnknownPrecisionError
from edgekit.precision import affine, floats, ggml, mlx, olive, onnx, openvino
from edgekit.precision._record import Precision, Spec

Resolve = Callable[[Spec], Precision | None]


@attrs.frozen
class Family:
    """A convention: what turns a `Spec` into a `Precision`, and the precisions worth listing."""

    name: str
    resolve: Resolve
    catalogue: Callable[[], Iterator[Precision]]


FAMILIES: dict[str, Family] = {
    module.CONVENTION: Family(module.CONVENTION, module.resolve, module.catalogue)
    for module in (floats, affine, ggml, mlx, openvino, onnx, olive)
}
# Precisions that plugins bring, by full name; filled by `register`.
_REGISTERED: dict[str, Precision] = {}
_loading = threading.local()


def register(precision: Precision) -> None:
    """Make a plugin's precision known to `Precision.parse`.

    Raises:
        PluginError: a convention of the core already has that name, or another record is registered under it.
    """
    built_in = _built_in(Spec.parse(precision.name))
    if built_in or _REGISTERED.get(precision.name, precision) != precision:
        raise PluginError(
            f"precision {precision.name!r} exists already and cannot be replaced; give yours a convention of its own"
        )
    _REGISTERED[precision.name] = precision


def catalogue() -> list[Precision]:
    """Every precision worth listing: the core's conventions first, then what plugins registered."""
    core = [precision for family in FAMILIES.values() for precision in family.catalogue()]
    return core + list(_REGISTERED.values())


def find(name: object) -> Precision:
    """The precision of that name; see `Precision.parse`."""
    if not isinstance(name, str):
        raise UnknownPrecisionError(f"a precision is a Precision or its name, such as 'ggml:Q4_K'; not {name!r:.80}")
    spec = Spec.parse(name)
    found = _known(name, spec)
    if not found and spec:
        _ask_plugins()
        found = _known(name, spec)
    found = found or _in_another_case(name)
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(p.name for p in found)
        raise UnknownPrecisionError(f"precision {name!r} is ambiguous: say which of {names}")
    raise UnknownPrecisionError(_unknown(name, spec))


def _in_another_case(name: str) -> list[Precision]:
    """Of ``q4_k`` or ``GGML:Q4_K``: the precisions whose name differs in upper and lower case only."""
    lower = name.lower()
    convention, colon, kind = lower.rpartition(":")
    spellings = (lower, f"{convention}{colon}{kind.upper()}")
    found = {p.name: p for spelling in spellings for p in _known(spelling, Spec.parse(spelling))}
    found |= {p.name: p for p in catalogue() if lower in (p.name.lower(), p.name.lower().partition(":")[2])}
    return list(found.values())


def _known(name: str, spec: Spec | None) -> list[Precision]:
    return _built_in(spec) + [p for p in _REGISTERED.values() if name in (p.name, p.name.partition(":")[2])]


def _ask_plugins() -> None:
    """Register what plugins bring; what a plugin asks while it is loaded is answered from what is known by then."""
    from edgekit.encoding.codecs import load_precisions

    if not getattr(_loading, "now", False):
        _loading.now = True
        try:
            load_precisions()
        finally:
            _loading.now = False


def _built_in(spec: Spec | None) -> list[Precision]:
    if spec is None:
        return []
    if spec.convention is not None:
        families = [FAMILIES[spec.convention]] if spec.convention in FAMILIES else []
    else:
        families = list(FAMILIES.values())
    return [p for family in families if (p := family.resolve(spec)) is not None]


def _unknown(name: str, spec: Spec | None) -> str:
    names = [p.name for p in catalogue()]
    bare = {n.partition(":")[2]: n for n in names}
    near = difflib.get_close_matches(name, names, n=3) or [bare[n] for n in difflib.get_close_matches(name, bare, n=3)]
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    form = "" if spec else " (the form is <convention>:<kind>[-sym|-asym][-g<size>|-channel|-tensor])"
    return f"unknown precision {name!r}{form}{hint}; `edgekit precisions` lists all"
