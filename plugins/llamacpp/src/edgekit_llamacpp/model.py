"""A model and its context in llama.cpp's memory: loading, checks, release; failures are typed errors."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import attrs
import numpy as np

from edgekit.artifact import Artifact
from edgekit.errors import (
    InvalidFileError,
    MemoryShortageError,
    MissingPluginError,
    PluginError,
    ResourceError,
    UnsupportedModelError,
    UsageError,
)
from edgekit.files.memory import refuse_shortage
from edgekit.files.reader import Mapped
from edgekit.pipeline import open_artifact
from edgekit.runtime import refuse_unknown_options
from edgekit.runtime.arguments import adapter_paths
from edgekit_llamacpp.devices import Device, accelerators, choose_layers, list_devices
from edgekit_llamacpp.library import BUILD, copied, llama, quiet

#: Largest default context; the model's own if that is less.
CONTEXT = 4096
#: Tokens of a batch of llama.cpp.
BATCH = 512
#: Sequences of a context: llama.cpp's own limit in the oldest supported version.
MOST_SEQUENCES = 64
#: Adapters by name, with the scale of each.
Lora = tuple[tuple[str, float], ...]
#: Types of keys and values: ggml's number, and bytes of an element.
CACHES = {"F32": (0, 4.0), "F16": (1, 2.0), "Q8_0": (8, 34 / 32)}
_MEAN = 1  # LLAMA_POOLING_TYPE_MEAN
_NO_FLASH = 0  # LLAMA_FLASH_ATTN_TYPE_DISABLED
_NO_VOCABULARY = 0  # LLAMA_VOCAB_TYPE_NONE


@attrs.frozen
class Options:
    """How a model is loaded.

    Attributes:
        context: size in tokens; None takes the model's own, at most `CONTEXT`.
        threads: number; None for all cores that this process may use.
        gpu_layers: layers to compute on an accelerator, counted from the last; -1 for all; ``"auto"`` for all that fit
            its free memory, which is 0 where the build or the machine has none.
        mmap: map the file instead of reading it.
        mlock: keep it from being swapped out.
        cache: type of the stored keys and values: ``F16``, as llama.cpp has it, ``F32`` to compute as exactly as it can
            (without flash attention, which rounds), or ``Q8_0`` for half the memory.
        lora: adapters, each a path or a pair (path, scale); or the path of one.
        sequences: texts that are computed together, at most `MOST_SEQUENCES`; each has a whole context, so the keys and
            values take so many times the memory.
        adapters: further adapters by name, each a path; they are loaded, and applied to texts that ask for them.
    """

    context: int | None = None
    threads: int | None = None
    gpu_layers: int | Literal["auto"] = "auto"
    mmap: bool = True
    mlock: bool = False
    cache: str = "F16"
    lora: tuple[tuple[str, float], ...] = ()
    sequences: int = 1
    adapters: Mapping[str, str] = attrs.field(factory=dict)

    @classmethod
    def of(cls, **given: Any) -> Options:
        """Checked options.

        Raises:
            UsageError: an option that is not known, or out of range.
        """
        known = [field.name for field in attrs.fields(cls)]
        refuse_unknown_options("llamacpp", given, [*known, "isolate"])
        lora = given.get("lora") or ()
        given["lora"] = tuple(map(_adapter, [lora] if isinstance(lora, str | os.PathLike) else lora))
        given["adapters"] = adapter_paths(given.get("adapters"))
        for name, least in (("context", 1), ("threads", 1), ("gpu_layers", -1)):
            value = given.get(name)
            if value is None or (name == "gpu_layers" and value == "auto"):
                continue
            if not (isinstance(value, int) and least <= value < 1 << 31):
                auto = ", or auto" if name == "gpu_layers" else ""
                raise UsageError(f"{name} is {value!r}; choose an integer of at least {least}{auto}")
        sequences = given.get("sequences", 1)
        if not (isinstance(sequences, int) and 1 <= sequences <= MOST_SEQUENCES):
            raise UsageError(f"sequences is {sequences!r}; choose 1 to {MOST_SEQUENCES}")
        if given.get("gpu_layers", 0) is None:
            given["gpu_layers"] = "auto"
        if given.get("cache", "F16") not in CACHES:
            raise UsageError(f"cache is {given['cache']!r}; choose one of {', '.join(CACHES)}")
        return cls(**given)


def _adapter(item: Any) -> tuple[str, float]:
    path, scale = (item, 1.0) if isinstance(item, str | os.PathLike) else item
    if not np.isfinite(scale):
        raise UsageError(f"LoRA adapter {path}: scale {scale}; choose a finite number")
    return str(path), float(scale)


class Loaded:
    """A model, its context and its adapters in llama.cpp's memory.

    Args:
        artifact: a GGUF file, which edgekit's reader has checked.
        options: how.

    Raises:
        UnsupportedModelError: llama.cpp does not run it: an unknown architecture, or no vocabulary in the file.
        InvalidFileError: tensors are missing, or have other shapes than the architecture requires.
        MissingPluginError: acceleration is asked for that the installed build does not have.
        ResourceError: memory does not suffice for the context, or must not be locked.
    """

    def __init__(self, artifact: Artifact, options: Options) -> None:
        self._llama, self._free = llama(), contextlib.ExitStack()
        self.options = options
        self._pooling = artifact.config.get(f"{artifact.config.get('general.architecture')}.pooling_type")
        with self._free as stack:
            refuse_missing(artifact, options)
            self.gpu_layers, self.devices = _placed(artifact, options)
            """Return the number of layers on an accelerator, the output matrix counted as one, and the devices."""
            self._mapped = Mapped(artifact.files, _CUT) if options.mmap else None
            self.model = self._load(artifact, options)
            stack.callback(self._llama.llama_model_free, self.model)
            self.vocab = self._llama.llama_model_get_vocab(self.model)
            trained = self._llama.llama_model_n_ctx_train(self.model)
            self.size = options.context or min(trained, CONTEXT)
            """Tokens that the context holds; llama.cpp itself rounds up to 256."""
            self.layers = int(self._llama.llama_model_n_layer(self.model))
            """Layers of the model."""
            layers = self.layers - min(self.layers, self.gpu_layers)
            refuse_memory(artifact, self.size * options.sequences, options.cache, layers)
            self._adapters = [(self._adapter(path), scale) for path, scale in options.lora]
            self._named = {name: self._adapter(path) for name, path in options.adapters.items()}
            self.context = self.new_context(self.size, sequences=options.sequences)
            stack.callback(self._llama.llama_free, self.context)
            self._free = stack.pop_all()

    def description(self) -> dict[str, Any]:
        """Return how it computes, with the chosen options; see `edgekit.runtime.DescribedRuntime`."""
        moved = min(self.gpu_layers, self.layers)
        return {
            "device": ", ".join(map(str, self.devices)) if self.gpu_layers else "CPU",
            "gpu_layers": moved,
            "layers": self.layers,
            "output_on_gpu": self.gpu_layers > self.layers,
            "context": self.size,
            "sequences": self.options.sequences,
            "threads": self.options.threads or _cores(),
        }

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return int(self._llama.llama_vocab_n_tokens(self.vocab))

    @property
    def has_vocabulary(self) -> bool:
        """Whether the file has a tokenizer."""
        return bool(self._llama.llama_vocab_type(self.vocab) != _NO_VOCABULARY)

    @property
    def batch(self) -> int:
        """Tokens that the context computes at once; more would end the process."""
        return int(self._llama.llama_n_batch(self.context))

    def refuse_cut(self) -> None:
        """Refuse to compute with a mapped file that was truncated: reading the missing pages ends the process.

        Raises:
            InvalidFileError: the file was truncated.
        """
        if self._mapped is not None:
            self._mapped.refuse_cut()

    def close(self) -> None:
        """Free everything; may be called more than once. In a forked process nothing is freed."""
        if copied():
            self._free.pop_all()
            return
        with quiet():
            self._free.close()

    def _load(self, artifact: Artifact, options: Options) -> Any:
        parameters = self._llama.llama_model_default_params()
        parameters.n_gpu_layers = self.gpu_layers
        set_load_mode(parameters, options)
        with quiet() as lines:
            model = self._llama.llama_model_load_from_file(os.fsencode(artifact.files[0]), parameters)
        if not model:
            refuse_shortage(
                RuntimeError("; ".join(lines)), f"{artifact.path}: loading it with llama.cpp", artifact.nbytes
            )
            why = next((line for line in lines if "error loading model" in line), "; ".join(lines)).partition(": ")[2]
            known = "unknown model architecture" in why or "tokenizer" in why
            kind = UnsupportedModelError if known else InvalidFileError
            raise kind(f"{artifact.path}: llama.cpp cannot load it: {why or 'it does not say why'}; {_CURE}")
        return model

    def new_context(self, size: int, *, embeddings: bool = False, observer: Any = None, sequences: int = 1) -> Any:
        """Return a new context, with the adapters; the caller frees it.

        Args:
            size: of a sequence, in tokens.
            embeddings: whether it computes embeddings: pooled as the file says, else the mean of the last states.
            observer: an evaluation callback; such a context computes all its tokens at once, as exactly as it can.
            sequences: number; each has room for `size` tokens.
        """
        parameters = self._llama.llama_context_default_params()
        whole = embeddings or observer  # the mean covers one batch
        step = size if whole else min(max(size, sequences), BATCH)
        parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = size * sequences, step, step
        parameters.n_seq_max, parameters.no_perf = sequences, True
        parameters.n_threads = parameters.n_threads_batch = self.options.threads or _cores()
        cache = "F32" if observer else self.options.cache
        parameters.type_k = parameters.type_v = CACHES[cache][0]
        # With memory of its own a sequence has its keys in order, and so sums that others do not change.
        parameters.kv_unified = False
        if cache == "F32":
            parameters.flash_attn_type = _NO_FLASH
        if observer:
            parameters.cb_eval = observer
        parameters.offload_kqv = self.gpu_layers != 0
        if embeddings:
            parameters.embeddings, parameters.pooling_type = True, self._pooling or _MEAN
        with quiet() as lines:
            context = self._llama.llama_init_from_model(self.model, parameters)
        if not context:
            refuse_shortage(RuntimeError("; ".join(lines)), f"a context of {size} tokens in llama.cpp")
            fewer = f", or fewer gpu_layers than {self.gpu_layers}" if self.gpu_layers else ""
            cure = f"choose a shorter one{fewer}"
            raise ResourceError(f"llama.cpp makes no context of {size} tokens: {'; '.join(lines)}; {cure}")
        try:
            self.adapt(context)
        except BaseException:
            self._llama.llama_free(context)
            raise
        return context

    def _adapter(self, path: str) -> Any:
        opened = open_artifact(path)
        if opened.format != "gguf" or opened.config.get("general.type") != "adapter":
            raise UsageError(f"{path}: no LoRA adapter in GGUF; write one with edgekit adapter")
        with quiet() as lines:
            adapter = self._llama.llama_adapter_lora_init(self.model, os.fsencode(path))
        if not adapter:
            raise InvalidFileError(
                f"{path}: the adapter does not fit the model: {'; '.join(lines)}; take the right one"
            )
        return adapter  # freed with the model

    def adapt(self, context: Any, lora: Lora = ()) -> None:
        """Make a context compute with the adapters of the option ``lora``, and with others by name.

        Args:
            context: of this model.
            lora: names, of the option ``adapters``, and scales.

        Raises:
            InvalidFileError: llama.cpp refuses the adapters.
        """
        chosen = [*self._adapters, *((self._named[name], scale) for name, scale in lora)]
        if not (self._adapters or self._named):
            return
        count = len(chosen)
        # An array of none would have no address.
        adapters = (self._llama.llama_adapter_lora_p_ctypes * max(count, 1))(*(adapter for adapter, _ in chosen))
        scales = (ctypes.c_float * max(count, 1))(*(scale for _, scale in chosen))
        if self._llama.llama_set_adapters_lora(context, adapters, count, scales):
            raise InvalidFileError("llama.cpp refuses the LoRA adapters; check that they are for this model")


_CUT = "load the model again from a whole file; mmap=False reads it into memory, isolate=True keeps a crash apart"
_CURE = "use a file that llama.cpp's own tools or edgekit wrote, or upgrade llama-cpp-python"


def _placed(artifact: Artifact, options: Options) -> tuple[int, list[Device]]:
    """Return the number of layers to move to accelerators, and the accelerators."""
    if options.gpu_layers == "auto":
        context = options.context or min(_trained(artifact), CONTEXT)
        return choose_layers(artifact, context * options.sequences, CACHES[options.cache][1])
    if options.gpu_layers == 0:
        return 0, []
    return options.gpu_layers if options.gpu_layers > 0 else 1 << 30, accelerators(list_devices())


def _trained(artifact: Artifact) -> int:
    """Return the context that the model was trained with, from its metadata."""
    value = artifact.config.get(f"{artifact.config.get('general.architecture')}.context_length")
    return value if isinstance(value, int) and value > 0 else CONTEXT


def set_load_mode(parameters: Any, options: Options) -> None:
    """Set how the file is read, in fields that the installed llama.cpp has: ctypes silently accepts any others.

    Raises:
        PluginError: the installed llama-cpp-python has no known field.
    """
    fields = {name for name, *_ in parameters._fields_}
    if "load_mode" in fields:  # LLAMA_LOAD_MODE_NONE, MMAP, MLOCK, MMAP_MLOCK
        parameters.load_mode = options.mmap + 2 * options.mlock
    elif {"use_mmap", "use_mlock"} <= fields:
        parameters.use_mmap, parameters.use_mlock = options.mmap, options.mlock
    else:
        raise PluginError("the installed llama-cpp-python loads models in a way that is not known; install 0.3.36")


def refuse_missing(artifact: Artifact, options: Options) -> None:
    """Refuse options that the build or the machine does not support, instead of ignoring them.

    Raises:
        MissingPluginError, ResourceError: as in `Loaded`.
    """
    library = llama()
    if options.gpu_layers not in (0, "auto") and not library.llama_supports_gpu_offload():
        raise MissingPluginError(
            f"gpu_layers={options.gpu_layers}, but the installed llama-cpp-python computes on the CPU only; "
            f"build it for the accelerator: {BUILD} (GGML_METAL, GGML_VULKAN for others), or leave gpu_layers out"
        )
    if options.mmap and not library.llama_supports_mmap():
        raise MissingPluginError("this build of llama-cpp-python cannot map files; pass mmap=False")
    if options.mlock:
        _refuse_lock(artifact)


def _refuse_lock(artifact: Artifact) -> None:
    if not llama().llama_supports_mlock():
        raise MissingPluginError("this build of llama-cpp-python cannot lock memory; pass mlock=False")
    if sys.platform == "win32":  # it has no such limit to ask for
        return
    import resource

    allowed, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if allowed != resource.RLIM_INFINITY and allowed < artifact.nbytes and os.geteuid():
        raise ResourceError(
            f"mlock=True must lock {artifact.nbytes} bytes and {allowed} are allowed; raise `ulimit -l`"
        )


def refuse_memory(artifact: Artifact, context: int, cache: str = "F16", layers: int | None = None) -> None:
    """Refuse a context whose keys and values do not fit in memory; skipped if the family is unsupported.

    Args:
        artifact: the model.
        context: tokens.
        cache: type of the keys and values.
        layers: number in the main memory; None for all.

    Raises:
        MemoryShortageError: states how many bytes are needed and available.
    """
    try:
        config = artifact.model.config
    except UnsupportedModelError:
        return
    values = 2 * (config.layers if layers is None else layers) * config.kv_heads * config.head_dim * context
    needed, free = values * CACHES[cache][1], available_memory()
    if free is not None and needed > free:
        raise MemoryShortageError(
            f"a context of {context} tokens takes {needed / 1e9:.1f} GB for keys and values and "
            f"{free / 1e9:.1f} GB are free; choose a shorter context"
        )


def refuse_ambiguous(artifact: Artifact) -> None:
    """Raise if a vocabulary has a token twice, for which llama.cpp ends the process.

    Raises:
        InvalidFileError: names the token and its two ids.
    """
    tokens = artifact.config.get("tokenizer.ggml.tokens", ())
    seen: dict[str, int] = {}
    for number, token in enumerate(tokens if isinstance(tokens, tuple) else ()):
        known = str(token).partition("\0")[0]  # a C string ends there
        if known and known in seen:
            raise InvalidFileError(
                f"{artifact.path}: token {known!r} is there twice, as {seen[known]} and {number}; get the file again"
            )
        seen[known] = number


def available_memory() -> int | None:
    """Return the bytes available without swapping; None if the system does not report them."""
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


@contextlib.contextmanager
def batch_of(rows: Sequence[tuple[int, int, int, bool]]) -> Iterator[Any]:
    """Yield a batch.

    Args:
        rows: at most `BATCH`: a token, its position, its sequence, and whether its output is wanted.
    """
    library, count = llama(), len(rows)
    batch = library.llama_batch_init(count, 0, 1)
    try:
        batch.n_tokens = count
        for index, (token, position, sequence, output) in enumerate(rows):
            batch.token[index], batch.pos[index] = token, position
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
            batch.logits[index] = output
        yield batch
    finally:
        library.llama_batch_free(batch)


__all__ = [
    "BATCH",
    "CACHES",
    "CONTEXT",
    "MOST_SEQUENCES",
    "Loaded",
    "Lora",
    "Options",
    "available_memory",
    "batch_of",
    "refuse_ambiguous",
    "refuse_memory",
    "refuse_missing",
    "set_load_mode",
]
