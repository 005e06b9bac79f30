"""Checks for quantizers: whoever passes them encodes what the format says, and keeps what it claims.

A quantizer has ``encode(x, importance=None) -> parts``, an attribute ``precision`` and a ``claim``: ``"exact"``
(its bytes are the reference's) or a sentence that states its bound. It may have ``decode(parts, shape)``, and
``bound(x, parts)`` [rows, cols] where it claims a bound of its own; otherwise the reference's bound holds.
"""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.precision import Precision
from edgekit.recipe import fits
from edgekit.reference import Parts, reference
from edgekit.testing import _promises as promises
from edgekit.testing import _samples
from edgekit.testing._explain import block_report, diagnose, minimise, same_parts
from edgekit.testing._kit import Kit, NotApplicable, Profile, Result, fail
from edgekit.testing._samples import F32, Sample, fitting, importances, samples, widths
from edgekit.testing._subjects import QuantizerSubject, adapt, encodable
from edgekit.testing._trips import round_trips

KIT: Kit[QuantizerSubject] = Kit("quantizers")


def run_quantizer_checks(
    quantizer: Any,
    *,
    precision: str | Precision | None = None,
    claim: str | None = None,
    expected_failures: Mapping[str, str] | None = None,
    checks: Iterable[str] | None = None,
    profile: str | Profile | None = None,
) -> list[Result]:
    """Run every check on a quantizer, without pytest.

    Args:
        quantizer: an object (or its class) as the module describes, a precision's name for the core's own
            reference, or a plugin's registration.
        precision: which one it encodes, where the object does not say so itself.
        claim: what it claims, where the object does not say so itself.
        expected_failures: names of checks that fail, each with its reason; one that does not fail is wrong too.
        checks: only these.
        profile: ``quick``, ``default`` or ``deep``; None asks the environment (EDGEKIT_TEST_PROFILE).

    Raises:
        UsageError: an unknown check, or no quantizer.

    Example:
        >>> results = run_quantizer_checks("affine:int4-sym-g32", profile="quick")
        >>> all(result.ok for result in results)
        True
    """
    subject = adapt(quantizer, precision, claim)
    return KIT.run(subject, subject.label, expected_failures=expected_failures, checks=checks, profile=profile)


def quantizer_checks(
    quantizer: Any,
    *,
    precision: str | Precision | None = None,
    claim: str | None = None,
    expected_failures: Mapping[str, str] | None = None,
    checks: Iterable[str] | None = None,
    profile: str | Profile | None = None,
) -> Callable[[Callable[..., Any]], Any]:
    """The same for pytest: a decorator that calls the test once for each check, as its argument ``check``.

    Example:
        >>> @quantizer_checks("affine:int4-sym-g32")
        ... def test_conformance(check):
        ...     check()
    """
    subject = adapt(quantizer, precision, claim)
    return KIT.parametrize(subject, subject.label, expected_failures=expected_failures, checks=checks, profile=profile)


# What every check is made of.


def judge(subject: QuantizerSubject, sample: Sample, importance: F32 | None = None) -> None:
    """Hold one sample to the claim: the reference's bytes, or the bound, element by element."""
    _require_encoder(subject)
    if subject.exact:
        _same_bytes(subject, sample, importance)
    else:
        _within_bound(subject, sample, importance)


def _require_encoder(subject: QuantizerSubject) -> None:
    if not encodable(subject.precision):
        raise NotApplicable(f"{subject.precision.name} has no reference encoder to compare with")


def _same_bytes(subject: QuantizerSubject, sample: Sample, importance: F32 | None) -> None:
    actual, expected = _encode(subject, sample.x, importance), subject.wanted(sample.x, importance)
    if same_parts(expected, actual):
        return

    def differs(x: F32) -> bool:
        weights = None if importance is None else importance[: x.shape[1]]
        return not same_parts(subject.wanted(x, weights), _encode(subject, x, weights))

    small = minimise(sample.x, subject.precision, differs)
    weights = None if importance is None else importance[: small.shape[1]]
    want, got = subject.wanted(small, weights), _encode(subject, small, weights)
    fail(
        f"it claims exact, and its bytes are not the reference's on {sample.label!r}: {diagnose(want, got)}\n"
        + block_report(small, want, got, _decoded(subject, want, got, small.shape))
    )


