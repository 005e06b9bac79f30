"""Measures the pace of this machine's runtimes: the constants of `edgekit_workflow.speed`, on models made for it.

For each runtime and precision random Llamas are written into a temporary directory and timed as `edgekit bench` does:
thin ones that differ in their number of layers and in their heads, and wider ones of four sizes, of which the largest
fits few caches. The seconds that their tokens take give overhead, seconds a layer, attention, and the rates:

    seconds = overhead + layers × layer + heads × positions × attention + bytes / rate

The model whose speed is predicted is not among them. One thread, in seconds of processor time: other programs disturb
these least.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import attrs
import numpy as np

import edgekit
from edgekit.architectures import Model, tensor_shapes
from edgekit.architectures.hf import config_from_hf
from edgekit.artifact import Artifact
from edgekit.errors import UsageError
from edgekit.plugin import manager
from edgekit.tensor import Tensor
from edgekit.typing import F32
from edgekit_workflow.bench import measure
from edgekit_workflow.memory import head_positions
from edgekit_workflow.pace import Pace
from edgekit_workflow.speed import moved_bytes, pace_of, stored_tensors

#: Prompt, tokens and repeats; of large models and of slow runtimes, whose tokens take longer, fewer.
_COUNTS, _FEW = (16, 48, 5), (16, 12, 3)
#: Seconds a token, by the table, from which a runtime is slow.
_LONG = 1e-3
#: Bytes a second below which no memory bounds a runtime: its largest models are not timed, which would take minutes.
_SLOW = 2e9
#: Seconds a byte of what no time can be measured of: a terabyte a second.
_LEAST = 1e-12


@attrs.frozen
class Shape:
    """Hyper-parameters of a model that is timed."""

    layers: int
    width: int
    ffn: int
    vocab: int = 512
    head_size: int = 64

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.layers}-{self.width}-{self.head_size}"

    @property
    def heads(self) -> int:
        """Heads of queries; one in four has keys and values of its own."""
        return self.width // self.head_size

    def artifact(self, path: Path, dtype: str) -> Artifact:
        """Return a random Llama of this shape, in memory.

        Args:
            path: that stands for its files.
            dtype: of all tensors, ``F32``, ``F16`` or ``BF16``.
        """
        config = config_from_hf(
            {
                "model_type": "llama",
                "hidden_size": self.width,
                "intermediate_size": self.ffn,
                "num_hidden_layers": self.layers,
                "num_attention_heads": self.heads,
                "num_key_value_heads": max(1, self.heads // 4),
                "vocab_size": self.vocab,
                "max_position_embeddings": 256,
                "tie_word_embeddings": False,
            },
            "a model to calibrate with",
        )
        random = np.random.default_rng(0)
        tensors = {}
        for name, shape in tensor_shapes(config).items():
            values = random.standard_normal(shape, np.float32) / np.float32(shape[-1] ** 0.5)
            tensors[name] = _tensor(name, values if len(shape) > 1 else np.ones(shape, np.float32), dtype)
        model = Model(config, tensors)
        return Artifact(
            path=path,
            format="memory",
            files=(),
            config={},
            tensors=tensors,
            load_model=lambda: model,
            load_tokenizer=lambda: None,
        )


def _tensor(name: str, values: F32, dtype: str) -> Tensor:
    if dtype == "BF16":  # the upper half of a float32; the lower one does not matter to random values
        return Tensor.of(name, (values.view(np.uint32) >> 16).astype(np.uint16), "bfloat16")
    return Tensor.of(name, values.astype(np.float16) if dtype == "F16" else values)


#: Their tokens take overhead and layers alone.
SHALLOW, DEEP = Shape(2, 64, 64, 256), Shape(12, 64, 64, 256)
#: Deep ones with more heads, and of other sizes.
HEADS = (Shape(12, 256, 64, 256), *(Shape(12, 256, 64, 256, size) for size in (8, 16, 32, 128)))
#: Their rates are measured. 256 divides every width, so that each recipe gets its precision.
SIZES = (Shape(4, 256, 512), Shape(4, 512, 1024), Shape(4, 1024, 3072, 4096), Shape(12, 768, 2048, 16384))


@attrs.frozen
class Case:
    """A precision that is timed.

    Attributes:
        format, recipe: of the artifact; a recipe of None stores what the source has.
        dtype: of the source's tensors, all of them.
    """

    format: str
    recipe: str | None
    dtype: str = "F16"


#: What is timed of each runtime; overhead and layers of the first two.
CASES: Mapping[str, Sequence[Case]] = {
    "numpy": [Case("hf", None, "F32")],
    "llamacpp": [
        *(Case("gguf", name) for name in ("F16", "Q8_0", "F32", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1")),
        *(Case("gguf", name) for name in ("Q4_K_S", "Q5_K_S", "Q6_K")),
    ],
    "openvino": [
        Case("openvino", "INT8_ASYM"),
        *(Case("openvino", None, dtype) for dtype in ("F32", "F16", "BF16")),
        Case("openvino", "INT4_SYM_G64"),
    ],
    "onnxruntime": [
        *(Case("onnx", name) for name in ("MATMUL_NBITS_4", "MATMUL_NBITS_8", "INT8_CHANNEL", None)),
        *(Case("onnx", None, dtype) for dtype in ("BF16", "F32")),
    ],
    "mlx": [Case("mlx", name, dtype) for dtype in ("F32", "BF16", "F16") for name in ("4bit", "8bit", None)],
}


@attrs.frozen
class Timed:
    """A model that was timed.

    Attributes:
        layers: of the model.
        moved: bytes that a token reads, by kind of precision.
        seconds: that a token takes.
        size: index in `SIZES`; 0 of the thin ones.
        attended: positions that the heads look at, over all layers, by the heads' size.
    """

    layers: int
    moved: Mapping[str, float]
    seconds: float
    size: int = 0
    attended: Mapping[int, float] = attrs.field(factory=dict)


def calibrate(
    runtimes: Iterable[str] | None = None,
    *,
    rounds: int = 2,
    clock: Callable[[Artifact, str], float] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    folder: Path | None = None,
) -> dict[str, Pace]:
    """Measure the pace of runtimes on this machine: one to two minutes of processor time each.

    Args:
        runtimes: names; None takes all installed ones that have `CASES`.
        rounds: how often everything is timed, one after the other; the fastest counts.
        clock: returns the seconds that a token of an artifact takes on a runtime; None measures.
        progress: called before each artifact: how many are done, of how many, which.
        folder: an existing directory in which the models are written, and found again by the next calibration, of
            which they are half the time; they take about 8 GB. None: a temporary one.

    Returns:
        The pace of each runtime, by name.

    Raises:
        UsageError: a runtime that is not installed, or has no cases.
    """
    known = sorted({registration.name for registration in manager().all("runtimes")} & CASES.keys())
    chosen = known if runtimes is None else list(runtimes)
    if unknown := [name for name in chosen if name not in known]:
        raise UsageError(f"the runtime {unknown[0]!r:.80} cannot be calibrated here; choose {', '.join(known)}")
    jobs = [(name, case, shape) for name in chosen for case, shape in _timed_shapes(CASES[name])]
    fastest: dict[tuple[str, Case, Shape], Timed] = {}
    with _kept(folder) as place:
        sources = _Sources(place)
        for number, (name, case, shape) in enumerate(jobs * rounds):
            if progress:
                progress(number, len(jobs) * rounds, f"{name} {case.recipe or case.dtype}")
            if shape in SIZES[2:] and _is_slow(fastest[name, case, SIZES[1]]):
                continue
            timed = _timed(sources.written(case, shape), name, shape, clock or seconds_of)
            fastest[name, case, shape] = min(
                timed, fastest.get((name, case, shape), timed), key=lambda each: each.seconds
            )
    return {name: fitted([timed for (owner, _, _), timed in fastest.items() if owner == name]) for name in chosen}


@contextlib.contextmanager
def _kept(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="edgekit-calibration-") as temporary:
        yield Path(temporary)


def _timed_shapes(cases: Sequence[Case]) -> Iterator[tuple[Case, Shape]]:
    for number, case in enumerate(cases):
        yield from ((case, shape) for shape in ((SHALLOW, DEEP, *HEADS) if number < 2 else ()) + SIZES)


def _timed(artifact: Artifact, runtime: str, shape: Shape, clock: Callable[[Artifact, str], float]) -> Timed:
    moved = moved_bytes(artifact.model.config, stored_tensors(artifact, runtime))
    size = SIZES.index(shape) if shape in SIZES else 0
    prompt, tokens, _ = _counts(artifact, runtime)
    attended = head_positions(artifact.model.config, prompt + tokens // 2)
    return Timed(shape.layers, moved, clock(artifact, runtime), size, attended)


class _Sources:
    """The models that are timed, written once each into a directory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def written(self, case: Case, shape: Shape) -> Artifact:
        """Return the artifact of a case and a shape."""
        name = f"{case.recipe or 'as-it-is'}-{case.dtype}-{shape.name}"
        to = self._folder / case.format / (f"{name}.gguf" if case.format == "gguf" else name)
        if to.exists():
            return edgekit.open(to)
        to.parent.mkdir(exist_ok=True)
        source = self._source(shape, case.dtype)
        if case.recipe is None:
            return edgekit.convert(source, to, format=case.format)
        return edgekit.quantize(source, case.recipe, to=to, format=case.format)

    def _source(self, shape: Shape, dtype: str) -> Path:
        path = self._folder / f"{shape.name}-{dtype}"
        if not path.exists():
            edgekit.convert(shape.artifact(path, dtype), path, format="hf")
        return path


