"""Checks of what is read back from a file: tensors, hyper-parameters, tokenizer, manifest, encoded parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import numpy as np

from edgekit.architectures import Model, ModelConfig
from edgekit.errors import EdgekitError
from edgekit.manifest import Manifest
from edgekit.precision import Precision, catalogue, find_precision
from edgekit.reference import reference
from edgekit.tensor import AnyTensor, EncodedTensor, Tensor
from edgekit.testing._families import FAMILIES
from edgekit.testing._kit import Kit, NotApplicable, Profile, fail
from edgekit.testing._trips import QUANTIZED, random_artifact, small_config, trip, write_in_rows
from edgekit.testing.formats._subject import FormatSubject, contents_of, temporary_folder
from edgekit.testing.models import artifact_of, random_model

#: The checks of this module, in the order in which they run.
ROOM: Kit[FormatSubject] = Kit("formats")
#: Precisions that the quick profile tests; the other profiles test the whole catalogue.
_SOME = (
    "affine:int4-asym-g32",
    "ggml:Q4_0",
    "ggml:Q8_0",
    "mlx:int4-g32",
    "onnx:int4-asym-g32",
    "openvino:int4-sym-g32",
)


@ROOM.check
def check_matches(subject: FormatSubject, profile: Profile) -> None:
    """`matches` recognises the format's artifacts and no others, and never raises.

    `edgekit.open` calls `matches` of every installed format, so that one that raises breaks all formats.
    """
    with temporary_folder() as folder:
        path = subject.write(folder, random_artifact(folder))
        if not subject.format.matches(path):
            fail(f"matches() does not know the file that the format wrote ({path.name})")
        (folder / "noise.xyz").write_bytes(bytes(range(256)) * 4)
        (folder / "empty.xyz").write_bytes(b"")
        (folder / "elsewhere").mkdir()
        for other in ("noise.xyz", "empty.xyz", "elsewhere", "missing"):
            if subject.format.matches(folder / other):
                fail(f"matches() takes {other} for its own")


@ROOM.check
def check_tensors(subject: FormatSubject, profile: Profile) -> None:
    """Every tensor is read as it was written: canonical name, shape, and every bit of its values.

    Typical faults: the rows of a rotary projection in the wrong order, a transposed matrix, the output matrix taken
    as tied, a norm stored with an offset, float32 values rounded to float16.
    """
    for config in (small_config(), small_config(layers=2, kv_heads=1), small_config(width=96, heads=6, kv_heads=3)):
        with temporary_folder() as folder:
            source = random_artifact(folder, config=config)
            model = subject.format.open(subject.write(folder, source)).model
            _same_tensors(source.model, model)


def _same_tensors(source: Model, model: Model, what: str = "") -> None:
    for name, tensor in source.tensors.items():
        if name not in model.tensors:
            fail(f"{what}tensor {name} was written and is gone; there are {', '.join(sorted(model.tensors))}")
        _same_values(f"{what}tensor {name}", tensor, model.tensors[name])
    extra = sorted(model.tensors.keys() - source.tensors.keys())
    if extra:
        fail(f"{what}tensors come back that were not written: {', '.join(extra)}")


def _same_values(name: str, expected: Any, actual: Any) -> None:
    if expected.shape != actual.shape:
        fail(f"{name} comes back with shape {actual.shape}; {expected.shape} was written")
    a, b = (np.ascontiguousarray(each.float32()) for each in (expected, actual))
    if a.tobytes() == b.tobytes():
        return
    rows = a.shape[0]
    if sorted(map(bytes, a)) == sorted(map(bytes, b)) and rows > 1:
        fail(f"{name} comes back with its rows in another order (rotary halves against pairs?)")
    row, column = np.argwhere(a.view(np.uint32) != b.view(np.uint32))[0]
    fail(f"{name}, row {row}, column {column}: {a[row, column]:.9g} comes back as {b[row, column]:.9g}")


@ROOM.check
def check_values(subject: FormatSubject, profile: Profile) -> None:
    """Every float is read bit for bit, in tensors of odd sizes too: zeros of both signs, subnormals, the largest.

    Sizes are not multiples of the alignment. Typical faults: -0.0 becomes 0.0, subnormals are flushed to zero, the end
    of a tensor is lost in the padding.
    """
    config = small_config(width=63, ffn=45, vocab=51)
    model = random_model(config)
    odd = {name: Tensor.of(name, _odd_values(tensor.float32(), tensor.shape)) for name, tensor in model.tensors.items()}
    with temporary_folder() as folder:
        source = artifact_of(attrs.evolve(model, tensors=odd), folder / "source")
        _same_tensors(source.model, subject.format.open(subject.write(folder, source)).model)


def _odd_values(values: Any, shape: tuple[int, ...]) -> Any:
    special = np.array([0.0, -0.0, 1e-45, -1e-40, 2.0**-126, 3.4e38, -3.4e38, 65519.0, -1.0], np.float32)
    odd = values.ravel().copy()
    odd[: len(special)] = odd[-len(special) :] = special
    return odd.reshape(shape)


@ROOM.check
def check_config(subject: FormatSubject, profile: Profile) -> None:
    """Every hyper-parameter is read as it was written: heads, context, epsilon, rotary base and all others.

    Typical faults: a framework's default instead of the model's value, the number of key and value heads confused with
    the number of heads, the size of a head computed from the width.
    """
    changed: tuple[dict[str, Any], ...] = (
        {}, {"norm_eps": 1e-6, "rope_theta": 500000.0}, {"kv_heads": 1, "layers": 2}, {"context": 2048},
        {"head_dim": 32, "rotary_dim": 32, "attention_scale": 32**-0.5},
    )  # fmt: skip
    for changes in changed:
        config = small_config(**changes)
        with temporary_folder() as folder:
            read = subject.format.open(subject.write(folder, random_artifact(folder, config=config))).model.config
            _same_config(config, read)


def _same_config(config: ModelConfig, read: ModelConfig, what: str = "") -> None:
    for field in attrs.fields(type(config)):
        was, now = getattr(config, field.name), getattr(read, field.name)
        if not _close(was, now):
            fail(f"{what}{field.name} was {was!r}, comes back as {now!r}")


def _close(was: Any, now: Any) -> bool:
    if isinstance(was, float) and isinstance(now, float):
        return abs(was - now) <= 1e-6 * abs(was)  # formats store float32
    if isinstance(was, tuple) and isinstance(now, tuple):
        return len(was) == len(now) and all(map(_close, was, now))
    if attrs.has(type(was)) and type(was) is type(now):
        return all(_close(getattr(was, f.name), getattr(now, f.name)) for f in attrs.fields(type(was)))
    return bool(was == now)


@ROOM.check
def check_families(subject: FormatSubject, profile: Profile) -> None:
    """Models of every family are read as they were written; or the family is refused with a typed error.

    With biases, query norms, tied embeddings, sliding windows, soft caps, four kinds of rope scaling, fused matrices. A
    format must refuse what it cannot represent: a model written without its sliding window computes other results.
    """
    for name, changes in FAMILIES.items():
        config = small_config(**changes)
        model = random_model(config)
        tensors = {name: _offset_safe(name, tensor) for name, tensor in model.tensors.items()}
        with temporary_folder() as folder:
            source = artifact_of(attrs.evolve(model, tensors=tensors), folder / "source")
            try:
                path = subject.write(folder, source)
            except EdgekitError:  # the family is unsupported, and the error is typed
                continue
            read = subject.format.open(path).model
            _same_config(config, read.config, f"{name}: ")
            _same_tensors(source.model, read, f"{name}: ")


def _offset_safe(name: str, tensor: AnyTensor) -> AnyTensor:
    """Return norms rounded to multiples of 2**-12, so that subtracting 1 (as in Gemma's files) loses no bits."""
    if not name.endswith("norm.weight"):
        return tensor
    return Tensor.of(name, (np.rint(tensor.float32() * 4096) / np.float32(4096)).reshape(tensor.shape))


@ROOM.check
def check_tokenizer(subject: FormatSubject, profile: Profile) -> None:
    """The tokenizer is read as it was written: tokens, types, scores or merges, special ids, chat template.

    Tokenizers with scores and with merges are tried, whose fields differ from common defaults: whether BOS and EOS are
    added, a template of several lines. Typical faults: merges lost or in another order, special ids off by one.
    """
    from edgekit.testing._tokenizers import FIELDS, bpe, bpe_with_bos, spm, spm_without_space, urgency

    for tokenizer in (spm(), bpe(), spm_without_space(), bpe_with_bos()):
        with temporary_folder() as folder:
            config = small_config(vocab=len(tokenizer.tokens))
            source = random_artifact(folder, config=config, tokenizer=tokenizer)
            read = subject.format.open(subject.write(folder, source)).tokenizer
            if read is None:
                fail(f"the {tokenizer.kind} tokenizer is gone")
            for field in FIELDS:
                was, now = getattr(tokenizer, field), getattr(read, field)
                if was != now:
                    fail(f"{field} of the {tokenizer.kind} tokenizer: {_difference(was, now)}")
            if urgency(tokenizer) != urgency(read):
                fail(f"the scores of the {tokenizer.kind} tokenizer come back in another order: it cuts otherwise")


def _difference(was: Any, now: Any) -> str:
    if isinstance(was, tuple) and isinstance(now, tuple):
        if len(was) != len(now):
            return f"{len(was)} were written, {len(now)} come back"
        at = next(i for i, (a, b) in enumerate(zip(was, now, strict=True)) if a != b)
        return f"number {at} was {was[at]!r}, comes back as {now[at]!r}"
    return f"was {was!r}, comes back as {now!r}"


@ROOM.check
def check_manifest(subject: FormatSubject, profile: Profile) -> None:
    """The manifest is written with the artifact and read back: sources, recipe, precisions, versions, quality.

    It records the source files, the versions and the quality of an artifact.
    """
    manifest = Manifest(
        sources={"model.safetensors": "0123456789abcdef" * 4},
        recipe="test",
        tensors={QUANTIZED: {"precision": "float:F32", "backend": "reference", "why": "test"}},
        versions={"edgekit": "0.1.0"},
        quality={"perplexity": 12.5, "nested": {"kl": 0.25}},
        notes={"fell_back": "a sentence"},
    )
    with temporary_folder() as folder:
        read = subject.format.open(subject.write(folder, random_artifact(folder), manifest=manifest)).manifest
        if read is None:
            fail("the manifest is gone; give it to AtomicFile.commit or write it into the directory, then read it")
        for field in attrs.fields(Manifest):
            was, now = getattr(manifest, field.name), getattr(read, field.name)
            if was != now and field.name != "tensors":
                fail(f"the manifest's {field.name} were {was!r}, come back as {now!r}")


@ROOM.check
def check_precisions(subject: FormatSubject, profile: Profile) -> None:
    """Every precision that the format stores is read back part by part; the others are refused with a typed error.

    The encoded rows hold zeros, constants, and values of one sign, so that zero points at both ends of their range are
    stored. The quick profile tries six precisions, the others all that need no importance matrix. Typical faults:
    swapped nibbles, a zero point of 0 stored as 15.
    """
    blind = [p.name for p in catalogue() if not reference(p).traits.needs_importance]
    names = _SOME if profile.name == "quick" else blind
    stored = [name for name in ("float:F16", "float:BF16", *names) if _stores(subject, find_precision(name))]
    if not stored:
        raise NotApplicable("it stores plain float32 only")


def _stores(subject: FormatSubject, precision: Precision) -> bool:
    with temporary_folder() as folder:
        return trip(subject.format, folder / f"trip{subject.suffix}", _varied(precision, folder), precision)


def _varied(precision: Precision, folder: Path) -> Any:
    """Return a model whose quantized tensor has rows of one sign, of zeros, and of one value."""
    model = random_model(small_config(2 * int(np.lcm(precision.block or 32, 32))))
    rows = model.tensors[QUANTIZED].float32().copy()
    rows[0], rows[1], rows[2], rows[3] = np.abs(rows[0]) + 0.01, -np.abs(rows[1]) - 0.01, 0, 0.75
    changed = {**model.tensors, QUANTIZED: Tensor.of(QUANTIZED, rows)}
    return artifact_of(attrs.evolve(model, tensors=changed), folder / "source")


@ROOM.check
def check_row_slices(subject: FormatSubject, profile: Profile) -> None:
    """Rows read in slices are equal to the rows of the whole tensor, encoded or not.

    edgekit streams tensors in slices of rows. If the format stores one of the common precisions, an encoded tensor is
    read in slices too, part by part.
    """
    encoded = next((p for p in map(find_precision, ("float:F16", *_SOME)[::-1]) if _stores(subject, p)), None)
    for precision in (None, encoded):
        chosen = {} if precision is None else {QUANTIZED: precision}
        cols = 2 * int(np.lcm((precision and precision.block) or 32, 32))
        with temporary_folder() as folder:
            source = random_artifact(folder, small_config(cols))
            tensors = subject.format.open(subject.write(folder, source, chosen)).model.tensors
            for name in (QUANTIZED, "token_embd.weight"):
                _sliced(name, tensors[name])


def _sliced(name: str, tensor: Tensor | EncodedTensor) -> None:
    whole = np.ascontiguousarray(tensor.float32())
    for step in (1, 3, 7):
        starts = range(0, tensor.rows, step)
        parts = [tensor.float32(start, min(start + step, tensor.rows)) for start in starts]
        if np.concatenate(parts).tobytes() != whole.tobytes():
            fail(f"tensor {name} read in slices of {step} rows differs from the whole")


@ROOM.check
def check_written_rows(subject: FormatSubject, profile: Profile) -> None:
    """A tensor written in slices of rows gives the bytes that it gives as a whole.

    A large tensor, such as a stack of experts, is written as it is encoded: see `edgekit.artifact.RowWriter`. Typical
    fault: the second part of a tensor begins where the first slice of the first one ended.
    """
    encoded = next((p for p in map(find_precision, ("float:F16", *_SOME)[::-1]) if _stores(subject, p)), None)
    for precision in (None, encoded):
        chosen = {} if precision is None else {QUANTIZED: precision}
        cols = 2 * int(np.lcm((precision and precision.block) or 32, 32))
        with temporary_folder() as folder:
            source = random_artifact(folder, small_config(cols))
            (folder / "whole").mkdir()
            expected = contents_of(subject.write(folder / "whole", source, chosen))
            for step in (1, 7):
                (folder / f"{step}").mkdir()
                path = folder / f"{step}" / f"model{subject.suffix}"
                if not write_in_rows(subject.format, path, source, chosen, step):
                    raise NotApplicable("its writer takes whole tensors")
                written = contents_of(path)
                differing = sorted(file for file in expected if written.get(file) != expected[file])
                if differing:
                    fail(f"written in slices of {step} rows, {', '.join(differing)} differs")


__all__ = [
    "ROOM",
    "check_config",
    "check_families",
    "check_manifest",
    "check_matches",
    "check_precisions",
    "check_row_slices",
    "check_tensors",
    "check_tokenizer",
    "check_values",
    "check_written_rows",
]