def _decoded(subject: QuantizerSubject, want: Parts, got: Parts, shape: tuple[int, ...]) -> tuple[F32, F32] | None:
    """Both decoded by the reference, where the parts have the shape that it takes."""
    decode = partial(reference(subject.precision).decode, precision=subject.precision, shape=(shape[0], shape[1]))
    try:
        with np.errstate(all="ignore"):
            return decode(want), decode(got)
    except Exception:
        return None


def _within_bound(subject: QuantizerSubject, sample: Sample, importance: F32 | None) -> None:
    wrong = partial(_beyond_bound, subject, importance=importance)
    if not wrong(sample.x).any():
        return
    small = minimise(sample.x, subject.precision, lambda x: bool(wrong(x).any()))
    weights = None if importance is None else importance[: small.shape[1]]
    got, want = _encode(subject, small, weights), subject.wanted(small, weights)
    row, column = np.argwhere(wrong(small))[0]
    decoded = subject.decode(got, (small.shape[0], small.shape[1]))
    allowed = subject.bound(small, got)[row, column]
    fail(
        f"on {sample.label!r} {float(small[row, column]):.9g} at column {column} of the block comes back as "
        f"{float(decoded[row, column]):.9g}: off by "
        f"{abs(float(small[row, column]) - float(decoded[row, column])):.3g}, the bound is {float(allowed):.3g}\n"
        + block_report(small, want, got, _decoded(subject, want, got, small.shape))
    )


def _beyond_bound(subject: QuantizerSubject, x: F32, importance: F32 | None = None) -> npt.NDArray[np.bool_]:
    weights = None if importance is None else importance[: x.shape[1]]
    parts = _encode(subject, x, weights)
    decoded = subject.decode(parts, (x.shape[0], x.shape[1]))
    if decoded.shape != x.shape:
        fail(f"decoded it has shape {decoded.shape}; {x.shape} is wanted")
    error = np.abs(x.astype(np.float64) - decoded)
    found: npt.NDArray[np.bool_] = ~(error <= subject.bound(x, parts))  # a NaN is beyond every bound
    return found


def _encode(subject: QuantizerSubject, x: npt.NDArray[Any], importance: F32 | None = None) -> Parts:
    return subject.encode(np.ascontiguousarray(x), importance)


def _judge_kind(kind: str, subject: QuantizerSubject, profile: Profile) -> None:
    _require_encoder(subject)
    for sample in samples(subject.precision, kind, profile.rows, profile.seeds):
        judge(subject, sample)


def _normal(subject: QuantizerSubject, rows: int = 5, seed: int = 1) -> F32:
    return _samples.draw("normal", seed, (rows, widths(subject.precision)[0]))


# The checks, the plainest first: a fault is named by the first one that finds it.


@KIT.check
def check_parts(subject: QuantizerSubject, profile: Profile) -> None:
    """`encode` gives the precision's parts, with the names, dtypes and shapes that the framework stores."""
    _require_encoder(subject)
    for rows in (1, 2, 5):
        for cols in widths(subject.precision):
            x = _samples.draw("normal", rows, (rows, cols))
            got, want = _encode(subject, x), subject.wanted(x)
            if _form(got) != _form(want):
                fail(f"rows [{rows}, {cols}]: {diagnose(want, got)}")


def _form(parts: Parts) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {key: (part.dtype.name, part.shape) for key, part in parts.items()}


