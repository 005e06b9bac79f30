"""Runs GGUF files with llama.cpp.

Sampling, stop texts and checks are edgekit's, so that the same arguments have the same effect in every runtime;
llama.cpp tokenizes and computes. Texts of several threads are computed together, in as many sequences as the option
``sequences`` asks for; see `edgekit_llamacpp.sequences`. The keys and values of a text are kept: a prompt with the same
prefix, such as the next message of a chat, is only computed from the first different token.
"""

from __future__ import annotations

import codecs
import contextlib
import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from edgekit.architectures.blocks import NO_PREDICTION
from edgekit.artifact import Artifact
from edgekit.errors import MissingPluginError, UnsupportedModelError, UsageError
from edgekit.pipeline import Progress
from edgekit.runtime import CacheUse, Prompt, Runtime, Sampling, TextRuntime
from edgekit.runtime.arguments import adapter_scales
from edgekit.typing import F32, F64
from edgekit_llamacpp.activations import square_sums
from edgekit_llamacpp.library import copied, llama, quiet, refuse_copy
from edgekit_llamacpp.model import Loaded, Lora, Options, batch_of, refuse_ambiguous
from edgekit_llamacpp.sequences import Sequences, Text, compute


def open_runtime(artifact: Artifact, *, isolate: bool | None = None, **options: Any) -> Runtime:
    """Load a GGUF artifact.

    Args:
        artifact: opened by edgekit, whose reader checks every length and offset.
        isolate: whether llama.cpp runs in a child process, so that a crash of native code becomes an error; None: where
            the file's architecture is one that edgekit does not know, and so could not check, and in a process that was
            forked from one that had used llama.cpp, whose threads are missing there.
        options: of `edgekit_llamacpp.model.Options`: context, threads, gpu_layers, mmap, mlock, cache, lora, sequences,
            adapters.

    Raises:
        UsageError: an option out of range, or adapters by name in a child process.
        InvalidFileError: a vocabulary with a token twice; and as `edgekit_llamacpp.model.Loaded`.
    """
    checked = Options.of(**options)
    refuse_ambiguous(artifact)
    if (copied() or _unknown(artifact)) if isolate is None else isolate:
        from edgekit_llamacpp.isolated import IsolatedRuntime

        if checked.adapters:
            raise UsageError("adapters by name work in this process only; pass isolate=False, or the option lora")
        return IsolatedRuntime(artifact, checked)
    return LlamaCppRuntime(artifact, checked)


def _unknown(artifact: Artifact) -> bool:
    """Return whether edgekit cannot check the model's hyper-parameters and tokenizer; checks them if it can."""
    try:
        _ = artifact.model, artifact.tokenizer
    except UnsupportedModelError:
        return True
    return False


def _ends(artifact: Artifact) -> frozenset[int]:
    """Return the end tokens from edgekit's reader: some files name more than llama.cpp has keys for."""
    try:
        tokenizer = artifact.tokenizer
    except UnsupportedModelError:
        return frozenset()
    return frozenset() if tokenizer is None else tokenizer.end_ids


