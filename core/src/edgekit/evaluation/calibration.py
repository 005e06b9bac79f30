"""Importance matrices: how strongly each input column of a weight matrix is used on a text.

With X [tokens, cols] the inputs of a matrix product on the calibration text, the importance of column j is the mean
over the tokens of X[:, j]². Quantizers that take one (ggml's) minimize the error weighed by it, so that columns that
are used more are stored more exactly. The inputs come from the numpy forward pass (exact, for any artifact of a
supported family, and slow: for small models, or a little text), or from a runtime that exposes them, which is fast.

Source of the method: ``tools/imatrix`` of llama.cpp, which leaves out the output matrix by default, as here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import attrs
import numpy as np
import numpy.typing as npt

from edgekit.architectures.forward import Transformer
from edgekit.artifact import Artifact
from edgekit.errors import NonFiniteError, UnsupportedModelError, UsageError
from edgekit.evaluation._experts import ExpertSums
from edgekit.evaluation.language import CONTEXT, Text, cut, tokens_of
from edgekit.files.memory import enough_memory
from edgekit.pipeline._conversion import as_artifact, find_format
from edgekit.pipeline._progress import Progress, Shown, reporting
from edgekit.pipeline.rounding.calibration import Calibration
from edgekit.plugin._registry import manager
from edgekit.runtime.protocols import load
from edgekit.typing import F32, F64, Ints

#: Tokens in a batch.
_BATCH = 2048
_OUTPUTS = ("output.weight", "token_embd.weight")


@attrs.frozen(eq=False)
class Activations:
    """Sums over a calibration text.

    Attributes:
        sums: of the squared inputs, float64 [cols], by canonical name of the weight matrix; of a stack of experts
            [experts, cols], each row over the tokens that reached the expert.
        tokens: how many tokens each sum of a matrix is over.
        context: tokens of a window.
        counts: how many tokens reached each expert, float64 [experts], by name of the stack.
    """

    sums: Mapping[str, F64] = attrs.field(repr=False)
    tokens: int
    context: int
    counts: Mapping[str, F64] = attrs.field(factory=dict, repr=False)

    def importance(self) -> dict[str, F32]:
        """Return the mean squared inputs, float32 [cols], by canonical name, for `edgekit.quantize`.

        Those of a stack of experts are [experts, cols], with zeros for an expert that no token reached.
        """
        return {name: (sums / self._over(name)).astype(np.float32) for name, sums in self.sums.items()}

    def _over(self, name: str) -> F64 | int:
        return np.maximum(self.counts[name], 1)[:, None] if name in self.counts else self.tokens


@runtime_checkable
class CalibrationRuntime(Protocol):
    """A runtime that exposes the inputs of its matrix products."""

    def square_sums(
        self, windows: npt.ArrayLike, *, outputs: bool = False, progress: Progress | None = None
    ) -> Mapping[str, F64]:
        """Compute every window independently and sum the squared inputs over all tokens.

        Args:
            windows: token ids [count, context].
            outputs: whether to include the matrix that makes the logits.
            progress: called with the number of windows done, of all, and what for.

        Returns:
            Float64 [cols], by canonical name of the weight matrix.
        """
        ...


def importance(
    artifact: Artifact | str | os.PathLike[str],
    text: Text,
    *,
    context: int | None = None,
    outputs: bool = False,
    runtime: str | None = None,
    progress: Shown = None,
) -> dict[str, F32]:
    """Return the mean squared inputs [cols] of every weight matrix, by canonical name; arguments as for `collect`.

    Example:
        >>> weights = importance("model-F16.gguf", text)  # doctest: +SKIP
        >>> edgekit.quantize("model-F16.gguf", "Q3_K_M", to="model-Q3_K_M.gguf", importance=weights)  # doctest: +SKIP
    """
    activations = collect(artifact, text, context=context, outputs=outputs, runtime=runtime, progress=progress)
    return activations.importance()


@enough_memory("calibrating a model")
def collect(
    artifact: Artifact | str | os.PathLike[str],
    text: Text,
    *,
    context: int | None = None,
    outputs: bool = False,
    runtime: str | None = None,
    progress: Shown = None,
) -> Activations:
    """Run a text through a model and sum the squared inputs of its matrices.

    Args:
        artifact: the model, best before quantization.
        text: a text typical of the model's use, or token ids [n]; ten thousand tokens are enough. It is cut into
            windows that do not overlap, the rest is dropped.
        context: tokens of a window; None takes 512, or the model's context where that is less.
        outputs: whether to include the matrix that makes the logits (also where it is the embedding).
        runtime: name of a runtime that is a `CalibrationRuntime` (``"llamacpp"``); None for numpy.
        progress: called before each batch of windows; True draws a bar on stderr.

    Raises:
        UsageError: fewer than three tokens, no tokenizer for a text, a bad `context`, or a runtime that shows nothing.
        UnsupportedModelError: the family is not known.
        MissingPluginError: no such runtime, or it does not run the artifact's format.
        NonFiniteError: the model computes a NaN or an infinity.
    """
    source = as_artifact(artifact)
    tokenizer = source.tokenizer
    bos = tokenizer.bos if tokenizer is not None and tokenizer.add_bos else None
    windows = cut(tokens_of(source, text), _context(context, _longest(source, runtime)), bos)
    with reporting(progress, "calibrate") as report:
        if runtime is None:
            sums, counts = _by_numpy(source, windows, outputs, report)
        else:
            sums, counts = dict(_by_runtime(source, runtime, windows, outputs, report)), {}
    _refuse_nonfinite(sums)
    return Activations(sums, windows.size, windows.shape[1], counts)


def _longest(source: Artifact, runtime: str | None) -> int:
    """Return the model's context; unlimited for a family that only the runtime supports."""
    try:
        return source.model.config.context
    except UnsupportedModelError:
        if runtime is None:
            raise
        return 1 << 30


