"""One OpenAI-compatible server for every runtime of edgekit.

This module is light: it registers the plugin's command by name, and does not import it.
"""

from __future__ import annotations

from edgekit.plugin.hookspecs import Register, hookimpl

edgekit_api = (1, 0)


@hookimpl
def edgekit_register_commands(register: Register) -> None:
    """Register ``edgekit serve ARTIFACT``."""
    register("serve", "edgekit_serve.command:command")


__all__ = ["edgekit_api", "edgekit_register_commands"]
