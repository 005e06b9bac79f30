"""One OpenAI-compatible server for every runtime of edgekit.

This module is light: it names what the plugin brings, and imports none of it.
"""

from __future__ import annotations

from edgekit.plugin.hookspecs import Register, hookimpl

edgekit_api = (1, 0)


@hookimpl
def edgekit_register_commands(register: Register) -> None:
    """``edgekit serve ARTIFACT``."""
    register("serve", "edgekit_serve.command:command")


__all__ = ["edgekit_api", "edgekit_register_commands"]