def _by_numpy(
    source: Artifact, windows: Ints, outputs: bool, progress: Progress | None
) -> tuple[dict[str, F64], dict[str, F64]]:
    sums, experts = dict[str, F64](), ExpertSums(source.model)

    def add(name: str, x: F32) -> None:
        if not experts.add(name, x):
            _add(sums, name, x)

    model = Transformer(source.model, observe=add)
    step = max(1, _BATCH // windows.shape[1])
    for start in range(0, len(windows), step):
        if progress:
            progress(start, len(windows), "calibration")
        hidden = model.hidden(windows[start : start + step])
        if outputs:
            model.project(hidden)
    if progress:
        progress(len(windows), len(windows), "")
    return sums | experts.sums, experts.counts


def _by_runtime(
    source: Artifact, name: str, windows: Ints, outputs: bool, progress: Progress | None
) -> Mapping[str, F64]:
    with load(source, name) as model:
        if not isinstance(model, CalibrationRuntime):
            raise UsageError(f"runtime {name} does not show what goes into its matrices; leave it out, or use llamacpp")
        return model.square_sums(windows, outputs=outputs, progress=progress)


def _add(sums: dict[str, F64], name: str, x: F32) -> None:
    squares = np.einsum("ij,ij->j", x, x, dtype=np.float64)
    sums[name] = sums[name] + squares if name in sums else squares


def _context(context: int | None, longest: int) -> int:
    if context is None:
        return min(CONTEXT, longest)
    if not 3 <= context <= longest:
        raise UsageError(f"a window of {context} tokens; choose between 3 and the model's context of {longest}")
    return context


def _refuse_nonfinite(sums: Mapping[str, F64]) -> None:
    for name, values in sums.items():
        if not np.isfinite(values).all():
            column = int(np.argmin(np.isfinite(values)))
            raise NonFiniteError(
                f"the input of {name} is not finite on this text (column {column}); calibrate on the unquantized model"
            )


def read_importance(path: str | os.PathLike[str], artifact: Artifact | None = None) -> dict[str, F32]:
    """Read an importance matrix.

    Args:
        path: a file of a format that holds one: llama.cpp's, ``.gguf``.
        artifact: the model that it is for; if given, the matrix must match it.

    Raises:
        UsageError: no installed format reads importance matrices from it, or it is of another model.
        InvalidFileError: truncated, corrupt or malicious.
        MissingFileError: the file does not exist.
    """
    where = Path(path)
    for registration in manager().all("formats"):
        candidate: Any = registration.load()
        if hasattr(candidate, "read_importance") and (candidate.matches(where) or not where.exists()):
            matrix: dict[str, F32] = candidate.read_importance(where)
            if artifact is not None:
                _refuse_other_models(matrix, artifact, where)
            return matrix
    raise UsageError(f"{where}: no installed format reads an importance matrix from it; pip install edgekit-gguf")


def _refuse_other_models(matrix: Mapping[str, F32], artifact: Artifact, where: Path) -> None:
    tensors = artifact.model.tensors
    if not matrix.keys() & tensors.keys():
        raise UsageError(f"{where}: it has no matrix in common with {artifact.path}; make one from this model")
    for name, values in matrix.items():
        if name not in tensors:
            continue
        *experts, cols = (
            size for place, size in enumerate(tensors[name].shape) if place != len(tensors[name].shape) - 2
        )
        if values.shape[-1] != cols:
            raise UsageError(
                f"{where}: {name} has {values.shape[-1]} columns, in {artifact.path} {cols}; "
                "make an importance matrix from this model"
            )
        if list(values.shape[:-1]) != experts:
            counts = [" × ".join(map(str, sizes)) or "no" for sizes in (values.shape[:-1], experts)]
            raise UsageError(
                f"{where}: {name} has {counts[0]} experts, in {artifact.path} {counts[1]}; "
                "make an importance matrix from this model"
            )


def write_importance(path: str | os.PathLike[str], activations: Activations | Calibration, dataset: str = "") -> None:
    """Write an importance matrix; the path's suffix decides the format.

    Args:
        path: the file to write, ``.gguf``.
        activations: from `collect` or `edgekit.calibrate`.
        dataset: name of the calibration text, for the record.

    Raises:
        UsageError: the format holds no importance matrices.
        MissingPluginError: no installed format writes such files.
        ResourceError, LockedError: about the target.
    """
    target = Path(path)
    chosen: Any = find_format(None, target)
    if not hasattr(chosen, "write_importance"):
        raise UsageError(f"{target}: {chosen.name} holds no importance matrices; name a file that ends in .gguf")
    if isinstance(activations, Calibration):
        tokens, counts = activations.tokens, activations.expert_counts()
        over = {name: count[:, None] for name, count in counts.items()}
        means = activations.importance().items()
        sums = {name: mean.astype(np.float64) * over.get(name, tokens) for name, mean in means}
        activations = Activations(sums, tokens, activations.context, counts)
    chosen.write_importance(target, activations, dataset)


__all__ = ["Activations", "CalibrationRuntime", "collect", "importance", "read_importance", "write_importance"]
