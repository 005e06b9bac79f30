"""Temporary directories; if one cannot be created, or is full, the error names the place."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from edgekit.errors import EdgekitError, ResourceError
from edgekit.files.memory import refuse_shortage


@contextlib.contextmanager
def temporary_directory(what: str) -> Iterator[Path]:
    """A temporary directory for a ``with`` block.

    Args:
        what: what needs it, for the message.

    Raises:
        ResourceError: it cannot be created, or writing into it fails, whatever exception a library raises.
    """
    made: Path | None = None
    try:
        with tempfile.TemporaryDirectory(prefix="edgekit-", ignore_cleanup_errors=True) as name:
            made = Path(name)
            yield made
    except EdgekitError:
        raise
    except (OSError, RuntimeError, SyntaxError) as error:  # a truncated XML file raises SyntaxError
        refuse_shortage(error, what)
        if isinstance(error, OSError) or (made is not None and _full(made)):
            where = made.parent if made else os.environ.get("TMPDIR", "the system's")
            raise ResourceError(
                f"{what} needs a temporary directory, and {where} cannot be written ({error!s:.200}); "
                "free some space there, or name another with TMPDIR"
            ) from error
        raise


def _full(directory: Path) -> bool:
    """Return whether one more page cannot be written there."""
    try:
        with tempfile.TemporaryFile(dir=directory.parent) as file:
            file.write(bytes(1 << 16))
            file.flush()
    except OSError:
        return True
    return False


__all__ = ["temporary_directory"]
