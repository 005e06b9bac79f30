"""One list of check functions per role, which can be run by pytest, by a plain call, or by the command line."""

from __future__ import annotations

import difflib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, Literal, NoReturn, TypeVar

import attrs

from edgekit.errors import UsageError

Status = Literal["passed", "failed", "expected failure", "unexpected pass", "skipped"]
Subject = TypeVar("Subject")


class CheckFailure(AssertionError):  # noqa: N818  - as pytest's own outcomes are named
    """A check failed; the message names the subject, the check, the place, and the fault."""


class NotApplicable(Exception):  # noqa: N818  - not an error: the check does not apply
    """A check does not apply to this subject; the message states why."""


@attrs.frozen
class Profile:
    """The effort of the checks.

    Attributes:
        name: ``quick``, ``default`` or ``deep``; the environment variable EDGEKIT_TEST_PROFILE sets the default.
        seeds: number of draws from each distribution.
        examples: number of examples that hypothesis draws.
        rows: number of rows of a drawn matrix.
    """

    name: str
    seeds: int
    examples: int
    rows: int


PROFILES = {
    "quick": Profile("quick", seeds=1, examples=25, rows=4),
    "default": Profile("default", seeds=6, examples=300, rows=8),
    "deep": Profile("deep", seeds=200, examples=1_000_000, rows=8),
}


def profile_of(profile: str | Profile | None) -> Profile:
    """Return the profile of a name; None takes that of EDGEKIT_TEST_PROFILE, or ``default``.

    Raises:
        UsageError: there is no profile of that name.
    """
    if isinstance(profile, Profile):
        return profile
    name = profile or os.environ.get("EDGEKIT_TEST_PROFILE", "default")
    if name not in PROFILES:
        raise UsageError(f"profile {name!r}; choose one of {', '.join(PROFILES)}")
    return PROFILES[name]


@attrs.frozen
class Result:
    """The result of one check of one subject.

    Attributes:
        subject: label of the checked object.
        check: the check's stable name.
        status: ``passed``, ``failed``, ``skipped`` (the check does not apply), ``expected failure``, or ``unexpected
            pass`` (the check was expected to fail and does not: remove the expectation).
        message: the reason, if the check did not pass.
        seconds: duration of the check.
    """

    subject: str
    check: str
    status: Status
    message: str
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether the check found no fault."""
        return self.status not in ("failed", "unexpected pass")


@attrs.frozen
class Check(Generic[Subject]):
    """A check function with its name: a property that implementations of a role must have."""

    name: str
    function: Callable[[Subject, Profile], None]

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (self.function.__doc__ or "").strip().partition("\n")[0]


@attrs.frozen
class Bound(Generic[Subject]):
    """A check bound to a subject; calling it raises `CheckFailure` or `NotApplicable`, or returns."""

    check: Check[Subject]
    subject: Subject
    label: str
    profile: Profile

    def __call__(self) -> None:
        """Run the check; any exception that the subject raises is a failure too.

        The traceback of a failure has no frames of the kit, only those of the subject.
        """
        __tracebackhide__ = True  # pytest then shows the caller's line
        try:
            self.check.function(self.subject, self.profile)
        except (NotApplicable, KeyboardInterrupt, SystemExit):
            raise
        except CheckFailure as error:
            raise CheckFailure(f"{self.label}, {self.check.name}: {error}") from None
        except Exception as error:
            message = f"{self.label}, {self.check.name}: it raised {type(error).__name__}: {error}"
            raise CheckFailure(message) from _from_the_subject(error)


def _from_the_subject(error: Exception) -> Exception:
    """Return the error without the kit's frames, which come first; unchanged if it has no others."""
    frame = error.__traceback__
    while frame and frame.tb_frame.f_globals.get("__name__", "").startswith("edgekit.testing."):
        frame = frame.tb_next
    return error.with_traceback(frame) if frame else error


