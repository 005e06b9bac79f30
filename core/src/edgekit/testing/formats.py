"""Checks for formats: what is written comes back, nothing is half-written, and hostile files are refused.

A format implements `edgekit.artifact.Format`. The checks write small models into temporary directories.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from edgekit.artifact import Artifact, Format
from edgekit.errors import EdgekitError, InvalidFileError, UsageError
from edgekit.manifest import manifest_path
from edgekit.plugin import Registration, manager
from edgekit.precision import Precision, catalogue
from edgekit.tensor import EncodedTensor, Tensor
from edgekit.testing._kit import Kit, NotApplicable, Profile, Result, fail
from edgekit.testing._trips import QUANTIZED, plan_of, random_artifact, small_config, write

#: What the quick profile tries; the others try the whole catalogue.
_SOME = (
    "affine:int4-asym-g32",
    "ggml:Q4_0",
    "ggml:Q8_0",
    "mlx:int4-g32",
    "onnx:int4-asym-g32",
    "openvino:int4-sym-g32",
)


@attrs.frozen(eq=False)
class FormatSubject:
    """A format with the suffix of its files.

    Attributes:
        format: implements `edgekit.artifact.Format`.
        suffix: of the files it writes; empty for a directory.
        name: for messages.
    """

    format: Format
    suffix: str
    name: str

    @property
    def label(self) -> str:
        """For messages."""
        return f"format {self.name!r}"

    def write(self, folder: Path, artifact: Artifact, precisions: Mapping[str, Precision] | None = None) -> Path:
        """Write an artifact into a folder."""
        path = folder / f"model{self.suffix}"
        write(self.format, path, artifact, precisions)
        return path


KIT: Kit[FormatSubject] = Kit("formats")


def adapt(subject: Any, suffix: str | None = None) -> FormatSubject:
    """A subject from a format object, its class, its registration, or the name of an installed one.

    Raises:
        UsageError: it lacks a method of the role.
    """
    if isinstance(subject, str):
        subject = manager().find("formats", subject)
    if isinstance(subject, Registration):
        suffix = next(iter(subject.options.get("suffixes", ())), "") if suffix is None else suffix
        subject = subject.load()
    made = subject() if isinstance(subject, type) else subject
    missing = [m for m in ("matches", "open", "layout", "writer") if not callable(getattr(made, m, None))]
    if missing:
        raise UsageError(f"{type(made).__name__} is no format: it lacks {', '.join(missing)}")
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
        suffix: of the files that it writes (``".gguf"``); empty for a directory.
        expected_failures: names of checks that fail, each with its reason.
        checks: only these.
        profile: ``quick``, ``default`` or ``deep``; None asks the environment.
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
    """The same for pytest: a decorator that calls the test once for each check, as its argument ``check``."""
    subject = adapt(format, suffix)
    return KIT.parametrize(subject, subject.label, expected_failures=expected_failures, checks=checks, profile=profile)


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="edgekit-check-") as folder:
        yield Path(folder)


@KIT.check
def check_matches(subject: FormatSubject, profile: Profile) -> None:
    """`matches` knows what the format wrote, and nothing else; it never raises."""
    with _folder() as folder:
        path = subject.write(folder, random_artifact(folder))
        if not subject.format.matches(path):
            fail(f"matches() does not know the file that the format wrote ({path.name})")
        (folder / "noise.xyz").write_bytes(bytes(range(256)) * 4)
        (folder / "empty.xyz").write_bytes(b"")
        (folder / "elsewhere").mkdir()
        for other in ("noise.xyz", "empty.xyz", "elsewhere", "missing"):
            if subject.format.matches(folder / other):
                fail(f"matches() takes {other} for its own")


@KIT.check
def check_tensors(subject: FormatSubject, profile: Profile) -> None:
    """Write then read is the identity: every tensor by what it is for, its shape, every bit of its values."""
    for config in (small_config(), small_config(layers=2, kv_heads=1), small_config(width=96, heads=6, kv_heads=3)):
        with _folder() as folder:
            source = random_artifact(folder, config=config)
            found = subject.format.open(subject.write(folder, source)).model.tensors
            for name, tensor in source.model.tensors.items():
                if name not in found:
                    fail(f"tensor {name} was written and is gone; there are {', '.join(sorted(found))}")
                _same_values(name, tensor, found[name])
            extra = sorted(found.keys() - source.model.tensors.keys())
            if extra:
                fail(f"tensors come back that were not written: {', '.join(extra)}")


def _same_values(name: str, wanted: Any, found: Any) -> None:
    if wanted.shape != found.shape:
        fail(f"tensor {name} comes back with shape {found.shape}; {wanted.shape} was written")
    a, b = (np.ascontiguousarray(each.float32()) for each in (wanted, found))
    if a.tobytes() == b.tobytes():
        return
    rows = a.shape[0]
    if sorted(map(bytes, a)) == sorted(map(bytes, b)) and rows > 1:
        fail(f"tensor {name} comes back with its rows in another order (rotary halves against pairs?)")
    row, column = np.argwhere(a.view(np.uint32) != b.view(np.uint32))[0]
    fail(f"tensor {name}, row {row}, column {column}: {a[row, column]:.9g} comes back as {b[row, column]:.9g}")


@KIT.check
def check_config(subject: FormatSubject, profile: Profile) -> None:
    """The hyper-parameters come back as they were: heads, context, epsilon, rotary base, every one."""
    for changes in ({}, {"norm_eps": 1e-6, "rope_theta": 500000.0}, {"kv_heads": 1, "layers": 2}, {"context": 2048}):
        config = small_config(**changes)
        with _folder() as folder:
            found = subject.format.open(subject.write(folder, random_artifact(folder, config=config))).model.config
            for field in attrs.fields(type(config)):
                was, now = getattr(config, field.name), getattr(found, field.name)
                if not _close(was, now):
                    fail(f"{field.name} was {was!r}, comes back as {now!r}")


def _close(was: Any, now: Any) -> bool:
    if isinstance(was, float) and isinstance(now, float):
        return abs(was - now) <= 1e-6 * abs(was)  # formats store float32
    return bool(was == now)


@KIT.check
def check_tokenizer(subject: FormatSubject, profile: Profile) -> None:
    """The tokenizer comes back: tokens, types, scores or merges, special ids, chat template."""
    from edgekit.testing._tokenizers import FIELDS, bpe, spm, urgency

    for tokenizer in (spm(), bpe()):
        with _folder() as folder:
            config = small_config(vocab=len(tokenizer.tokens))
            source = random_artifact(folder, config=config, tokenizer=tokenizer)
            found = subject.format.open(subject.write(folder, source)).tokenizer
            if found is None:
                fail(f"the {tokenizer.kind} tokenizer is gone")
            for field in FIELDS:
                was, now = getattr(tokenizer, field), getattr(found, field)
                if was != now:
                    fail(f"{field} of the {tokenizer.kind} tokenizer: {_told(was, now)}")
            if urgency(tokenizer) != urgency(found):
                fail(f"the scores of the {tokenizer.kind} tokenizer come back in another order: it cuts otherwise")


def _told(was: Any, now: Any) -> str:
    if isinstance(was, tuple) and isinstance(now, tuple):
        if len(was) != len(now):
            return f"{len(was)} were written, {len(now)} come back"
        at = next(i for i, (a, b) in enumerate(zip(was, now, strict=True)) if a != b)
        return f"number {at} was {was[at]!r}, comes back as {now[at]!r}"
    return f"was {was!r}, comes back as {now!r}"


@KIT.check
def check_precisions(subject: FormatSubject, profile: Profile) -> None:
    """Every precision that the format stores comes back part by part; the others are refused with a typed error."""
    names = _SOME if profile.name == "quick" else [p.name for p in catalogue()]
    stored = [name for name in ("float:F16", "float:BF16", *names) if _stores(subject, Precision.parse(name))]
    if not stored:
        raise NotApplicable("it stores plain float32 only")


def _stores(subject: FormatSubject, precision: Precision) -> bool:
    from edgekit.testing._trips import trip

    cols = 2 * int(np.lcm(precision.block or 32, 32))
    with _folder() as folder:
        source = random_artifact(folder, config=small_config(cols))
        return trip(subject.format, folder / f"trip{subject.suffix}", source, precision)


@KIT.check
def check_row_slices(subject: FormatSubject, profile: Profile) -> None:
    """Rows read in slices are the rows of the whole, encoded or not."""
    with _folder() as folder:
        source = random_artifact(folder)
        found = subject.format.open(subject.write(folder, source)).model.tensors
        for name in (QUANTIZED, "token_embd.weight"):
            tensor = found[name]
            whole = np.ascontiguousarray(tensor.float32())
            for step in (1, 3, 7):
                starts = range(0, tensor.rows, step)
                parts = [tensor.float32(start, min(start + step, tensor.rows)) for start in starts]
                if np.concatenate(parts).tobytes() != whole.tobytes():
                    fail(f"tensor {name} read in slices of {step} rows differs from the whole")


@KIT.check
def check_deterministic(subject: FormatSubject, profile: Profile) -> None:
    """Written twice, every file has the same bytes: no clock, no path, no order of chance."""
    with _folder() as folder:
        source, written = random_artifact(folder), []
        for name in ("one", "two"):
            (folder / name).mkdir()
            written.append(_contents(subject.write(folder / name, source)))
        for file, data in written[0].items():
            if written[1].get(file) != data:
                fail(f"{file} differs when it is written a second time")


def _contents(path: Path) -> dict[str, bytes]:
    files = sorted(path.rglob("*")) if path.is_dir() else [path, manifest_path(path)]
    return {file.name: file.read_bytes() for file in files if file.is_file()}


@KIT.check
def check_atomic(subject: FormatSubject, profile: Profile) -> None:
    """Nothing shows before `commit`; a writer that is closed early leaves the target and its folder as they were."""
    with _folder() as folder:
        source, path = random_artifact(folder / "source"), folder / f"model{subject.suffix}"
        _begin_and_stop(subject, source, path)
        left = sorted(file.name for file in folder.iterdir())
        if left:
            fail(f"a writer that was closed without commit left {', '.join(left)} behind")
        subject.write(folder, source)
        before = _contents(path)
        other = random_artifact(folder / "source", seed=1)
        _begin_and_stop(subject, other, path)
        if _contents(path) != before:
            fail("a writer that was closed without commit changed the artifact that was there")


def _begin_and_stop(subject: FormatSubject, source: Artifact, path: Path) -> None:
    existed = path.exists()
    layout = subject.format.layout(source)
    from edgekit.manifest import Manifest
    from edgekit.testing._trips import encoded

    plan = plan_of(layout)
    writer = subject.format.writer(path, layout, plan, Manifest())
    try:
        for slot, assignment in list(zip(layout.slots, plan, strict=True))[:2]:
            writer.write(encoded(slot, assignment))
        if path.exists() and not existed:
            fail(f"{path.name} is there before commit: whoever opens it reads half a model")
    finally:
        writer.close()


@KIT.check
def check_complete(subject: FormatSubject, profile: Profile) -> None:
    """`commit` refuses while tensors are missing, and `write` refuses a tensor that is not the plan's next."""
    from edgekit.manifest import Manifest
    from edgekit.testing._trips import encoded

    with _folder() as folder:
        source, path = random_artifact(folder / "source"), folder / f"model{subject.suffix}"
        layout = subject.format.layout(source)
        plan = plan_of(layout)
        pairs = list(zip(layout.slots, plan, strict=True))
        for what, tensors in {"a tensor is missing": pairs[:-1], "the order is wrong": [*pairs[1:], pairs[0]]}.items():
            writer = subject.format.writer(path, layout, plan, Manifest())
            try:
                for slot, assignment in tensors:
                    writer.write(encoded(slot, assignment))
                writer.commit()
            except EdgekitError:
                continue
            finally:
                writer.close()
            fail(f"{what}, and nothing was said")


