"""Detect another project's distribution that installs the module `edgekit` too; the package index has one."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata

from edgekit.plugin._registry import BUILT_IN

MODULE = "edgekit"
CURE = f"pip uninstall {{}}, then pip install --force-reinstall --no-deps {BUILT_IN} (or ./core of a checkout)"


def foreign_owners() -> Iterator[str]:
    """Return a sentence for each distribution other than `edgekit-core` that installs files into the module."""
    for name in sorted(set(metadata.packages_distributions().get(MODULE, ())) - {BUILT_IN}):
        yield (
            f"{name} {metadata.version(name)}: another project's distribution that installs the module {MODULE!r} too; "
            f"each overwrites the other's files. {CURE.format(name)}"
        )
