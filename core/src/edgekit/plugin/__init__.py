"""Plugins: the hook specifications, the registry and the manager that loads them."""

from __future__ import annotations

from edgekit.plugin.hookspecs import Register as Register
from edgekit.plugin.hookspecs import hookimpl as hookimpl
from edgekit.plugin.registry import API as API
from edgekit.plugin.registry import BUILT_IN as BUILT_IN
from edgekit.plugin.registry import Manager as Manager
from edgekit.plugin.registry import PluginInfo as PluginInfo
from edgekit.plugin.registry import Registration as Registration
from edgekit.plugin.registry import build as build
from edgekit.plugin.registry import entry_points as entry_points
from edgekit.plugin.registry import installed as installed
from edgekit.plugin.registry import manager as manager

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