class LlamaCppRuntime(TextRuntime):
    """A model that llama.cpp runs; see `edgekit.runtime.Runtime`. Texts of several threads are computed together.

    Example:
        >>> with edgekit.load("model.gguf", runtime="llamacpp", context=2048) as model:  # doctest: +SKIP
        ...     print(model.generate("Once upon a time", max_tokens=40))
    """

    name = "llamacpp"

    def __init__(self, artifact: Artifact, options: Options) -> None:
        self.artifact, self._llama = artifact, llama()
        self._loaded: Loaded | None = Loaded(artifact, options)
        self._sequences = Sequences(self._loaded)
        self._ends = _ends(artifact)
        self._lora: Lora = ()

    @property
    def context(self) -> int:
        """Tokens that the context holds."""
        return self._model().size

    def description(self) -> dict[str, Any]:
        """Return how it computes: device, layers on it (the result of ``gpu_layers="auto"``), context, threads."""
        return self._model().description()

    def adapters(self) -> list[str]:
        """Return the names of the adapters that `adapted` takes, in the order of the option ``adapters``."""
        return list(self._model().options.adapters)

    def adapted(self, scales: Mapping[str, float]) -> LlamaCppRuntime:
        """Return a runtime of the same model that computes with adapters; closing this one closes it.

        Texts of both are computed in the same context, those with the same adapters together.

        Args:
            scales: names of adapters, and the scale of each; none for the model without them.

        Raises:
            UsageError: another name, or a scale that is not finite.
        """
        return _Adapted(self, adapter_scales(scales, self.adapters()))

    def logits(self, tokens: npt.ArrayLike) -> F32:
        """Return the logits of every next token, float32 [n, vocab], for token ids [n].

        Raises:
            UsageError: no tokens, or ids outside the vocabulary.
            ContextOverflowError: more tokens than the context holds.
            UnsupportedModelError: the model is an encoder.
        """
        self._refuse_encoder()
        ids = self._checked(tokens)
        self.room(len(ids), None)
        with self._sequences.alone():
            return np.concatenate(list(self._sequences.all_logits(ids, self._lora)))

    def cache_use(self) -> CacheUse:
        """Return how many tokens of prompts were computed, and how many were there from earlier ones."""
        return self._sequences.cache_use()

    def tokens(
        self, prompt: Sequence[int], *, max_tokens: int | None = None, sampling: Sampling | None = None
    ) -> Iterator[int]:
        """Continue a sequence of token ids, one at a time, up to `max_tokens`; end tokens do not stop it.

        Raises:
            UsageError, ContextOverflowError: as `logits`, of the prompt and `max_tokens` together.
        """
        self._refuse_encoder()
        ids = self._checked(prompt)
        return self._continue(ids, self.room(len(ids), max_tokens), (sampling or Sampling()).sampler(ids))

    def _continue(self, ids: list[int], count: int, choose: Callable[[F32], int]) -> Iterator[int]:
        ids, text = list(ids), Text(self._lora)
        try:
            for _ in range(count):
                self._model()
                token = choose(self._sequences.logits(text, ids))
                yield token
                ids.append(token)
        finally:
            if not copied():
                self._sequences.end(text)

    def special_texts(self) -> dict[str, str]:
        """The template variables for special tokens, as llama.cpp writes them."""
        return {"bos_token": self._special("bos"), "eos_token": self._special("eos")}

    def square_sums(
        self, windows: npt.ArrayLike, *, outputs: bool = False, progress: Progress | None = None
    ) -> dict[str, F64]:
        """Measure the inputs of weight matrices; see `evaluation.calibration.CalibrationRuntime`.

        Raises:
            PluginError: the installed llama-cpp-python has another tensor layout.
        """
        rows = np.asarray(windows)
        for window in rows:
            self.room(len(self._checked(window)), None)
        with self._sequences.alone():
            return square_sums(self._model(), rows, outputs, progress)

    def embed(self, text: Prompt) -> F32:
        """Return the embedding of a text or of token ids, float32 [width], of length 1; pooled as the file says.

        Raises:
            UsageError: an empty text, or no tokenizer.
            ContextOverflowError: more tokens than the context holds.
        """
        ids = self._checked(self.whole_ids(text))
        self.room(len(ids), None)
        with self._sequences.alone():
            return self._embed(ids)

    def _embed(self, ids: list[int]) -> F32:
        loaded = self._model()
        context = loaded.new_context(max(len(ids), 32), embeddings=True)
        try:
            loaded.adapt(context, self._lora)
            with batch_of([(token, place, 0, True) for place, token in enumerate(ids)]) as batch:
                compute(loaded, context, batch)
            pointer = self._llama.llama_get_embeddings_seq(context, 0)
            width = self._llama.llama_model_n_embd(loaded.model)
            states = np.ctypeslib.as_array(pointer, (width,)).astype(np.float64)
        finally:
            with quiet():
                self._llama.llama_free(context)
        return self.unit(states)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Encode a text to token ids, with the model's BOS if it has one.

        Args:
            text: any Unicode text.
            special: whether special tokens in the text are recognised; a text that names its first token itself then
                gets no second one.

        Raises:
            UsageError: no tokenizer in the file, or half of a surrogate pair.
        """
        loaded = self._model()
        if not loaded.has_vocabulary:
            raise self.lacks_tokenizer()
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            message = f"the text is not Unicode text: {error.reason} at character {error.start}"
            raise UsageError(message, public=message) from error
        add = not (special and self._special("bos") and text.startswith(self._special("bos")))
        ids = self._cut(loaded, data, add, special)
        ends = add and self._llama.llama_vocab_get_add_eos(loaded.vocab) and len(ids) > 1
        return ids[:-1] if ends else ids  # the text will be continued

    def end_of_text(self) -> int | None:
        """The file's EOS, where it asks for one."""
        vocab = self._model().vocab
        return int(self._llama.llama_vocab_eos(vocab)) if self._llama.llama_vocab_get_add_eos(vocab) else None

    def refuse_too_long(self, text: str) -> None:
        """Encode as every runtime if edgekit can read the file's tokenizer, else with llama.cpp's."""
        with contextlib.suppress(UnsupportedModelError, MissingPluginError):
            if self.artifact.tokenizer is not None:
                super().refuse_too_long(text)

    def _cut(self, loaded: Loaded, data: bytes, add: bool, special: bool) -> list[int]:
        """Return token ids; there may be more than bytes, since SentencePiece's space has three."""
        size = len(data) + 8
        for _ in range(2):
            room = (ctypes.c_int32 * size)()
            count = self._llama.llama_tokenize(loaded.vocab, data, len(data), room, size, add, special)
            if count >= 0:
                return list(room[:count])
            size = -count
        raise UsageError(f"llama.cpp cannot cut the text into tokens (code {count}); shorten it")

    def close(self) -> None:
        """Free the model; may be called more than once."""
        if copied():  # the lock may be held by a thread that only the parent has
            self._loaded = None
            return
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            self._sequences.close()
            loaded.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_loaded", None) is not None:
            self.close()

    def _model(self) -> Loaded:
        refuse_copy()
        if self._loaded is None:
            raise UsageError("the runtime is closed; open the model again")
        return self._loaded

    def pieces(self, prompt: list[int], tokens: Iterator[int]) -> Iterator[str]:
        """Yield the text after the prompt in whole characters, until an end token."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token in tokens:
            if self.ends(token):
                break
            if piece := decoder.decode(self._piece(token)):
                yield piece
        if rest := decoder.decode(b"", final=True):
            yield rest

    def ends(self, token: int) -> bool:
        """Return whether a token ends a text, according to edgekit or llama.cpp."""
        return token in self._ends or bool(self._llama.llama_vocab_is_eog(self._model().vocab, token))

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of a token; of a special token its name."""
        return self._piece(token, special=True)

    def _piece(self, token: int, special: bool = False) -> bytes:
        buffer = ctypes.create_string_buffer(64)
        count = self._llama.llama_token_to_piece(self._model().vocab, token, buffer, len(buffer), 0, special)
        if count < 0:
            buffer = ctypes.create_string_buffer(-count)
            count = self._llama.llama_token_to_piece(self._model().vocab, token, buffer, len(buffer), 0, special)
        return buffer.raw[:count]

    def _special(self, name: str) -> str:
        loaded = self._model()
        token = getattr(self._llama, f"llama_vocab_{name}")(loaded.vocab)
        return self._piece(token, special=True).decode("utf-8", "replace") if 0 <= token < loaded.vocabulary else ""

    def _refuse_encoder(self) -> None:
        try:
            predicts = self.artifact.model.config.causal
        except UnsupportedModelError:  # an architecture that edgekit does not read
            return
        if not predicts:
            raise UnsupportedModelError(NO_PREDICTION)

    def _checked(self, tokens: npt.ArrayLike) -> list[int]:
        ids: list[int] = self.checked_ids(tokens, self._model().vocabulary).tolist()
        return ids

    def too_long(self, most: int) -> str:
        """The context is what the model was loaded with, and may be larger."""
        cure = f"shorten the prompt, ask for at most {most}," if most else "shorten the prompt,"
        return f"do not fit the context of {self.context}; {cure} or load with a larger context"


class _Adapted(LlamaCppRuntime):
    """A loaded model with adapters; the runtime that it was made from holds the model."""

    def __init__(self, owner: LlamaCppRuntime, lora: Lora) -> None:
        self.artifact, self._llama, self._sequences, self._ends = (
            owner.artifact,
            owner._llama,
            owner._sequences,
            owner._ends,
        )
        self._owner, self._lora = owner, lora

    @cached_property
    def _words(self) -> Any:
        return self._owner._words

    def _model(self) -> Loaded:
        return self._owner._model()

    def close(self) -> None:
        """Nothing: the model stays loaded."""


__all__ = ["LlamaCppRuntime", "open_runtime"]
