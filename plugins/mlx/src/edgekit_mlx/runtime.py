"""Runs MLX models: logits, text, chat and embeddings, with a cache of the last prompt that can be kept on disk.

The sampler, the stop texts and the checks are edgekit's own, so that every runtime means the same by the same
arguments; mlx-lm's modules compute. MLX's streams belong to a thread: each runtime computes in one of its own, and
calls from several threads take turns.

The keys and values of what was computed last are kept: a prompt that begins like the one before, a chat that goes on,
starts where the two part.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import attrs
import numpy as np
import numpy.typing as npt

from edgekit.architectures.forward import token_ids
from edgekit.artifact import Artifact
from edgekit.errors import ResourceError, UsageError
from edgekit.files.memory import refuse_shortage
from edgekit.runtime import Prompt, Sampling, TextRuntime
from edgekit.typing import F32, I64
from edgekit_mlx import prompt_cache
from edgekit_mlx.library import chosen, core, device_name, lm, version
from edgekit_mlx.module import DTYPES, Loaded, load
from edgekit_mlx.worker import ClosedError, Worker

#: Tokens of a prompt that are computed at a time.
STEP = 512
_T = TypeVar("_T")


def open_runtime(
    artifact: Artifact,
    *,
    device: str | None = None,
    dtype: str | None = None,
    exact: bool = False,
    context: int | None = None,
    prompt_cache: str | None = None,
) -> MlxRuntime:
    """Load an MLX model.

    Args:
        artifact: an MLX directory, opened by edgekit.
        device: ``cpu`` or ``gpu``; None takes MLX's default.
        dtype: ``float32``, ``float16`` or ``bfloat16``, in which to compute; None takes the weights' own type.
        exact: decode quantized weights as the reference does and compute in float32, for comparisons; it takes the
            memory of the unquantized model.
        context: tokens at most; None for as many as the model was trained for, and mlx-lm computes so.
        prompt_cache: a file of `MlxRuntime.save_prompt_cache` to begin with.

    Raises:
        UsageError: an option out of range, a device that is not there, or a cache of another model.
        MemoryShortageError: the model is larger than the memory; said before it is read.
        UnsupportedModelError: mlx-lm has no such model, or computes another.
    """
    return MlxRuntime(artifact, Options(device, dtype, exact, context, prompt_cache))


@attrs.frozen
class Options:
    """How a model is loaded; see `open_runtime`."""

    device: str | None = None
    dtype: str | None = None
    exact: bool = False
    context: int | None = None
    prompt_cache: str | None = None

    def __attrs_post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in DTYPES:
            raise UsageError(f"dtype {self.dtype!r:.80}; choose {', '.join(DTYPES)}")
        if type(self.exact) is not bool:
            raise UsageError(f"exact {self.exact!r:.80}; choose true or false")
        if self.exact and self.dtype not in (None, "float32"):
            raise UsageError(f"exact computes in float32, dtype is {self.dtype}; choose one of the two")
        if self.context is not None and (type(self.context) is not int or self.context < 1):
            raise UsageError(f"context {self.context!r:.80}; choose 1 or more")


class MlxRuntime(TextRuntime):
    """A model that mlx-lm's modules compute; see `edgekit.runtime.Runtime`.

    Example:
        >>> with edgekit.load("model-4bit", runtime="mlx") as model:  # doctest: +SKIP
        ...     print(model.generate("Once upon a time", max_tokens=40))
    """

    name = "mlx"

    def __init__(self, artifact: Artifact, options: Options) -> None:
        self.artifact, self.options = artifact, options
        self.device = chosen(options.device)
        self._worker = Worker()
        self._cache: list[Any] = []
        self._seen: list[int] = []
        self._loaded: Loaded | None = None
        try:
            self._loaded = self._run(self._load)
            if options.prompt_cache is not None:
                self.load_prompt_cache(options.prompt_cache)
        except BaseException:
            self.close()
            raise

    def _load(self) -> Loaded:
        dtype = "float32" if self.options.exact else self.options.dtype
        return load(self.artifact, dtype, decoded=self.options.exact)

    @property
    def context(self) -> int:
        """Tokens that the context holds: what was asked for, and at most what mlx-lm computes as trained."""
        most = self._model().context
        return most if self.options.context is None else min(most, self.options.context)

    def description(self) -> dict[str, Any]:
        """How it computes: device, type, quantized modules, context; and the memory in bytes that MLX holds."""
        loaded, mx = self._model(), core()
        return {
            "device": self.device,
            "device_name": device_name(self.device),
            "dtype": loaded.dtype,
            "quantized_modules": loaded.quantized,
            "context": self.context,
            "mlx": version(),
            "memory": int(mx.get_active_memory()),
            "peak_memory": int(mx.get_peak_memory()),
            "unified_memory": bool(mx.metal.is_available()),
        }

    def logits(self, tokens: npt.ArrayLike) -> F32:
        """Scores of every next token, float32 [n, vocab] or [batch, n, vocab], of token ids [n] or [batch, n].

        Raises:
            UsageError: no tokens, not integers, or ids outside the vocabulary.
            ContextOverflowError: more tokens than the context holds.
        """
        ids = self._ids(tokens)
        self.room(ids.shape[-1], None)
        scores: F32 = self._run(lambda: self._float32(self._model().module(core().array(np.atleast_2d(ids)))))
        return scores.reshape(*ids.shape, -1)

    def tokens(
        self, prompt: Sequence[int], *, max_tokens: int | None = None, sampling: Sampling | None = None
    ) -> Iterator[int]:
        """Continue a sequence of token ids, one at a time; never ends by itself before `max_tokens`.

        Raises:
            UsageError, ContextOverflowError: as `logits`, of the prompt and `max_tokens` together.
            ResourceError: the device cannot compute it.
        """
        ids = self._ids(np.asarray(prompt))
        if ids.ndim != 1:
            raise UsageError(f"a prompt is one sequence of token ids [n]; got {list(ids.shape)}")
        choose = (sampling or Sampling()).sampler(ids.tolist())
        return self._continue(ids.tolist(), self.room(len(ids), max_tokens), choose)

    def _continue(self, ids: list[int], count: int, choose: Callable[[F32], int]) -> Iterator[int]:
        for _ in range(count):
            token = choose(self._run(lambda: self._last(ids)))
            yield token
            ids.append(token)

    def embed(self, text: Prompt) -> F32:
        """The embedding of a text or of token ids, float32 [dim], of length 1; pooled as the model's files say.

        Raises:
            UsageError: an empty text, or no tokenizer.
            ContextOverflowError: more tokens than the context holds.
            NonFiniteError: the model computes values that are not finite.
        """
        ids = self._ids(self.whole_ids(text))
        self.room(len(ids), None)
        states = self._run(lambda: self._float32(self._model().module.model(core().array(ids[None]))))
        return self.pooled(states[0])

    def save_prompt_cache(self, path: str | Path) -> None:
        """Write the keys and values of what was computed last, to begin with them in another process.

        Raises:
            UsageError: nothing was computed yet.
            ResourceError: the file cannot be written.
        """
        if not self._seen:
            raise UsageError("there is no prompt to keep; generate something first")
        self._run(lambda: prompt_cache.save(Path(path), self._cache, self._seen, self._identity()))

    def load_prompt_cache(self, path: str | Path) -> None:
        """Go on from a file of `save_prompt_cache`.

        Raises:
            InvalidFileError, MissingFileError: it is no such file.
            UsageError: it is of another model, or of another type of weights.
        """
        found = self._run(lambda: prompt_cache.load(Path(path), self._identity(), self._new_cache()))
        if len(found.tokens) > self.context:
            raise UsageError(f"{path}: it holds {len(found.tokens)} tokens, the context {self.context}")
        self._cache, self._seen = found.cache, found.tokens

    def close(self) -> None:
        """Release the model; may be called more than once."""
        with contextlib.suppress(ClosedError):
            self._worker.run(self._release)
        self._worker.close()

    def _release(self) -> None:
        self._loaded = None
        self._cache, self._seen = [], []
        core().clear_cache()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _model(self) -> Loaded:
        if self._loaded is None:
            raise UsageError("the runtime is closed; open the model again")
        return self._loaded

    def _run(self, work: Callable[[], _T]) -> _T:
        """Compute in the runtime's thread, on its device."""

        def on_device() -> _T:
            mx = core()
            with mx.stream(getattr(mx, self.device)):
                return work()

        try:
            return self._worker.run(on_device)
        except ClosedError as error:
            raise UsageError("the runtime is closed; open the model again") from error
        except RuntimeError as error:
            refuse_shortage(error, f"{self.artifact.path}: computing it")
            if type(error) is not RuntimeError:
                raise
            raise ResourceError(f"{self.artifact.path}: {self.device} cannot compute it: {error!s:.300}") from error

    def _ids(self, tokens: npt.ArrayLike) -> I64:
        return token_ids(tokens, self._vocab()).astype(np.int64)

    def _vocab(self) -> int:
        module = self._model().module
        return int(getattr(module.args, "vocab_size", 0) or module.args.text_config["vocab_size"])

    @staticmethod
    def _float32(values: Any) -> F32:
        found: F32 = np.array(values.astype(core().float32))
        return found

    def _last(self, ids: list[int]) -> F32:
        """Logits [vocab] after the ids; computes only what the last call has not."""
        common = len(self._seen)
        if ids[:common] != self._seen:  # comparing lists at once is what makes a token cheap
            common = next((i for i, (a, b) in enumerate(zip(ids, self._seen, strict=False)) if a != b), len(ids))
        self._forget(min(common, len(ids) - 1))  # the last is always computed: its logits are wanted
        module, mx = self._model().module, core()
        try:
            *before, last = ids[len(self._seen) :]
            for start in range(0, len(before), STEP):
                part = before[start : start + STEP]
                module(mx.array([part]), cache=self._cache)
                mx.eval([layer.state for layer in self._cache])  # their keys and values; no logits are computed
                self._seen += part
            scores: F32 = self._float32(module(mx.array([[last]]), cache=self._cache))[0, -1]
            self._seen.append(last)
        except BaseException:
            self._cache, self._seen = [], []
            raise
        return scores

    def _forget(self, kept: int) -> None:
        """Drop the keys and values of all but the first tokens; all of them where the cache cannot drop some."""
        surplus = len(self._seen) - kept
        cache = lm("models.cache")
        if not self._cache or not kept:
            self._cache, self._seen = self._new_cache(), []
        elif surplus:
            if cache.can_trim_prompt_cache(self._cache) and cache.trim_prompt_cache(self._cache, surplus) == surplus:
                del self._seen[kept:]
            else:
                self._cache, self._seen = self._new_cache(), []

    def _new_cache(self) -> list[Any]:
        found: list[Any] = lm("models.cache").make_prompt_cache(self._model().module)
        return found

    def _identity(self) -> dict[str, str]:
        return prompt_cache.identity(self.artifact, self._model().dtype)


__all__ = ["STEP", "MlxRuntime", "Options", "open_runtime"]
