"""mlx-lm's learned quantization methods as passes: GPTQ, AWQ, DWQ and its dynamic mixture, on a local text.

    pass           learns                                             takes
    mlx-gptq       codes: each column makes up for those before it    2, 4 or 8 bits
    mlx-awq        scales of channels, and clipping                   families that mlx-lm has a rule for
    mlx-dwq        scales and biases, by distillation                 below 8 bits
    mlx-dynamic    which matrices get more bits                       two widths

mlx-lm's functions do the work, in float32; its command lines, which download their text, are not used. The last tenth
of the text, at most `MEASURED` windows, is left out: on it the divergence from the source is measured, of the result
and of the matrices rounded to nearest with the same widths (``divergence`` and ``divergence_nearest``, which are equal
for mlx-dynamic: it chooses the widths, and rounds to nearest).

Equal bytes from equal inputs are promised on the CPU. Metal sums gradients in no fixed order, so that mlx-lm's own
dynamic_quant gives another model in each run whatever its seed (mlx-lm #1759): the device is ``cpu`` unless ``gpu`` is
asked for. The only random choice, DWQ's order of batches, has a seed.

Source: mlx-lm 0.32.2, ``quant``.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, Required, TypedDict, Unpack

import attrs
import numpy as np

import edgekit
from edgekit.artifact import Artifact, Layout
from edgekit.errors import (
    InvalidFileError,
    MissingFileError,
    NonFiniteError,
    PluginError,
    ShapeError,
    UnsupportedModelError,
    UsageError,
)
from edgekit.evaluation.language import cut, tokens_of
from edgekit.files.digests import digests
from edgekit.files.memory import refuse_shortage
from edgekit.manifest import Manifest
from edgekit.precision import Precision
from edgekit.recipe import Assignment, Plan, Slot, own_precision, quantized
from edgekit.tensor import AnyTensor, EncodedTensor, QuantizedTensor, Tensor
from edgekit.typing import Array
from edgekit_mlx.format import MlxFormat
from edgekit_mlx.library import chosen, core, from_mlx, lm, nn, optimizers, tree_flatten, tree_unflatten
from edgekit_mlx.modes import BITS, GROUPS, precision_of
from edgekit_mlx.module import load_decoder, refuse_too_large
from edgekit_mlx.worker import Worker

#: Windows on which results are measured, at most.
MEASURED = 4
#: Families whose layers mlx-lm's AWQ knows, and its name of their rule.
AWQ_RULES = {
    **dict.fromkeys(("llama", "mistral", "ministral3", "qwen2", "qwen3"), "llama"),
    "gemma3": "gemma3_text",
}
_PARTS = ("weight", "scales", "biases")
_LEARNED_TYPES = ("float16", "bfloat16")
#: What `edgekit verify` gives every method: a text for its small model.
_TRIAL: dict[str, Any] = {"text": [3, 5, 9, 4, 7, 8, 6, 2] * 20, "length": 16, "group": 32}


@attrs.frozen(eq=False)
class _Task:
    """What a method is given.

    Attributes:
        module: mlx-lm's model in float32; may be changed.
        windows: token ids of the text, an mx.array [count, length].
        family: edgekit's name of the model's family.
        dtypes: the type in which each tensor is stored, by name.
        where: the source's path, for messages.
    """

    module: Any
    windows: Any
    family: str
    dtypes: Mapping[str, str]
    where: Path


_Method = Callable[[_Task], Any]


class Learning(TypedDict, total=False):
    """The options that all methods share.

    Attributes:
        text: a file of calibration text, or token ids [n]; required.
        samples: windows of the text to learn from, at most; 128, of `Dwq` 2,048.
        length: tokens of a window, at most the model's context; 512.
        device: ``cpu``, the default; or ``gpu``, where runs may differ.
    """

    text: Required[str | Path | Sequence[int]]
    samples: int
    length: int
    device: str


class Gptq:
    """GPTQ; see `edgekit.pipeline.passes.Pass`."""

    name = "mlx-gptq"
    trial: ClassVar[Mapping[str, Any]] = _TRIAL | {"fallback_group": 32}

    def run(
        self,
        source: Artifact,
        to: Path,
        *,
        bits: int = 4,
        group: int = 64,
        fallback_bits: int = 6,
        fallback_group: int = 64,
        **learning: Unpack[Learning],
    ) -> Artifact:
        """Write the model as an MLX directory, its linear layers rounded column by column.

        Args:
            source: a model of a family that mlx-lm has; best before quantization.
            to: the directory to write.
            bits: 2, 4 or 8, of linear layers and experts.
            group: columns that share a scale: 32, 64 or 128.
            fallback_bits: of the embedding, which has no inputs to learn from.
            fallback_group: of the embedding.
            learning: the text and how much of it; see `Learning`.

        Returns:
            The result. Its ``manifest.quality`` has ``divergence``, ``divergence_nearest`` (mean KL divergence in nats,
            of the result and of rounding to nearest with the same widths), ``bits_per_weight``, and the number of
            ``tokens`` learned from and ``tokens_measured``.

        Raises:
            UsageError: an option out of range, or a text of fewer than two windows.
            ShapeError: the group does not divide a matrix's rows.
            UnsupportedModelError: a family that mlx-lm, or the method, does not have.
            NonFiniteError: the result computes values that are not finite.
            MemoryShortageError: the float32 model is larger than the memory.
        """
        _one_of("bits", bits, (2, 4, 8))
        _width("fallback_bits", fallback_bits, fallback_group)
        _width("bits", bits, group)

        def method(task: _Task) -> Any:
            _refuse_shapes(task, lambda module: group if _is_linear(module) else fallback_group)
            run = lm("quant.gptq").gptq_quantize
            return run(task.module, task.windows, bits, group, fallback_bits, fallback_group)[0]

        words = f"{bits} bits in groups of {group}, {fallback_bits} in {fallback_group}"
        return _learn(source, to, f"{self.name} {words}", method, _Text.of(learning))


class Awq:
    """Activation-aware scales and clipping; see `edgekit.pipeline.passes.Pass`."""

    name = "mlx-awq"
    trial: ClassVar[Mapping[str, Any]] = _TRIAL | {"grid": 2}

    def run(
        self,
        source: Artifact,
        to: Path,
        *,
        bits: int = 4,
        group: int = 64,
        embed_bits: int = 4,
        embed_group: int = 32,
        grid: int = 20,
        **learning: Unpack[Learning],
    ) -> Artifact:
        """Write the model as an MLX directory, its channels scaled by their activations before they are rounded.

        Args:
            source: a model of a family that mlx-lm has; best before quantization.
            to: the directory to write.
            bits: 2, 3, 4, 5, 6 or 8, of linear layers.
            group: columns that share a scale: 32, 64 or 128.
            embed_bits: of the embedding and the output matrix.
            embed_group: of the embedding and the output matrix.
            grid: how many scales are tried, and half as many clippings.
            learning: the text and how much of it; see `Learning`.

        Returns:
            The result, with the same measurements as that of `Gptq.run`.

        Raises:
            UsageError, ShapeError, UnsupportedModelError, NonFiniteError, MemoryShortageError: as `Gptq.run`.
        """
        _width("bits", bits, group)
        _width("embed_bits", embed_bits, embed_group)
        _positive("grid", grid)

        def method(task: _Task) -> Any:
            if task.family not in AWQ_RULES:
                raise UnsupportedModelError(
                    f"{task.where}: mlx-lm's AWQ has no rule for {task.family}; it has {', '.join(AWQ_RULES)}; choose "
                    "mlx-gptq or mlx-dwq"
                )
            _refuse_shapes(task, lambda module: group if _is_linear(module) else embed_group)
            awq = lm("quant.awq")
            rule = awq.AWQ_MODEL_CONFIGS[AWQ_RULES[task.family]]
            awq.awq_quantize(task.module, task.windows, rule, group, bits, embed_group, embed_bits, grid)
            return task.module

        words = f"{bits} bits in groups of {group}, {embed_bits} in {embed_group}"
        return _learn(source, to, f"{self.name} {words}", method, _Text.of(learning))


class Dwq:
    """Scales and biases distilled from the source; see `edgekit.pipeline.passes.Pass`."""

    name = "mlx-dwq"
    trial: ClassVar[Mapping[str, Any]] = _TRIAL | {"rate": 1e-3}

    def run(
        self,
        source: Artifact,
        to: Path,
        *,
        bits: int = 4,
        group: int = 64,
        rate: float = 1e-5,
        epochs: int = 1,
        batch: int = 4,
        seed: int = 0,
        **learning: Unpack[Learning],
    ) -> Artifact:
        """Write the model as an MLX directory whose scales and biases were trained to give the source's logits.

        Args:
            source: a model of a family that mlx-lm has; best before quantization.
            to: the directory to write.
            bits: 2, 3, 4, 5 or 6.
            group: columns that share a scale: 32, 64 or 128.
            rate: Adam's learning rate.
            epochs: how often the text is gone through.
            batch: windows of a step.
            seed: of the order of the batches.
            learning: the text and how much of it; see `Learning`.

        Returns:
            The result, with the same measurements as that of `Gptq.run`.

        Raises:
            UsageError, ShapeError, UnsupportedModelError, NonFiniteError, MemoryShortageError: as `Gptq.run`.
        """
        _width("bits", bits, group)
        _one_of("bits", bits, tuple(b for b in BITS[1:] if b < 8))
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < 1:
            raise UsageError(f"rate {rate!r:.80}; choose above 0 and below 1")
        for name, value in (("epochs", epochs), ("batch", batch)):
            _positive(name, value)
        if type(seed) is not int or not 0 <= seed < 1 << 32:
            raise UsageError(f"seed {seed!r:.80}; choose an integer of 0 or more, below 2^32")
        given = _Text.of(learning, samples=2048)

        def method(task: _Task) -> Any:
            _refuse_shapes(task, lambda _: group)
            teacher = copy.deepcopy(task.module)
            _quantize(task.module, lambda _path, _module: {"bits": bits, "group_size": group})
            rows = [(row, 0) for row in task.windows.tolist()] * epochs
            size = min(batch, len(rows))
            adam = optimizers().Adam(learning_rate=rate, bias_correction=True)
            with _numpys_state_kept():
                lm("quant.dwq").dwq_quantize(
                    task.module, lambda batch, *_, **__: teacher(batch), adam, rows, rows[:size],
                    batch_size=size, max_seq_length=given.length, seed=seed, dtype=core().float32,
                )  # fmt: skip
            return task.module

        words = f"{bits} bits in groups of {group}, rate {rate:g}, {epochs} epochs, seed {seed}"
        return _learn(source, to, f"{self.name} {words}", method, given)


class Dynamic:
    """More bits where the gradient says that they count; see `edgekit.pipeline.passes.Pass`."""

    name = "mlx-dynamic"
    trial: ClassVar[Mapping[str, Any]] = _TRIAL | {"high_group": 32, "high_bits": 6, "target": 6.0}

    def run(
        self,
        source: Artifact,
        to: Path,
        *,
        bits: int = 4,
        group: int = 64,
        high_bits: int = 5,
        high_group: int = 64,
        target: float = 5.0,
        **learning: Unpack[Learning],
    ) -> Artifact:
        """Write the model as an MLX directory in which the most sensitive matrices have more bits.

        Args:
            source: a model of a family that mlx-lm has; best before quantization.
            to: the directory to write.
            bits: of most matrices: 2, 3, 4, 5 or 6.
            group: columns that share a scale: 32, 64 or 128.
            high_bits: of the most sensitive matrices.
            high_group: of the most sensitive matrices.
            target: bits a weight of the whole model, scales and biases included.
            learning: the text and how much of it; see `Learning`.

        Returns:
            The result, with the same measurements as that of `Gptq.run`.

        Raises:
            UsageError, ShapeError, UnsupportedModelError, NonFiniteError, MemoryShortageError: as `Gptq.run`.
        """
        _width("bits", bits, group)
        _width("high_bits", high_bits, high_group)
        if high_bits <= bits:
            raise UsageError(f"high_bits {high_bits}; choose more than bits, {bits}")
        if isinstance(target, bool) or not isinstance(target, int | float) or not 0 < target < 32:
            raise UsageError(f"target {target!r:.80}; choose bits a weight, above 0 and below 32")

        def method(task: _Task) -> Any:
            _refuse_shapes(task, lambda _: max(group, high_group))
            dynamic = lm("quant.dynamic_quant")
            widths = bits, group, high_bits, high_group
            found = dict(dynamic.estimate_sensitivities(task.module, task.windows, *widths))
            stored = copy.deepcopy(task.module)  # sizes are counted in the types that are written
            _cast(stored, task.dtypes, keep=True)
            least = dynamic.estimate_threshold(stored, found, target, *widths)
            high, low = {"bits": high_bits, "group_size": high_group}, {"bits": bits, "group_size": group}
            _quantize(task.module, lambda path, _: high if found[path] > least else low)
            return task.module

        words = f"{bits} bits in groups of {group}, or {high_bits} in {high_group}, {target:g} in all"
        return _learn(source, to, f"{self.name} {words}", method, _Text.of(learning))


# Options.


@attrs.frozen
class _Text:
    """The calibration text, how it is cut, and where it is computed; see `Learning`."""

    given: str | Path | Sequence[int]
    samples: int
    length: int
    device: str

    @classmethod
    def of(cls, learning: Learning, samples: int = 128) -> _Text:
        """Return the options with their defaults, of which `samples` is a method's own."""
        if "text" not in learning:
            raise UsageError("text is missing; name a file of calibration text, or give token ids")
        return cls(
            learning["text"],
            learning.get("samples", samples),
            learning.get("length", 512),
            learning.get("device", "cpu"),
        )

    def __attrs_post_init__(self) -> None:
        _positive("samples", self.samples)
        if type(self.length) is not int or self.length < 2:
            raise UsageError(f"length {self.length!r:.80}; choose 2 or more")

    @property
    def file(self) -> Path | None:
        """The file that holds the text; None for token ids."""
        return Path(self.given) if isinstance(self.given, str | Path) else None

    def windows(self, source: Artifact, context: int) -> tuple[Array, Array]:
        """Return token ids to learn from and to measure on, both [count, length]."""
        tokenizer = source.tokenizer
        bos = tokenizer.bos if tokenizer is not None and tokenizer.add_bos else None
        tokens = tokens_of(source, _read(self.file)) if self.file is not None else np.asarray(self.given)
        windows = cut(tokens, min(self.length, context), bos)
        if len(windows) < 2:
            raise UsageError(
                f"the text has {tokens.size} tokens, fewer than two windows of {windows.shape[1]}, one to learn from "
                "and one to measure on; give a longer text, or a smaller length"
            )
        held = min(MEASURED, max(1, len(windows) // 10))
        return windows[:-held][: self.samples], windows[-held:]


def _read(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise MissingFileError(f"{file}: no such file; text names a file of calibration text") from error
    except UnicodeDecodeError as error:
        raise InvalidFileError(f"{file}: it is no UTF-8 text ({error.reason} at byte {error.start})") from error


def _width(name: str, bits: object, group: object) -> None:
    _one_of(name, bits, BITS[1:])
    _one_of("group", group, GROUPS)


def _one_of(name: str, value: object, allowed: Iterable[int]) -> None:
    if type(value) is not int or value not in allowed:
        raise UsageError(f"{name} {value!r:.80}; choose {', '.join(map(str, allowed))}")


def _positive(name: str, value: object) -> None:
    if type(value) is not int or value < 1:
        raise UsageError(f"{name} {value!r:.80}; choose an integer of at least 1")


# The run.


def _learn(source: Artifact, to: Path, recipe: str, method: _Method, text: _Text) -> Artifact:
    """Run a method in a thread of its own, and write what it gives."""
    format, place = MlxFormat(), chosen(text.device)
    layout = format.layout(source)
    worker = Worker()

    def work() -> tuple[dict[str, AnyTensor], dict[str, float]]:
        mx = core()
        with mx.stream(getattr(mx, place)), _silent():
            return _learned(source, layout, method, text)

    try:
        tensors, quality = worker.run(work)
    except (RuntimeError, ValueError) as error:
        refuse_shortage(error, f"{source.path}: {recipe}")
        if isinstance(error, edgekit.EdgekitError):
            raise
        raise PluginError(f"{source.path}: {recipe}: mlx-lm fails: {error!s:.300}") from error
    finally:
        worker.close()
    return _write(format, source, to, _filled(layout, tensors), recipe, quality, text)


def _learned(
    source: Artifact, layout: Layout, method: _Method, text: _Text
) -> tuple[dict[str, AnyTensor], dict[str, float]]:
    """Return the result's tensors by name, and its quality."""
    assert layout.model is not None  # the format's layout refuses a family that is not known
    mx = core()
    refuse_too_large(source, "float32", decoded=True, copies=2)  # the model, and what it is compared with
    loaded = load_decoder(source, "float32", decoded=True)
    windows, held = text.windows(source, loaded.context)
    module = loaded.module
    before = _logits(module, held)
    dtypes = {slot.name: _dtype(slot.tensor) for slot in layout.slots}
    plain = copy.deepcopy(module)
    done = method(_Task(module, mx.array(windows), layout.model.config.family, dtypes, source.path))
    done.eval()
    _cast(done, dtypes)
    widths = {path: {"bits": m.bits, "group_size": m.group_size} for path, m in _quantized(done).items()}
    _quantize(plain, lambda path, _: widths.get(path, False))
    _cast(plain, dtypes)
    quality = {
        "divergence": _divergence(before, _logits(done, held), source.path),
        "divergence_nearest": _divergence(before, _logits(plain, held), source.path),
        "tokens": int(windows.size),
        "tokens_measured": int(held.size),
    }
    return _tensors(done, dtypes), quality


def _logits(module: Any, windows: Array) -> list[Array]:
    mx = core()
    return [np.array(module(mx.array(window[None])).astype(mx.float32))[0] for window in windows]


def _divergence(before: list[Array], after: list[Array], where: Path) -> float:
    """Return the mean KL divergence in nats."""
    total = [float(_kl(p.astype(np.float64), q.astype(np.float64))) for p, q in zip(before, after, strict=True)]
    if not np.isfinite(total).all():
        raise NonFiniteError(
            f"{where}: the result computes logits that are not finite; choose more bits or another text"
        )
    return float(np.mean(total))


def _kl(p: Array, q: Array) -> Any:
    p, q = (x - x.max(axis=-1, keepdims=True) for x in (p, q))
    p, q = (x - np.log(np.exp(x).sum(axis=-1, keepdims=True)) for x in (p, q))
    return (np.exp(p) * (p - q)).sum(axis=-1).mean()


def _is_linear(module: Any) -> bool:
    return isinstance(module, nn().Linear | lm("models.switch_layers").SwitchLinear)


def _leaves(module: Any) -> dict[str, Any]:
    return dict(tree_flatten()(module.leaf_modules(), is_leaf=nn().Module.is_module))


def _quantized(module: Any) -> dict[str, Any]:
    return {path: leaf for path, leaf in _leaves(module).items() if hasattr(leaf, "bits")}


def _quantize(module: Any, widths: Callable[[str, Any], Any]) -> None:
    """Quantize in place what can be, with what `widths` says of each module; rounded to nearest."""
    nn().quantize(module, class_predicate=lambda path, m: hasattr(m, "to_quantized") and widths(path, m))


def _refuse_shapes(task: _Task, group: Callable[[Any], int]) -> None:
    """Refuse a module whose rows its group does not divide; mlx-lm's methods take all or none."""
    for path, module in _leaves(task.module).items():
        if hasattr(module, "to_quantized") and module.weight.shape[-1] % group(module):
            cols, size = module.weight.shape[-1], group(module)
            cure = next((f"choose {small}" for small in GROUPS if small < size and cols % small == 0), "")
            raise ShapeError(
                f"{task.where}: {path} has rows of {cols}, which groups of {size} do not divide; "
                f"{cure or 'quantize it with a recipe, which leaves such rows in float'}"
            )


def _dtype(tensor: AnyTensor) -> str:
    """Return the float type in which to store what is learned of a tensor: its own."""
    return tensor.dtype if isinstance(tensor, Tensor) and tensor.dtype in _LEARNED_TYPES else "float32"


def _cast(module: Any, dtypes: Mapping[str, str], keep: bool = False) -> None:
    """Round floats to the types in which they are stored; computing goes on in float32 unless `keep`."""
    mx = core()
    weights = []
    for name, value in tree_flatten()(module.parameters()):
        kind = dtypes.get(_weight(name, dtypes))
        if kind is not None and mx.issubdtype(value.dtype, mx.floating):
            rounded = value.astype(getattr(mx, kind))
            weights.append((name, rounded if keep else rounded.astype(mx.float32)))
    module.update(tree_unflatten()(weights))
    mx.eval(module.parameters())


def _weight(name: str, dtypes: Mapping[str, str]) -> str:
    """Return the name of the tensor that a parameter belongs to."""
    return name if name in dtypes else f"{name.rpartition('.')[0]}.weight"


def _tensors(module: Any, dtypes: Mapping[str, str]) -> dict[str, AnyTensor]:
    """Return a module's parameters as tensors, those of quantized modules encoded."""
    mx = core()
    values = dict(tree_flatten()(module.parameters()))
    packed = {f"{path}.weight": leaf for path, leaf in _quantized(module).items()}
    found: dict[str, AnyTensor] = {}
    for name, dtype in dtypes.items():
        kind = getattr(mx, dtype)
        if name not in packed:
            array = from_mlx(values[name].astype(kind))
            found[name] = Tensor.of(name, array.view(np.uint16) if dtype == "bfloat16" else array, dtype)
            continue
        leaf = packed[name]
        precision = precision_of("affine", leaf.bits, leaf.group_size)
        assert precision is not None
        stem = name.removesuffix("weight")
        parts = {part: values[f"{stem}{part}"] for part in _PARTS}
        arrays = {k: from_mlx(v if k == "weight" else v.astype(kind)) for k, v in parts.items()}
        found[name] = _encoded(name, precision, arrays)
    return found


def _encoded(name: str, precision: Precision, arrays: Mapping[str, Array]) -> EncodedTensor:
    assert precision.block is not None
    shape = (*arrays["scales"].shape[:-1], arrays["scales"].shape[-1] * precision.block)
    rows = {key: part.reshape(-1, part.shape[-1]) for key, part in arrays.items()}
    nbytes = sum(part.nbytes for part in rows.values())
    return EncodedTensor(name, shape, precision, nbytes, lambda a, b: {k: part[a:b] for k, part in rows.items()})


# Writing.


def _filled(layout: Layout, tensors: Mapping[str, AnyTensor]) -> Layout:
    return attrs.evolve(layout, slots=tuple(_slot(slot, tensors[slot.name]) for slot in layout.slots))


def _slot(slot: Slot, tensor: AnyTensor) -> Slot:
    keep = tensor.precision if isinstance(tensor, EncodedTensor) else own_precision(tensor)
    return Slot(slot.name, slot.role, tensor, keep)


def _write(
    format: MlxFormat,
    source: Artifact,
    to: Path,
    layout: Layout,
    recipe: str,
    quality: Mapping[str, float],
    text: _Text,
) -> Artifact:
    reason = recipe.partition(" ")[0]
    plan = Plan(recipe, tuple(Assignment(s.name, s.role, s.shape, s.keep, reason) for s in layout.slots))
    weights = sum(line.size for line in plan if quantized(line.precision))
    nbytes = sum(slot.tensor.nbytes for slot in layout.slots if isinstance(slot.tensor, EncodedTensor))
    quality = {**quality, "bits_per_weight": 8 * nbytes / max(1, weights)}
    writer = format.writer(to, layout, plan, _manifest(source, plan, quality, text))
    try:
        for slot in layout.slots[writer.done :]:
            writer.write(_stored(slot))
        writer.commit()
    finally:
        writer.close()
    return format.open(to)


def _stored(slot: Slot) -> QuantizedTensor:
    if isinstance(slot.tensor, EncodedTensor):
        return slot.tensor.read()
    values = edgekit.encode(slot.tensor.float32().reshape(slot.shape), slot.keep)
    return attrs.evolve(values, name=slot.name)


def _manifest(source: Artifact, plan: Plan, quality: Mapping[str, Any], text: _Text) -> Manifest:
    files = (*source.files, *([text.file] if text.file is not None else []))
    tensors = {a.name: {"precision": a.precision.name, "reason": a.reason, "backend": "mlx"} for a in plan}
    return Manifest(
        sources=digests(files),
        recipe=plan.recipe,
        tensors=tensors,
        versions={name: _version(name) for name in ("edgekit-core", "edgekit-mlx", "mlx", "mlx-lm", "numpy")},
        quality=quality,
    )


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:  # a source tree on the path
        return "0"


# What mlx-lm's functions do besides.


class _Bar:
    """Stands in for tqdm's bar, which would write to the terminal."""

    def __init__(self, items: Iterable[Any], **options: object) -> None:
        self._items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def set_description(self, *_: object, **__: object) -> None:
        """Show nothing."""

    @staticmethod
    def write(*_: object, **__: object) -> None:
        """Write nothing."""


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep mlx-lm's methods from drawing bars and printing."""
    modules = [lm(f"quant.{name}") for name in ("gptq", "awq", "dwq", "dynamic_quant")]
    before = [(module, name, getattr(module, name)) for module in modules for name in _LOUD if hasattr(module, name)]
    try:
        for module, name, _ in before:
            setattr(module, name, _LOUD[name])
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


_LOUD: dict[str, Any] = {"tqdm": _Bar, "print_trainable_parameters": lambda _: None}


@contextlib.contextmanager
def _numpys_state_kept() -> Iterator[None]:
    """mlx-lm seeds numpy's global generator; not for good."""
    state = np.random.get_state()
    try:
        yield
    finally:
        np.random.set_state(state)


__all__ = ["AWQ_RULES", "MEASURED", "Awq", "Dwq", "Dynamic", "Gptq", "Learning"]