@KIT.check
def check_resumes(subject: FormatSubject, profile: Profile) -> None:
    """An interrupted run goes on where it was, or from the start, and gives the same bytes."""
    from edgekit.manifest import Manifest
    from edgekit.testing._trips import encoded

    with _folder() as folder:
        for name in ("whole", "parts"):
            (folder / name).mkdir()
        source = random_artifact(folder / "source")
        wanted = _contents(subject.write(folder / "whole", source))
        path, layout = folder / "parts" / f"model{subject.suffix}", subject.format.layout(source)
        plan = plan_of(layout)
        pairs = list(zip(layout.slots, plan, strict=True))
        writer = subject.format.writer(path, layout, plan, Manifest())
        for slot, assignment in pairs[:3]:
            writer.write(encoded(slot, assignment))
        writer.close(keep=True)
        writer = subject.format.writer(path, layout, plan, Manifest())
        try:
            for slot, assignment in pairs[writer.done :]:
                writer.write(encoded(slot, assignment))
            writer.commit()
        finally:
            writer.close()
        found = _contents(path)
        differing = sorted(file for file in wanted if found.get(file) != wanted[file])
        if differing:
            fail(f"resumed, {', '.join(differing)} differs from what one run writes")


@KIT.check
def check_truncated(subject: FormatSubject, profile: Profile) -> None:
    """A file that was cut off, anywhere, is refused with `InvalidFileError` (or another typed error)."""
    with _folder() as folder:
        path = subject.write(folder, random_artifact(folder))
        file = max(subject.format.open(path).files, key=lambda f: f.stat().st_size)
        data = file.read_bytes()
        cuts = np.unique(np.r_[np.linspace(0, len(data) - 1, 24 if profile.name == "quick" else 200).astype(int), 1, 7])
        for cut in cuts:
            file.write_bytes(data[:cut])
            error = _refusal(subject, path)
            if error is None:
                fail(f"{file.name} cut off after {cut} of {len(data)} bytes opens and reads as if it were whole")