def _is_slow(timed: Timed) -> bool:
    return sum(timed.moved.values()) < _SLOW * timed.seconds


def seconds_of(artifact: Artifact, runtime: str) -> float:
    """Return the seconds of processor time that a token of an artifact takes on a runtime, with one thread."""
    options = {} if runtime in ("numpy", "mlx") else {"threads": 1}
    prompt, tokens, repeats = _counts(artifact, runtime)
    done = measure(
        artifact,
        runtime,
        prompt_tokens=prompt,
        tokens=tokens,
        repeats=repeats,
        options=options,
        blas_threads=1,
    )
    assert done.tokens_per_cpu_second is not None  # the models predict next tokens
    return 1 / done.tokens_per_cpu_second.mean


def _counts(artifact: Artifact, runtime: str) -> tuple[int, int, int]:
    """Prompt, tokens and repeats that an artifact is timed with."""
    is_long = artifact.model.config.width >= SIZES[2].width or pace_of(runtime).overhead >= _LONG
    return _FEW if is_long else _COUNTS


def fitted(timed: Sequence[Timed]) -> Pace:
    """Return the constants that explain measured seconds best: least squares of the relative errors, none negative.

    Args:
        timed: of one runtime: at least two numbers of layers, and every kind of precision.
    """
    from scipy.optimize import nnls

    heads = sorted({size for one in timed for size in one.attended})
    first = 2 + len(heads)
    columns: dict[tuple[str, int], int] = {}
    for one in timed:
        columns.setdefault((_main(one), one.size), first + len(columns))
    rows = np.zeros((len(timed), first + len(columns)))
    for row, one in zip(rows, timed, strict=True):
        row[:first] = 1, one.layers, *(one.attended.get(size, 0) for size in heads)
        for kind, nbytes in one.moved.items():
            row[columns.get((kind, one.size), columns[_main(one), one.size])] += nbytes
        row /= one.seconds
    scale = rows.max(axis=0)
    overhead, layer, *pace = (nnls(rows / scale, np.ones(len(timed)))[0] / scale).tolist()
    attention = list(zip(heads, pace, strict=False))
    totals: dict[tuple[str, int], float] = {}
    for one in timed:  # of thin ones and the smallest size, the latter's
        totals[_main(one), one.size] = max(sum(one.moved.values()), totals.get((_main(one), one.size), 0.0))
    rates: dict[str, list[tuple[float, float]]] = {}
    for (kind, size), at in sorted(columns.items()):
        rates.setdefault(kind, []).append((totals[kind, size], 1 / max(pace[at - 2], _LEAST)))
    slowest = min(rates, key=lambda kind: rates[kind][-1][1])
    return Pace(overhead, layer, {**rates, "other": rates[slowest]}, attention or 0.0)


def _main(one: Timed) -> str:
    """The kind of precision that most bytes of a model have."""
    return max(one.moved, key=one.moved.__getitem__)


__all__ = ["CASES", "DEEP", "HEADS", "SHALLOW", "SIZES", "Case", "Shape", "Timed", "calibrate", "fitted", "seconds_of"]
