"""OpenVINO and NNCF for edgekit: the IR as a format, compression, calibration, pruning, and the runtime.

This module is light: it names what the plugin brings, and imports none of it.
"""

from __future__ import annotations

import importlib.util

from edgekit.hookspecs import Register, hookimpl
from edgekit_openvino.modes import NATIVE, attribute

edgekit_api = (1, 0)


def _installed(package: str) -> bool:
    """Whether a package is there; without it nothing that needs it is offered, so that nothing is chosen in vain."""
    return importlib.util.find_spec(package) is not None


@hookimpl
def edgekit_register_quantizers(register: Register) -> None:
    """Encode with NNCF's own code: exact, and slower than the reference, so only on request."""
    for name in NATIVE if _installed("nncf") else ():
        register(name, f"edgekit_openvino.native:{attribute(name)}", claim="exact", speed=0.1)


@hookimpl
def edgekit_register_formats(register: Register) -> None:
    """Read and write OpenVINO IR; reading needs no library."""
    register("openvino", "edgekit_openvino.format:OpenVinoFormat", suffixes=(".xml",))


@hookimpl
def edgekit_register_devices(register: Register) -> None:
    """Say which devices the installed library finds."""
    if _installed("openvino"):
        register("openvino", "edgekit_openvino.library:devices")
