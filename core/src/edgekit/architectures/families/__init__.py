"""The families that the core brings, one file each."""

from __future__ import annotations

__all__: list[str] = []
