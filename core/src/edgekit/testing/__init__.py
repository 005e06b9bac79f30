"""The conformance kit: checks, strategies, small models and known-answer vectors, for edgekit and its plugins.

    import edgekit.testing

    @edgekit.testing.quantizer_checks(MyQuantizer(), expected_failures={"check_size": "pads its rows"})
    def test_conformance(check):
        check()

    results = edgekit.testing.run_quantizer_checks(MyQuantizer())   # the same without pytest

Formats, runtimes, their operations, passes and whole plugins are checked in the same way: ``format_checks``,
``runtime_checks``, ``ops_checks``, ``pass_checks``, ``plugin_checks``, and the same names with ``run_`` in front. Every
check has a stable name, ``check_<property>``; docs/reference/checks.md describes them all. Names are imported on first
use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekit.testing._kit import CheckFailure as CheckFailure
    from edgekit.testing._kit import NotApplicable as NotApplicable
    from edgekit.testing._kit import Profile as Profile
    from edgekit.testing._kit import Result as Result
    from edgekit.testing.formats import format_checks as format_checks
    from edgekit.testing.formats import run_format_checks as run_format_checks
    from edgekit.testing.operations import ops_checks as ops_checks
    from edgekit.testing.operations import run_ops_checks as run_ops_checks
    from edgekit.testing.passes import pass_checks as pass_checks
    from edgekit.testing.passes import run_pass_checks as run_pass_checks
    from edgekit.testing.plugins import plugin_checks as plugin_checks
    from edgekit.testing.plugins import run_plugin_checks as run_plugin_checks
    from edgekit.testing.quantizers import quantizer_checks as quantizer_checks
    from edgekit.testing.quantizers import run_quantizer_checks as run_quantizer_checks
    from edgekit.testing.runtimes import run_runtime_checks as run_runtime_checks
    from edgekit.testing.runtimes import runtime_checks as runtime_checks

_WHERE = {
    "CheckFailure": "_kit",
    "NotApplicable": "_kit",
    "Profile": "_kit",
    "Result": "_kit",
    "format_checks": "formats",
    "ops_checks": "operations",
    "pass_checks": "passes",
    "plugin_checks": "plugins",
    "quantizer_checks": "quantizers",
    "run_format_checks": "formats",
    "run_ops_checks": "operations",
    "run_pass_checks": "passes",
    "run_plugin_checks": "plugins",
    "run_quantizer_checks": "quantizers",
    "run_runtime_checks": "runtimes",
    "runtime_checks": "runtimes",
}
_ROOMS = ("formats", "models", "operations", "passes", "plugins", "quantizers", "runtimes", "strategies", "vectors")
__all__ = [*_WHERE, *_ROOMS]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        value = getattr(importlib.import_module(f"edgekit.testing.{_WHERE[name]}"), name)
        globals()[name] = value
        return value
    if name in _ROOMS:
        return importlib.import_module(f"edgekit.testing.{name}")
    raise AttributeError(f"module 'edgekit.testing' has no attribute {name!r}; it has {', '.join(sorted(__all__))}")