@KIT.check
def check_inputs_unwritten(subject: QuantizerSubject, profile: Profile) -> None:
    """Neither the rows nor the importance are written to, and read-only ones are taken."""
    x, importance = _normal(subject), importances(1, widths(subject.precision)[0])["importance"]
    before, weights_before = x.copy(), importance.copy()
    subject.encode(x, importance)
    subject.encode(x, None)
    if not np.array_equal(x, before):
        row, column = np.argwhere(x != before)[0]
        fail(f"it wrote to its input: row {row}, column {column} was {before[row, column]}, is {x[row, column]}")
    if not np.array_equal(importance, weights_before):
        fail("it wrote to the importance that it was given")
    x.flags.writeable = importance.flags.writeable = False
    subject.encode(x, importance)


@KIT.check
def check_pure(subject: QuantizerSubject, profile: Profile) -> None:
    """The same rows give the same bytes, whatever was encoded in between; results share no memory."""
    x, other = _normal(subject), 1000 * _samples.draw("normal", 3, (3, widths(subject.precision)[0]))
    first = _encode(subject, x)
    kept = {key: part.copy() for key, part in first.items()}
    _encode(subject, other)
    if not same_parts(kept, first):
        fail("a later call changed the parts that an earlier one had returned; give each call memory of its own")
    again = _encode(subject, x)
    if not same_parts(kept, again):
        fail(f"a second encoding of the same rows differs: {diagnose(kept, again)}; it keeps state between calls")
    if any(np.shares_memory(part, x) for part in again.values()) and subject.precision.convention != "float":
        fail("a part shares memory with the input; copy it")


@KIT.check
def check_quiet(subject: QuantizerSubject, profile: Profile) -> None:
    """It warns of nothing and writes nothing to stdout, on zeros and constants too."""
    cols = widths(subject.precision)[0]
    out = io.StringIO()
    with warnings.catch_warnings(record=True) as caught, redirect_stdout(out):
        warnings.simplefilter("always")
        for label in ("normal", "positive zeros", "constant rows", "subnormal"):
            _encode(subject, _samples.draw(label, 2, (2, cols)))
    if caught:
        fail(f"it warns: {caught[0].category.__name__}: {caught[0].message}; compute without, or np.errstate")
    if out.getvalue():
        fail(f"it writes to stdout, which is for data: {out.getvalue()[:60]!r}")


@KIT.check
def check_exact(subject: QuantizerSubject, profile: Profile) -> None:
    """Where it claims ``exact``: on ordinary rows every byte is the reference's (packing, order, scales, codes)."""
    if not subject.exact:
        raise NotApplicable(f"it claims a bound: {subject.claim}")
    _judge_kind("ordinary", subject, profile)


@KIT.check
def check_error_within_bound(subject: QuantizerSubject, profile: Profile) -> None:
    """On ordinary rows every element comes back within the claimed bound of what it was."""
    _require_encoder(subject)
    for sample in samples(subject.precision, "ordinary", profile.rows, profile.seeds):
        _within_bound(subject, sample, None)


@KIT.check
def check_zeros(subject: QuantizerSubject, profile: Profile) -> None:
    """Zeros of both signs, sparse rows and single values among zeros; nothing but zeros comes back as zeros."""
    _require_encoder(subject)
    zeros = _samples.draw("zeros of both signs", 1, (3, widths(subject.precision)[0]))
    decoded = subject.decode(_encode(subject, zeros), (zeros.shape[0], zeros.shape[1]))
    if not np.array_equal(decoded, np.zeros(zeros.shape)):
        fail(f"zeros come back as {float(decoded[decoded != 0][0]):g}: guard the division by a scale of zero")
    _judge_kind("zeros", subject, profile)


@KIT.check
def check_constants(subject: QuantizerSubject, profile: Profile) -> None:
    """Rows of one value, where maximum and minimum are the same."""
    _judge_kind("constants", subject, profile)


@KIT.check
def check_one_sided(subject: QuantizerSubject, profile: Profile) -> None:
    """Rows that are all positive, all negative, or far from zero."""
    _judge_kind("one_sided", subject, profile)


@KIT.check
def check_ties(subject: QuantizerSubject, profile: Profile) -> None:
    """Values half way between two levels round as the format says; and those one unit beside it."""
    _judge_kind("ties", subject, profile)


