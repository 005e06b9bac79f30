"""Runs NNCF and OpenVINO's converter without telemetry, progress bars and output on stdout.

Both send usage events over the network by default, and NNCF logs to stdout, which is for data. Inside
`quiet` they do neither, and what NNCF warns of is collected. Settings that were changed are put back, so that a program
that uses NNCF itself finds it as it was. One thread at a time: the settings are those of the process.

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
    """Keeps the messages of warnings and errors."""

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
    """Where somebody imported nncf before, with its telemetry: take back the consent meanwhile."""
    module = sys.modules.get("openvino_telemetry")
    try:
        sender = module.Telemetry() if module is not None else None
    except RuntimeError:  # no session was started
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
    """NNCF draws its progress on rich's console of the process."""
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
