"""Checks for formats: written data is read back, no file is written partially, and malicious files are refused.

A format implements `edgekit.artifact.Format`. The checks write small models into temporary directories.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from edgekit.errors import UsageError
from edgekit.plugin._registry import Registration, manager
from edgekit.testing._kit import Kit, Profile, Result
from edgekit.testing.formats import _contents, _files
from edgekit.testing.formats._subject import FormatSubject

_ROOMS = (_contents.ROOM, _files.ROOM)
#: All checks, in the order in which they run: simple faults first.
KIT: Kit[FormatSubject] = Kit("formats", {name: c for room in _ROOMS for name, c in room.checks.items()})


def adapt(subject: Any, suffix: str | None = None) -> FormatSubject:
    """Return the subject for a format object, its class, its registration, or the name of an installed one.

    Raises:
        UsageError: the format lacks a method of the role.
    """
    if isinstance(subject, str):
        subject = manager().find("formats", subject)
    if isinstance(subject, Registration):
        suffix = next(iter(subject.options.get("suffixes", ())), "") if suffix is None else suffix
        subject = subject.load()
    made = subject() if isinstance(subject, type) else subject
    missing = [m for m in ("matches", "open", "layout", "writer") if not callable(getattr(made, m, None))]
    if missing:
        raise UsageError(f"{type(made).__name__} is not a format: it lacks {', '.join(missing)}")
    return FormatSubject(made, suffix or "", getattr(made, "name", type(made).__name__))


def run_format_checks(
    format: Any,
    *,
    suffix: str | None = None,
    expected_failures: Mapping[str, str] | None = None,
    checks: Iterable[str] | None = None,
    profile: str | Profile | None = None,
) -> list[Result]:
    """Run every check on a format, without pytest.

    Args:
        format: an object or class as `edgekit.artifact.Format`, or the name of an installed one.
        suffix: suffix of the files that it writes (``".gguf"``); empty for a directory.
        expected_failures: the reason for each check that is expected to fail, by name.
        checks: names of the checks to run; None for all.
        profile: ``quick``, ``default`` or ``deep``; None takes that of EDGEKIT_TEST_PROFILE.
    """
    subject = adapt(format, suffix)
    return KIT.run(subject, subject.label, expected_failures=expected_failures, checks=checks, profile=profile)


def format_checks(
    format: Any,
    *,
    suffix: str | None = None,
    expected_failures: Mapping[str, str] | None = None,
    checks: Iterable[str] | None = None,
    profile: str | Profile | None = None,
) -> Callable[[Callable[..., Any]], Any]:
    """Return a pytest decorator that calls the test once per check, passed as the argument ``check``."""
    subject = adapt(format, suffix)
    return KIT.parametrize(subject, subject.label, expected_failures=expected_failures, checks=checks, profile=profile)


__all__ = ["KIT", "FormatSubject", "adapt", "format_checks", "run_format_checks"]