@KIT.check
def check_saturation(subject: QuantizerSubject, profile: Profile) -> None:
    """The ends of the grid and huge values neither wrap around nor lose a level."""
    _judge_kind("saturation", subject, profile)


@KIT.check
def check_subnormals(subject: QuantizerSubject, profile: Profile) -> None:
    """Subnormal values, and scales that underflow, are not flushed to zero where the format does not."""
    _judge_kind("subnormals", subject, profile)


@KIT.check
def check_shapes(subject: QuantizerSubject, profile: Profile) -> None:
    """One row, one block, many rows, and ragged tails where the format allows them."""
    for cols in widths(subject.precision):
        for rows in (1, 3, 37):
            sample = Sample(f"normal [{rows}, {cols}]", _samples.draw("normal", cols, (rows, cols)))
            judge(subject, sample)


@KIT.check
def check_bound_everywhere(subject: QuantizerSubject, profile: Profile) -> None:
    """The bound holds on every family of rows: ties, ends of the grid, zeros, constants, subnormals, huge values."""
    _require_encoder(subject)
    for kind in _samples.KINDS:
        for sample in samples(subject.precision, kind, profile.rows, 1):
            _within_bound(subject, sample, None)


@KIT.check
def check_exact_on_examples(subject: QuantizerSubject, profile: Profile) -> None:
    """As `check_exact` (or the bound), on examples that hypothesis draws and shrinks."""
    _require_encoder(subject)
    try:
        import hypothesis
    except ImportError:
        raise NotApplicable("hypothesis is not installed; pip install 'edgekit[testing]'") from None
    from edgekit.testing.strategies import tensors

    @hypothesis.settings(
        max_examples=profile.examples, deadline=None, database=None, derandomize=True, report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck), print_blob=False,
    )  # fmt: skip
    @hypothesis.given(x=tensors(subject.precision))
    def examples(x: F32) -> None:
        for sample in fitting(subject.precision, Sample("a drawn example", x)):
            judge(subject, sample)

    examples()


@KIT.check
def check_importance(subject: QuantizerSubject, profile: Profile) -> None:
    """An importance matrix, one with zeros too, is used as the reference uses it, or ignored as it does."""
    for sample in samples(subject.precision, "ordinary", profile.rows, 1):
        for label, importance in importances(7, sample.x.shape[1]).items():
            judge(subject, Sample(f"{sample.label}, {label}", sample.x), importance)


@KIT.check
def check_source_types(subject: QuantizerSubject, profile: Profile) -> None:
    """Where the arithmetic depends on the source's type: float16 rows (and bfloat16) as well."""
    if not getattr(reference(subject.precision), "SOURCE_DTYPES", False):
        raise NotApplicable("every source is widened to float32 before it is encoded")
    if not subject.exact:
        raise NotApplicable(f"it claims a bound: {subject.claim}")
    for dtype in _source_types():
        x = _samples.draw("normal", 5, (4, widths(subject.precision)[0])).astype(dtype)
        want, got = subject.wanted(x), _encode(subject, x)
        if not same_parts(want, got):
            fail(f"rows of {np.dtype(dtype).name}: {diagnose(want, got)}")


def _source_types() -> list[Any]:
    try:
        import ml_dtypes
    except ImportError:
        return [np.float16]
    return [np.float16, ml_dtypes.bfloat16]


@KIT.check
def check_nonfinite(subject: QuantizerSubject, profile: Profile) -> None:
    """NaN and both infinities are treated alike, and never reach another row."""
    x = _normal(subject)
    clean = _encode(subject, x)
    outcomes = {}
    for value in (np.nan, np.inf, -np.inf):
        bad = x.copy()
        bad[2, 1] = value
        try:
            with np.errstate(all="ignore"):
                parts = _encode(subject, bad)
        except (ValueError, ArithmeticError) as error:
            outcomes[str(value)] = f"refused ({type(error).__name__})"
            continue
        outcomes[str(value)] = "encoded"
        if subject.precision.rowwise:
            _others_untouched(clean, parts, value, len(x))
    if len(set(outcomes.values())) > 1:
        told = ", ".join(f"{value}: {outcome}" for value, outcome in outcomes.items())
        fail(f"not one policy: {told}; refuse all three or none (edgekit refuses them before it calls)")


