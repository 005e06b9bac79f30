"""Runs MLX models: logits, text, chat and embeddings, with a prompt cache that can be saved to disk.

mlx-lm's modules compute, of encoders `edgekit_mlx.ops`; sampling, stop texts and checks are edgekit's, so that
arguments mean the same in every runtime. MLX's streams belong to a thread: each runtime computes in a thread of its
own, and calls from several threads are computed one after the other.

The keys and values of the last sequence are cached: if the next prompt begins with the same tokens, as in a chat, only
the tokens after the common part are computed. Texts with other LoRA adapters share no prefix.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, Unpack

import attrs
import numpy as np

from edgekit.architectures.blocks import NO_PREDICTION
from edgekit.artifact import Artifact
from edgekit.errors import ResourceError, UnsupportedModelError, UsageError
from edgekit.files.memory import refuse_shortage
from edgekit.runtime import GenerationOptions, Prompt, TextRuntime
from edgekit.runtime.arguments import adapter_paths, adapter_scales
from edgekit.typing import F32, I64
from edgekit_mlx import prompt_cache
from edgekit_mlx.batching import Batch, Row, together
from edgekit_mlx.library import chosen, core, device_name, lm, version
from edgekit_mlx.lora import Active, Lora, add_adapters
from edgekit_mlx.module import DTYPES, Loaded, load
from edgekit_mlx.worker import ClosedError, Worker

#: Number of prompt tokens that are computed at a time; bounds the memory.
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
    adapters: Mapping[str, str] | None = None,
) -> MlxRuntime:
    """Load an MLX model.

    Args:
        artifact: an MLX directory, opened by edgekit.
        device: ``cpu`` or ``gpu``; None takes MLX's default.
        dtype: ``float32``, ``float16`` or ``bfloat16``, in which to compute; None takes the weights' own type.
        exact: whether to decode quantized weights as the reference does and compute in float32, for comparisons; needs
            the memory of the unquantized model.
        context: largest number of tokens; None for the largest that mlx-lm computes as the model was trained.
        prompt_cache: a file written by `MlxRuntime.save_prompt_cache` to start with.
        adapters: LoRA adapters by name, each the directory of one that mlx-lm or edgekit trained; they are loaded, and
            applied to texts that ask for them (`MlxRuntime.adapted`).

    Raises:
        UsageError: an option is out of range, the device is not available, or the cache is of another model.
        MemoryShortageError: the model is larger than the free memory; raised before it is read.
        UnsupportedModelError: mlx-lm does not support the model, or computes it differently; or an adapter cannot be
            applied to single texts.
        MissingFileError, InvalidFileError: about an adapter.
    """
    return MlxRuntime(artifact, Options(device, dtype, exact, context, prompt_cache, adapter_paths(adapters)))


@attrs.frozen
class Options:
    """The options of loading a model; see `open_runtime`."""

    device: str | None = None
    dtype: str | None = None
    exact: bool = False
    context: int | None = None
    prompt_cache: str | None = None
    adapters: Mapping[str, str] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in DTYPES:
            raise UsageError(f"dtype {self.dtype!r:.80}; choose {', '.join(DTYPES)}")
        if type(self.exact) is not bool:
            raise UsageError(f"exact {self.exact!r:.80}; choose true or false")
        if self.exact and self.dtype not in (None, "float32"):
            raise UsageError(f"exact computes in float32, dtype is {self.dtype}; choose one of the two")
        if self.context is not None and (type(self.context) is not int or self.context < 1):
            raise UsageError(f"context {self.context!r:.80}; choose 1 or more")


@attrs.define(eq=False)
class Held:
    """The keys and values of the last sequence.

    Attributes:
        cache: mlx-lm's, by layer.
        seen: the token ids that it holds.
        lora: the adapters that it was computed with.
    """

    cache: list[Any] = attrs.field(factory=list)
    seen: list[int] = attrs.field(factory=list)
    lora: Lora = ()

    def drop(self, cache: list[Any] | None = None) -> None:
        """Forget all, and go on with a cache that holds nothing."""
        self.cache, self.seen = cache or [], []


class Apart(list[list[Any]]):
    """Caches of a batch's rows that mlx-lm cannot merge (chunks of Llama 4): its rows are computed one by one."""


