"""Placeholder."""

from __future__ import annotations

from collections.abc import Iterator

from edgekit.precision._record import Precision, Spec

CONVENTION = "mlx"


def resolve(spec: Spec) -> Precision | None:
    return None


def catalogue() -> Iterator[Precision]:
    yield from ()