def _others_untouched(clean: Parts, parts: Parts, value: float, rows: int) -> None:
    for key, part in parts.items():
        if part.shape[:1] != (rows,):
            continue
        others = np.arange(rows) != 2
        if part[others].tobytes() != clean[key][others].tobytes():
            fail(f"{value} in row 2 changed part {key!r} of other rows; rows are encoded on their own")


@KIT.check
def check_checked(subject: QuantizerSubject, profile: Profile) -> None:
    """Its own `encode_checked`, if it has one, gives the parts of `encode`, and None for all that may be refused."""
    checked = getattr(subject.quantizer, "encode_checked", None)
    if checked is None:
        raise NotApplicable("it has no encode_checked; edgekit checks the rows itself")
    x = _normal(subject)
    parts = checked(x, None)
    if parts is not None and not same_parts(_encode(subject, x), dict(parts)):
        fail(f"encode_checked differs from encode: {diagnose(_encode(subject, x), dict(parts))}")
    for value in (np.nan, -np.nan, np.inf, -np.inf, 65536.0, -1e38):
        for place in ((0, 0), (2, 1), (-1, -1)):
            bad = x.copy()
            bad[place] = value
            with np.errstate(all="ignore"):
                parts = checked(bad, None)
            if parts is not None:
                fail(f"encode_checked gives parts for rows that hold {value}; it has to give None, edgekit decides")


@KIT.check
def check_row_slices(subject: QuantizerSubject, profile: Profile) -> None:
    """Encoding rows in slices, of any size and from any chunk of memory, gives the bytes of the whole."""
    if not subject.precision.rowwise:
        raise NotApplicable("the rows of this precision depend on each other")
    x = _samples.draw("rows of every magnitude", 4, (13, widths(subject.precision)[0]))
    whole = _encode(subject, x)
    for step in (1, 2, 5, 12):
        joined = _joined([_encode(subject, x[start : start + step]) for start in range(0, len(x), step)])
        if not same_parts(whole, joined):
            fail(f"in slices of {step} rows the bytes differ from the whole's: {diagnose(whole, joined)}")


