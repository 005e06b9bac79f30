"""Runs NNCF and OpenVINO's converter without telemetry, progress bars and output on stdout.

By default both send usage events over the network, and NNCF logs to stdout, which is for data. In a `quiet` block they
do neither, and NNCF's warnings are collected. The settings are restored after the block, so that a program that uses
NNCF itself is not affected. Only one thread at a time may use the block, since the settings belong to the process.

Source: ``nncf/telemetry/wrapper.py``, ``nncf/common/logging`` of nncf 3.4.0; ``openvino_telemetry`` 2025.2.0.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
import threading
import warnings
from collections.abc import Iterator

import numpy as np

from edgekit_openvino.library import nncf, silent

_LOCK = threading.RLock()


class _Collected(logging.Handler):
    """Collects the messages of warnings and errors."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextlib.contextmanager
def quiet() -> Iterator[list[str]]:
    """Run nncf and openvino without output; yields the list to which NNCF's warnings are added."""
    numbers = np.errstate(all="ignore")
    with _LOCK, silent(), _no_bars(), _no_telemetry(), numbers, warnings.catch_warnings(), _log() as lines:
        warnings.simplefilter("ignore")
        yield lines


@contextlib.contextmanager
def _no_telemetry() -> Iterator[None]:
    """If nncf has been imported with telemetry before, withdraw the consent in the block."""
    module = sys.modules.get("openvino_telemetry")
    try:
        sender = module.Telemetry() if module is not None else None
    except RuntimeError:  # telemetry has no session
        sender = None
    before = getattr(sender, "consent", None)
    if sender is not None:
        sender.consent = False
    try:
        yield
    finally:
        if sender is not None:
            sender.consent = before


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Disable NNCF's progress bars, which use rich's global console."""
    nncf()
    console = importlib.import_module("rich").get_console()
    before, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = before


@contextlib.contextmanager
def _log() -> Iterator[list[str]]:
    logger, collected = logging.getLogger("nncf"), _Collected()
    before, logger.handlers = logger.handlers, [collected]
    try:
        yield collected.messages
    finally:
        logger.handlers = before


__all__ = ["quiet"]