@KIT.check
def check_hostile(subject: FormatSubject, profile: Profile) -> None:
    """A file with wrong bytes in it opens or is refused with a typed error: no other exception, no huge allocation."""
    with _folder() as folder:
        path = subject.write(folder, random_artifact(folder))
        for file in subject.format.open(path).files[:2]:
            _damage(subject, path, file, 60 if profile.name == "quick" else 600)


def _damage(subject: FormatSubject, path: Path, file: Path, times: int) -> None:
    data, random = file.read_bytes(), np.random.RandomState(5)
    header = min(len(data), 4096)
    for number in range(times):
        at, width = int(random.randint(0, header)), int(random.choice([1, 4, 8]))
        noise = b"\xff" * width if number % 3 == 0 else bytes(random.randint(0, 256, width).astype(np.uint8))
        file.write_bytes(data[:at] + noise + data[at + width :])
        try:
            _refusal(subject, path)
        except Exception as error:
            fail(
                f"{file.name} with {noise.hex()} at offset {at} raises {type(error).__name__}: {error}; "
                "check every length and type before it is used, and raise InvalidFileError"
            )
    file.write_bytes(data)


def _refusal(subject: FormatSubject, path: Path) -> EdgekitError | None:
    """Open and read everything; gives the typed error, or None where all is well."""
    try:
        artifact = subject.format.open(path)
        for tensor in artifact.tensors.values():
            _read(tensor)
        _ = artifact.model, artifact.tokenizer
    except EdgekitError as error:
        return error
    return None


def _read(tensor: Tensor | EncodedTensor) -> None:
    values = tensor.read()
    if isinstance(tensor, Tensor) and np.shape(values) != tensor.shape:
        raise InvalidFileError(f"{tensor.name}: values of shape {np.shape(values)} for {tensor.shape}")


__all__ = ["KIT", "FormatSubject", "adapt", "format_checks", "run_format_checks"]