@KIT.check
def check_large(subject: QuantizerSubject, profile: Profile) -> None:
    """A matrix larger than any internal chunk gives the bytes of its rows, first, middle and last."""
    if not subject.precision.rowwise:
        raise NotApplicable("the rows of this precision depend on each other")
    cols = widths(subject.precision)[0]
    rows = (1 << (17 if profile.name == "quick" else 19)) // cols + 3
    x = np.resize(_samples.draw("normal", 6, (61, cols)), (rows, cols))
    whole = _encode(subject, x)
    for at in (0, rows // 2, rows - 1):
        row, alone = {key: part[at : at + 1] for key, part in whole.items()}, _encode(subject, x[at : at + 1])
        if not same_parts(alone, {key: np.ascontiguousarray(part) for key, part in row.items()}):
            fail(f"row {at} of {rows} differs from the same row on its own: {diagnose(alone, row)}")


def _joined(chunks: list[Parts]) -> Parts:
    return {key: np.concatenate([chunk[key] for chunk in chunks]) for key in chunks[0]}


@KIT.check
def check_executors(subject: QuantizerSubject, profile: Profile) -> None:
    """Any number of threads, encoding at the same time, gives the same bytes."""
    cols = widths(subject.precision)[0]
    jobs = [_samples.draw("rows of every magnitude", seed, (4, cols)) for seed in range(12)]
    alone = [_encode(subject, x) for x in jobs]
    for workers in (2, 4):
        with ThreadPoolExecutor(workers) as pool:
            together = list(pool.map(partial(_encode, subject), jobs))
        for number, (want, got) in enumerate(zip(alone, together, strict=True)):
            if not same_parts(want, got):
                fail(f"job {number} on {workers} threads: {diagnose(want, got)}; calls share memory")


_ELSEWHERE = """
import pickle, sys
try:
    quantizer, x = pickle.load(sys.stdin.buffer)
except Exception:
    sys.exit(9)
parts = {key: part.copy() for key, part in dict(quantizer.encode(x, None)).items()}
pickle.dump(parts, sys.stdout.buffer)
"""


@KIT.check
def check_processes(subject: QuantizerSubject, profile: Profile) -> None:
    """In another process, with one thread and another hash seed, the bytes are the same."""
    if profile.name == "quick":
        raise NotApplicable("the quick profile starts no process")
    x = _samples.draw("rows of every magnitude", 9, (64, widths(subject.precision)[0]))
    try:
        sent = pickle.dumps((subject.quantizer, x))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise NotApplicable(f"it cannot be sent to another process ({error})") from None
    there, here = _encoded_elsewhere(sent), _encode(subject, x)
    if not same_parts(here, there):
        fail(f"another process, with one thread and another hash seed, encodes otherwise: {diagnose(here, there)}")


def _encoded_elsewhere(sent: bytes) -> Parts:
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    path = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, **one_thread, "PYTHONHASHSEED": "1234", "PYTHONPATH": path}
    command = [sys.executable, "-c", _ELSEWHERE]
    done = subprocess.run(command, input=sent, env=environment, capture_output=True, timeout=300, check=False)
    if done.returncode == 9:
        raise NotApplicable("another process cannot import it")
    if done.returncode:
        fail(f"another process ends with {done.returncode}: {done.stderr.decode(errors='replace').strip()[-200:]}")
    found: Parts = pickle.loads(done.stdout)
    return found


@KIT.check
def check_size(subject: QuantizerSubject, profile: Profile) -> None:
    """What is stored takes the bits a weight that the precision states, to the bit."""
    precision = subject.precision
    width = (
        64 * int(np.lcm(_samples.unit(precision), 8)) // 8
        if not precision.whole_blocks
        else 8 * _samples.unit(precision)
    )
    rows = 8
    short, long = (_nbytes(subject, (rows, cols)) for cols in (width, 2 * width))
    measured = Fraction(8 * (long - short), rows * width)
    if measured != precision.bits_per_weight:
        fail(f"{float(measured):g} bits a weight are stored, {float(precision.bits_per_weight):g} are stated")


def _nbytes(subject: QuantizerSubject, shape: tuple[int, int]) -> int:
    wide = not getattr(reference(subject.precision), "SOURCE_DTYPES", False)
    x = _samples.draw("normal", 1, shape)
    return sum(part.nbytes for part in _encode(subject, x if wide else x.astype(np.float16)).values())


@KIT.check
def check_decoding(subject: QuantizerSubject, profile: Profile) -> None:
    """Its own `decode`, if it has one, gives the reference's values: bit for bit if exact."""
    if getattr(subject.quantizer, "decode", None) is None:
        raise NotApplicable("it has no decode; the reference decodes")
    x = _normal(subject)
    shape = (x.shape[0], x.shape[1])
    parts = _encode(subject, x)
    got, want = subject.decode(parts, shape), reference(subject.precision).decode(parts, subject.precision, shape)
    if (got.dtype, got.shape) != (want.dtype, want.shape):
        fail(f"decode gives {got.dtype} {got.shape}; {want.dtype} {want.shape} is wanted")
    if subject.exact and got.tobytes() != want.tobytes():
        row, column = np.argwhere(got.view(np.uint32) != want.view(np.uint32))[0]
        fail(
            f"row {row}, column {column} decodes to {float(got[row, column]):.9g}, "
            f"the reference to {float(want[row, column]):.9g}"
        )