@attrs.frozen
class Kit(Generic[Subject]):
    """The checks of one role, in the order in which they run: checks for simple faults first."""

    role: str
    checks: dict[str, Check[Subject]] = attrs.field(factory=dict)

    def check(self, function: Callable[[Subject, Profile], None]) -> Callable[[Subject, Profile], None]:
        """Add a check function, whose name becomes the check's stable name, and return it."""
        name = function.__name__
        if not name.startswith("check_") or name in self.checks:
            raise UsageError(f"{name}: a check is called check_<property>, and only once")
        self.checks[name] = Check(name, function)
        return function

    def select(self, names: Iterable[str] | None) -> list[Check[Subject]]:
        """Return the checks of the given names; None for all.

        Raises:
            UsageError: no check has one of the names.
        """
        if names is None:
            return list(self.checks.values())
        selected = list(names)
        for name in selected:
            if name not in self.checks:
                near = difflib.get_close_matches(name, self.checks, n=2)
                hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(self.checks)}"
                raise UsageError(f"no check of {self.role} is called {name!r}; {hint}")
        return [check for name, check in self.checks.items() if name in selected]

    def bind(self, subject: Subject, label: str, names: Iterable[str] | None, profile: Profile) -> list[Bound[Subject]]:
        """Return the selected checks, bound to a subject."""
        return [Bound(check, subject, label, profile) for check in self.select(names)]

    def run(
        self,
        subject: Subject,
        label: str,
        *,
        expected_failures: Mapping[str, str] | None = None,
        checks: Iterable[str] | None = None,
        profile: str | Profile | None = None,
    ) -> list[Result]:
        """Run the checks and return one result each; a failure is a result, not an exception."""
        expected = self.expected(expected_failures)
        return [result(bound, expected) for bound in self.bind(subject, label, checks, profile_of(profile))]

    def expected(self, expected_failures: Mapping[str, str] | None) -> Mapping[str, str]:
        """Return the expected failures as a mapping from check to reason.

        Raises:
            UsageError: a check is unknown, or has no reason.
        """
        expected = dict(expected_failures or {})
        self.select(expected)
        for name, reason in expected.items():
            if not reason.strip():
                raise UsageError(f"expected failure {name}: state a measured reason")
        return expected

    def parametrize(
        self,
        subject: Subject,
        label: str,
        *,
        expected_failures: Mapping[str, str] | None = None,
        checks: Iterable[str] | None = None,
        profile: str | Profile | None = None,
    ) -> Callable[[Callable[..., Any]], Any]:
        """Return a pytest decorator that calls the test once per check, passed as the argument ``check``."""
        import pytest

        expected = self.expected(expected_failures)
        bound = self.bind(subject, label, checks, profile_of(profile))
        return pytest.mark.parametrize("check", list(_parameters(bound, expected)))


def result(bound: Bound[Any], expected: Mapping[str, str]) -> Result:
    """Run one check and return its result; an expected failure that passes or is skipped is an ``unexpected pass``."""
    status: Status
    began = time.perf_counter()
    try:
        bound()
        status, message = "passed", ""
    except NotApplicable as reason:
        status, message = "skipped", str(reason)
    except CheckFailure as error:
        status, message = "failed", str(error)
    seconds = time.perf_counter() - began
    name = bound.check.name
    if name in expected:
        if status == "failed":
            status, message = "expected failure", expected[name]
        else:
            status, message = "unexpected pass", f"{bound.label}, {name}: was expected to fail ({expected[name]})"
    return Result(bound.label, name, status, message, seconds)


def _parameters(bound: list[Bound[Any]], expected: Mapping[str, str]) -> Iterator[Any]:
    import pytest

    for each in bound:
        name = each.check.name
        if name in expected:
            mark = pytest.mark.xfail(reason=expected[name], strict=True, raises=CheckFailure)
            yield pytest.param(_quiet(each), id=name, marks=mark)
        else:
            yield pytest.param(_skipping(each), id=name)


def _skipping(bound: Bound[Any]) -> Callable[[], None]:
    import pytest

    def check() -> None:
        __tracebackhide__ = True
        try:
            bound()
        except NotApplicable as reason:
            pytest.skip(str(reason))

    return check


def _quiet(bound: Bound[Any]) -> Callable[[], None]:
    """Return a call of the check that passes if the check does not apply, so that an expected failure is reported."""

    def check() -> None:
        __tracebackhide__ = True
        try:
            bound()
        except NotApplicable:
            return

    return check


def fail(message: str) -> NoReturn:
    """Raise `CheckFailure`."""
    raise CheckFailure(message)
