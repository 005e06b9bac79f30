"""Plugins: the hook specifications, the registry and the manager that loads them."""

from __future__ import annotations

from edgekit.plugin._registry import API as API
from edgekit.plugin._registry import BUILT_IN as BUILT_IN
from edgekit.plugin._registry import Manager as Manager
from edgekit.plugin._registry import PluginInfo as PluginInfo
from edgekit.plugin._registry import Registration as Registration
from edgekit.plugin._registry import build as build
from edgekit.plugin._registry import entry_points as entry_points
from edgekit.plugin._registry import installed as installed
from edgekit.plugin._registry import manager as manager
from edgekit.plugin.hookspecs import Register as Register
from edgekit.plugin.hookspecs import hookimpl as hookimpl

__all__ = [
    "API",
    "BUILT_IN",
    "Manager",
    "PluginInfo",
    "Register",
    "Registration",
    "build",
    "entry_points",
    "hookimpl",
    "installed",
    "manager",
]