@KIT.check
def check_signs(subject: QuantizerSubject, profile: Profile) -> None:
    """Where the format promises it, no value comes back with the other sign."""
    if not promises.signs(subject.precision):
        raise NotApplicable("a format with a minimum does not keep signs")
    for kind in ("ordinary", "one_sided", "ties"):
        for sample in samples(subject.precision, kind, profile.rows, 1):
            decoded = subject.decode(_encode(subject, sample.x), (sample.x.shape[0], sample.x.shape[1]))
            wrong = sample.x.astype(np.float64) * decoded < 0
            if wrong.any():
                at = tuple(np.argwhere(wrong)[0])
                fail(f"on {sample.label!r} {float(sample.x[at]):.9g} comes back as {float(decoded[at]):.9g}")


@KIT.check
def check_order(subject: QuantizerSubject, profile: Profile) -> None:
    """Where one scale serves a block, a larger value never comes back smaller."""
    if not promises.order(subject.precision):
        raise NotApplicable("sub-blocks of this format have scales of their own")
    for kind in ("ordinary", "ties"):
        for sample in samples(subject.precision, kind, profile.rows, 1):
            _ordered(subject, sample)


def _ordered(subject: QuantizerSubject, sample: Sample) -> None:
    x = sample.x
    decoded = subject.decode(_encode(subject, x), (x.shape[0], x.shape[1]))
    block = subject.precision.block or x.shape[1]
    for row in range(len(x)):
        for start in range(0, x.shape[1], block):
            values, back = x[row, start : start + block], decoded[row, start : start + block]
            order = np.argsort(values, kind="stable")
            falls = np.diff(back[order]) < 0
            if falls.any():
                a, b = order[int(np.argmax(falls))], order[int(np.argmax(falls)) + 1]
                fail(
                    f"on {sample.label!r} {values[a]:.9g} <= {values[b]:.9g} come back as {back[a]:.9g}, {back[b]:.9g}"
                )


@KIT.check
def check_idempotent(subject: QuantizerSubject, profile: Profile) -> None:
    """Where the format promises it, encoding what was decoded gives the same bytes."""
    if not promises.idempotent(subject.precision):
        raise NotApplicable("this format's scale moves when it is encoded again")
    for sample in samples(subject.precision, "ordinary", profile.rows, 1):
        shape = (sample.x.shape[0], sample.x.shape[1])
        once = _encode(subject, sample.x)
        twice = _encode(subject, subject.decode(once, shape))
        if not same_parts(once, twice) and _reference_holds(subject, sample.x):
            fail(f"on {sample.label!r} a second encoding of the decoded values differs: {diagnose(once, twice)}")


def _reference_holds(subject: QuantizerSubject, x: F32) -> bool:
    once = subject.wanted(x)
    decoded = reference(subject.precision).decode(once, subject.precision, (x.shape[0], x.shape[1]))
    return same_parts(once, subject.wanted(np.ascontiguousarray(decoded)))


@KIT.check
def check_vectors(subject: QuantizerSubject, profile: Profile) -> None:
    """Where it claims ``exact``: the stored known answers, which the framework itself gave."""
    if not subject.exact:
        raise NotApplicable(f"it claims a bound: {subject.claim}")
    from edgekit.testing import vectors

    if subject.precision.name not in vectors.names():
        raise NotApplicable(f"no known answers are stored for {subject.precision.name}")
    vectors.check(subject.encode, subject.precision)


@KIT.check
def check_formats(subject: QuantizerSubject, profile: Profile) -> None:
    """Every installed format that stores the precision gives back the same parts."""
    _require_encoder(subject)
    cols = 2 * int(np.lcm(_samples.unit(subject.precision), 32))
    if not fits(subject.precision, (8, cols)):
        raise NotApplicable("no small model has rows that this precision's blocks divide")
    with tempfile.TemporaryDirectory() as folder:
        stored = round_trips(subject.encode, subject.precision, cols, Path(folder))
    if not stored:
        raise NotApplicable("no installed format stores this precision")


__all__ = ["KIT", "quantizer_checks", "run_quantizer_checks"]