class MlxRuntime(TextRuntime):
    """A model loaded into mlx-lm's modules; see `edgekit.runtime.Runtime`.

    Example:
        >>> with edgekit.load("model-4bit", runtime="mlx") as model:  # doctest: +SKIP
        ...     print(model.generate("Once upon a time", max_tokens=40))
    """

    name = "mlx"

    def __init__(self, artifact: Artifact, options: Options) -> None:
        self.artifact, self.options, self.most_context = artifact, options, options.context
        self.device = chosen(options.device)
        self._worker = Worker()
        self._held, self._active = Held(), Active()
        self._lora: Lora = ()
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
        loaded = load(self.artifact, dtype, decoded=self.options.exact)
        if self.options.adapters:
            if loaded.encoder is not None:
                raise UnsupportedModelError(
                    f"{self.artifact.path}: adapters by name need a decoder, this is an encoder"
                )
            self._active = add_adapters(loaded.module, self.options.adapters)
        return loaded

    def longest(self) -> int:
        """Return the number of tokens that mlx-lm computes as the model was trained."""
        return self._model().context

    def vocabulary(self) -> int:
        """See `edgekit.runtime.TextRuntime.vocabulary`."""
        return self._decoder().vocab

    def description(self) -> dict[str, Any]:
        """Device, dtype, number of quantized modules, context in tokens, and the bytes of memory that MLX uses."""
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

    def adapters(self) -> list[str]:
        """Return the names of the adapters that `adapted` takes, in the order of the option ``adapters``."""
        return list(self.options.adapters)

    def adapted(self, scales: Mapping[str, float]) -> MlxRuntime:
        """Return a runtime of the same model that computes with adapters; closing this one closes it.

        Args:
            scales: names of adapters, and the scale of each; none for the model without them.

        Raises:
            UsageError: another name, or a scale that is not finite.
        """
        return _Adapted(self, adapter_scales(scales, self.adapters()))

    def rows(self, ids: I64) -> F32:
        """See `edgekit.runtime.TextRuntime.rows`."""
        module = self._decoder().module
        scores: F32 = self._run(lambda: self._float32(module(core().array(ids))))
        return scores

    def after(self, ids: list[int]) -> F32:
        """See `edgekit.runtime.TextRuntime.after`."""
        return self._run(lambda: self._last(ids))

    def generate_batch(self, prompts: Sequence[Prompt], **options: Unpack[GenerationOptions]) -> list[str]:
        """Continue several texts at once: each as `generate` would, with a token for all of them in each step.

        The prompt cache is neither used nor changed.

        Args:
            prompts: texts, or token ids; each may have another length.
            options: as of `generate`; they apply to each text as if it were alone, the seed too.

        Returns:
            What follows each prompt, in their order.

        Raises:
            As `generate`.
        """
        batch = Batch(self)
        row = Row(self, batch)
        return together([row.stream(prompt, **options) for prompt in prompts])

    def prefill(self, ids: Sequence[int]) -> tuple[list[Any], F32]:
        """Return a new cache that holds the ids [n], and the logits of the next token, float32 [vocab]."""
        checked = self.checked_ids(ids, self._vocab()).tolist()
        cache = self._new_cache()
        return cache, self._run(lambda: self._filled(checked, cache))

    def advance(self, ids: Sequence[int], cache: list[Any]) -> F32:
        """Return the logits after one more token of each row, float32 [rows, vocab]; the cache of the rows grows."""
        if isinstance(cache, Apart):
            return np.concatenate([self.advance([token], row) for token, row in zip(ids, cache, strict=True)])

        def work() -> F32:
            return self._float32(self._model().module(core().array([[token] for token in ids]), cache=cache))

        scores: F32 = self._run(work)[:, -1]
        return scores

    def merge(self, caches: Sequence[list[Any]]) -> list[Any]:
        """Return one cache with a row for each of several, the shorter ones padded on the left."""
        if not all(hasattr(layer, "merge") for layer in caches[0]):
            return Apart(caches)
        return self._run(lambda: [type(layers[0]).merge(list(layers)) for layers in zip(*caches, strict=True)])

    def keep(self, rows: Sequence[int], cache: list[Any]) -> None:
        """Drop all other rows of a merged cache."""
        if isinstance(cache, Apart):
            cache[:] = [cache[row] for row in rows]
            return

        def work() -> None:
            for layer in cache:
                layer.filter(core().array(list(rows)))

        self._run(work)

    def _filled(self, ids: list[int], cache: list[Any]) -> F32:
        """Fill a cache with ids, and return the logits [vocab] of the next token."""
        module, mx = self._model().module, core()
        *before, last = ids
        for start in range(0, len(before), STEP):
            module(mx.array([before[start : start + STEP]]), cache=cache)
            mx.eval([layer.state for layer in cache])  # fills the cache; the lazy logits are not evaluated
        scores: F32 = self._float32(module(mx.array([[last]]), cache=cache))[0, -1]
        return scores

    def embed(self, text: Prompt) -> F32:
        """Return the embedding of a text or of token ids, float32 [dim], of length 1, pooled as the model's files say.

        Raises:
            UsageError: the text is empty, or the model has no tokenizer.
            ContextOverflowError: there are more tokens than the context holds.
            NonFiniteError: the model computes values that are not finite.
        """
        ids = self.checked_ids(self.whole_ids(text), self._vocab())
        self.room(len(ids), None)
        states = self._run(lambda: self._float32(self._model().states(core().array(ids[None]))))
        return self.pooled(states[0])

    def save_prompt_cache(self, path: str | Path) -> None:
        """Write the cached keys and values of the last sequence to a file, for `load_prompt_cache`.

        Raises:
            UsageError: nothing has been computed yet, or the last sequence was computed with adapters.
            ResourceError: the file cannot be written.
        """
        if not self._held.seen:
            raise UsageError("there is no prompt to keep; generate something first")
        if self._held.lora:
            raise UsageError("the last prompt was computed with adapters; generate something without them first")
        self._run(lambda: prompt_cache.save(Path(path), self._held.cache, self._held.seen, self._identity()))

    def load_prompt_cache(self, path: str | Path) -> None:
        """Replace the cache by the keys and values in a file written by `save_prompt_cache`.

        Raises:
            MissingFileError: the file does not exist or cannot be read.
            InvalidFileError: the file is not a prompt cache, or is malformed.
            UsageError: the file was written for another model or dtype.
        """
        stored = self._run(lambda: prompt_cache.load(Path(path), self._identity(), self._new_cache()))
        if len(stored.tokens) > self.context:
            raise UsageError(f"{path}: it holds {len(stored.tokens)} tokens, the context {self.context}")
        self._held.cache, self._held.seen, self._held.lora = stored.cache, stored.tokens, ()

    def close(self) -> None:
        """Release the model; may be called more than once."""
        with contextlib.suppress(ClosedError):
            self._worker.run(self._release)
        self._worker.close()

    def _release(self) -> None:
        self._loaded = None
        self._held.drop()
        core().clear_cache()

    def _model(self) -> Loaded:
        if self._loaded is None:
            raise UsageError("the runtime is closed; open the model again")
        return self._loaded

    def _decoder(self) -> Loaded:
        loaded = self._model()
        if loaded.encoder is not None:
            raise UnsupportedModelError(f"{self.artifact.path}: {NO_PREDICTION}")
        return loaded

    def _run(self, work: Callable[[], _T]) -> _T:
        """Return the result of `work`, called in the runtime's thread on its device."""

        def on_device() -> _T:
            mx = core()
            self._active.lora = self._lora
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

    def _vocab(self) -> int:
        return self._model().vocab

    @staticmethod
    def _float32(values: Any) -> F32:
        array: F32 = np.array(values.astype(core().float32))
        return array

    def _last(self, ids: list[int]) -> F32:
        """Return the logits after the ids, float32 [vocab]; computes only the tokens that are not cached."""
        held = self._held
        if held.lora != self._lora:
            held.drop()
            held.lora = self._lora
        common = len(held.seen)
        if ids[:common] != held.seen:  # one comparison of lists: comparing id by id would dominate the time of a token
            common = next((i for i, (a, b) in enumerate(zip(ids, held.seen, strict=False)) if a != b), len(ids))
        self._forget(min(common, len(ids) - 1))  # the last token is always computed, since its logits are needed
        module, mx = self._model().module, core()
        try:
            *before, last = ids[len(held.seen) :]
            for start in range(0, len(before), STEP):
                part = before[start : start + STEP]
                module(mx.array([part]), cache=held.cache)
                mx.eval([layer.state for layer in held.cache])  # fills the cache; the lazy logits are not evaluated
                held.seen += part
            scores: F32 = self._float32(module(mx.array([[last]]), cache=held.cache))[0, -1]
            held.seen.append(last)
        except BaseException:
            held.drop()
            raise
        return scores

    def _forget(self, kept: int) -> None:
        """Drop the cache of all but the first `kept` tokens; of all tokens if the cache cannot be trimmed."""
        held, cache = self._held, lm("models.cache")
        surplus = len(held.seen) - kept
        if not held.cache or not kept:
            held.drop(self._new_cache())
        elif surplus:
            whole = all(_holds_chunk(layer, kept) for layer in held.cache)
            can_trim = whole and cache.can_trim_prompt_cache(held.cache)
            if can_trim and cache.trim_prompt_cache(held.cache, surplus) == surplus:
                del held.seen[kept:]
            else:
                held.drop(self._new_cache())

    def _new_cache(self) -> list[Any]:
        layers: list[Any] = lm("models.cache").make_prompt_cache(self._decoder().module)
        return layers

    def _identity(self) -> dict[str, str]:
        return prompt_cache.identity(self.artifact, self._model().dtype)


class _Adapted(MlxRuntime):
    """A loaded model with adapters; the runtime that it was made from holds the model."""

    def __init__(self, owner: MlxRuntime, lora: Lora) -> None:
        self.artifact, self.options, self.device = owner.artifact, owner.options, owner.device
        self.most_context, self.lender = owner.most_context, owner
        self._worker, self._held, self._active = owner._worker, owner._held, owner._active
        self._owner, self._lora = owner, lora

    def _model(self) -> Loaded:
        return self._owner._model()

    def close(self) -> None:
        """Nothing: the model stays loaded."""


def _holds_chunk(layer: Any, position: int) -> bool:
    """Return whether a layer's cache of chunks still has the chunk of a position from its start; others always do."""
    size = getattr(layer, "chunk_size", None)
    return size is None or layer.start_position <= position // size * size


__all__ = ["STEP", "Apart", "Held", "MlxRuntime", "Options", "open_runtime"]
