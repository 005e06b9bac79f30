"""One workflow over all of edgekit's formats and runtimes.

This module registers what the plugin provides by name and imports none of the modules behind the names.
"""

from __future__ import annotations

edgekit_api = (1, 0)

__all__ = ["edgekit_api"]
