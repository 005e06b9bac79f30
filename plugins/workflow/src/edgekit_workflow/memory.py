"""The memory that a model takes when it runs: weights, what it remembers of the context, and the rest.

    peak = base + layers × layer + weights × factor + state + scratch

- *base*: Python, edgekit and the runtime's libraries.
- *layer*: objects of the graph, of which OpenVINO keeps 3 MB a layer.
- *weights × factor*: the artifact's tensors as the runtime keeps them. llama.cpp and MLX compute on what is stored
  (factor 1); others repack, or keep float32.
- *an embedding* is looked up, not multiplied: what OpenVINO maps of it is not resident. Where it is the output matrix
  too (tied), OpenVINO and ONNX Runtime keep a copy for the product, as of any other matrix.
- *state*: for each layer with attention ``2 × kv_heads × head_dim × positions × bytes``, where a sliding window bounds
  the positions; for a recurrence or a convolution its state, which does not grow with the context.
- *scratch*: intermediate values of a step, the logits above all.

The constants of each runtime are data, in ``runtimes.toml``, with the measurement that each comes from. They are
resident memory: pages that a runtime reserves and never touches do not count.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping
from importlib import resources
from typing import Any

import attrs

from edgekit.architectures import FAMILIES, ModelConfig, tensor_shapes
from edgekit.architectures.mixers import Attention, DeltaNet, Mamba2, ShortConvolution
from edgekit.artifact import Artifact
from edgekit.errors import UnsupportedModelError, UsageError
from edgekit.precision import Precision
from edgekit.runtime import choose_runtime
from edgekit.tensor import AnyTensor, EncodedTensor
from edgekit_workflow.hardware import processor_flags

#: Tokens of a context where none is given: llama.cpp's default in edgekit.
CONTEXT = 4096
#: Key of the bytes of an embedding, before the kind of its precision: its rows are looked up and never repacked.
EMBEDDING = "embedding:"
_FLOATS = ("F32", "F16", "BF16")


@attrs.frozen
class Memory:
    """The memory that a model takes on a runtime, in bytes.

    Attributes:
        weights: as the runtime keeps them.
        state: of keys, values and recurrences for the context.
        overhead: libraries and intermediate values.
        context: tokens that `state` is for.
        runtime: for which it holds.
        reclaimable: of `weights`, pages of the mapped file that the system drops when memory is short: the runtime
            computes on a copy.
    """

    weights: int
    state: int
    overhead: int
    context: int
    runtime: str
    reclaimable: int = 0

    @property
    def total(self) -> int:
        """The predicted peak of resident memory."""
        return self.weights + self.state + self.overhead

    @property
    def needed(self) -> int:
        """What cannot be dropped: `total` without `reclaimable`."""
        return self.total - self.reclaimable


@attrs.frozen
class Footprint:
    """How a runtime uses memory; a table of ``runtimes.toml``.

    Attributes:
        base: bytes without a model.
        factors: bytes kept for each byte stored, by kind of precision (`kind_of`); ``other`` for all others.
        layer: bytes of the graph of each layer.
        looked_up: bytes kept for each byte of a quantized embedding; 0 where the rows of any are read from the mapped
            file as they are needed.
        tied_copy: whether an embedding that is the output matrix too is kept a second time, for the product.
        float32: whether decoded weights are kept in float32 instead (numpy), up to `float32_limit` bytes of them.
        float32_limit: above which they are read anew in each pass.
        state_bytes: of an element of keys and values.
        state_factor: multiplies the state: buffers that double when they grow.
        whole_context: whether memory for the whole context is taken at the start, instead of as a text grows.
        scratch: bytes of intermediate values for each element of width, feed-forward and vocabulary together, and each
            token of a batch of the prompt.
        batch: most tokens of a prompt that are computed at once.
        formats: of the artifacts that the runtime runs.
        decoding: multiplies the bytes of the embedding in float32: what decoding the largest matrix takes.
        narrow: what differs on x86 processors without AVX-512, for which some runtimes repack weights otherwise.
        mapped: whether the file is mapped: of weights with a factor above 1 the file's pages can be dropped.
    """

    base: int
    factors: Mapping[str, float]
    state_bytes: float
    scratch: float
    batch: int
    formats: tuple[str, ...] = attrs.field(converter=tuple)
    layer: int = 0
    looked_up: float = 1.0
    tied_copy: bool = False
    state_factor: float = 1.0
    float32: bool = False
    float32_limit: int = 0
    whole_context: bool = False
    mapped: bool = False
    decoding: float = 0.0
    narrow: Mapping[str, Any] = attrs.field(factory=dict)

    def on(self, instructions: Collection[str]) -> Footprint:
        """Return the footprint on a processor with these instruction sets (`Machine.instructions`)."""
        is_narrow = "avx2" in instructions and "avx512f" not in instructions
        return attrs.evolve(self, **self.narrow) if is_narrow else self


@functools.cache
def runtime_constants() -> Mapping[str, Mapping[str, Any]]:
    """What was measured of each known runtime, by name: the tables ``memory`` and ``speed`` of ``runtimes.toml``."""
    return tomllib.loads(resources.files("edgekit_workflow").joinpath("runtimes.toml").read_text("utf-8"))


@functools.cache
def footprints() -> Mapping[str, Footprint]:
    """The footprint of each known runtime, by name."""
    return {name: Footprint(**tables["memory"]) for name, tables in runtime_constants().items()}


def footprint(runtime: str) -> Footprint:
    """Return the footprint of a runtime.

    Raises:
        UsageError: there are no measurements of it.
    """
    known = footprints()
    if runtime not in known:
        raise UsageError(f"no memory is known of the runtime {runtime!r:.80}; known are {', '.join(known)}")
    return known[runtime]


def memory_needed(
    source: Artifact | ModelConfig,
    context: int | None = None,
    runtime: str | None = None,
    *,
    weights: Mapping[str, int] | None = None,
    prompt: int | None = None,
    base: int | None = None,
    instructions: Collection[str] | None = None,
) -> Memory:
    """Predict the peak of the memory that a model takes on a runtime; reads no weights.

    Args:
        source: an artifact; or a configuration, for an artifact that does not exist yet.
        context: tokens of the texts; None takes the model's own, at most `CONTEXT`.
        runtime: name of a runtime in ``runtimes.toml``; None takes the fastest installed one that runs the artifact,
            and llamacpp for a configuration.
        weights: bytes stored, by kind of precision (`kind_of`), the embedding's after `EMBEDDING`; None takes the
            artifact's, and F16 of a configuration.
        prompt: the longest prompt in tokens, which bounds the intermediate values; None: up to the context.
        base: bytes of Python and the runtime's libraries, where they were measured on the machine that is meant; None
            takes the table's, from which another machine differed by a quarter.
        instructions: instruction sets of the processor that is meant (`Machine.instructions`); None takes this one's.

    Raises:
        UsageError: an unknown runtime, or a context below 1.
        UnsupportedModelError: the model's family is unknown.

    Example:
        >>> from edgekit import sample
        >>> memory = memory_needed(edgekit.open(sample.path()), 512, "numpy")  # doctest: +SKIP
        >>> memory.total == memory.weights + memory.state + memory.overhead  # doctest: +SKIP
        True
    """
    config = source.model.config if isinstance(source, Artifact) else source
    tokens = min(config.context, CONTEXT) if context is None else context
    if tokens < 1:
        raise UsageError(f"a context of {tokens} tokens; choose 1 or more")
    name = runtime or (choose_runtime(source, None).name if isinstance(source, Artifact) else "llamacpp")
    known = footprint(name).on(processor_flags() if instructions is None else instructions)
    stored = weights or (stored_kinds(source) if isinstance(source, Artifact) else {"F16": 2 * parameters(config)})
    scratch = known.scratch * min(tokens if prompt is None else prompt, tokens, known.batch) * _wide(config)
    logits = 4 * config.vocab
    libraries = (known.base if base is None else base) + config.layers * known.layer
    return Memory(
        weights=_kept(known, stored, config),
        state=int(known.state_factor * state_bytes(config, tokens, known.state_bytes)),
        overhead=libraries + int(scratch + known.decoding * logits * config.width) + logits,
        context=tokens,
        runtime=name,
        reclaimable=_reclaimable(known, stored),
    )


def _kept(known: Footprint, stored: Mapping[str, int], config: ModelConfig) -> int:
    decoded = 4 * parameters(config)
    if known.float32 and decoded <= known.float32_limit:
        return decoded
    return int(sum(_factor(known, kind, config.tied) * nbytes for kind, nbytes in stored.items()))


def _factor(known: Footprint, kind: str, tied: bool) -> float:
    """Bytes kept for each byte stored."""
    factor = known.factors.get(kind.removeprefix(EMBEDDING), known.factors["other"])
    if not kind.startswith(EMBEDDING):
        return factor
    is_float = kind.removeprefix(EMBEDDING) in _FLOATS
    looked_up = factor if is_float and known.looked_up else known.looked_up
    return looked_up + (factor if tied and known.tied_copy else 0.0)


def _reclaimable(known: Footprint, stored: Mapping[str, int]) -> int:
    if not known.mapped:
        return 0
    multiplied = [kind for kind in stored if not kind.startswith(EMBEDDING)]
    factors = {kind: known.factors.get(kind, known.factors["other"]) for kind in multiplied}
    return int(sum(min(1.0, factor - 1) * stored[kind] for kind, factor in factors.items()))


def _wide(config: ModelConfig) -> int:
    """Elements of the intermediate values of one token."""
    return config.width + 2 * config.ffn


def parameters(config: ModelConfig) -> int:
    """The number of weights of such a model, a tied output counted once."""
    total = 0
    for shape in tensor_shapes(config).values():
        size = 1
        for dimension in shape:
            size *= dimension
        total += size
    return total


def stored_kinds(artifact: Artifact) -> dict[str, int]:
    """Return the bytes of an artifact's tensors by kind of precision (`kind_of`), the embedding's apart."""
    roles = artifact.model.roles
    return by_kind((roles.get(name, name), kind_of(each), each.nbytes) for name, each in artifact.tensors.items())


def by_kind(tensors: Iterable[tuple[str, str, int]]) -> dict[str, int]:
    """Return the sums of bytes by kind of precision, those of embeddings with `EMBEDDING` before it.

    Args:
        tensors: canonical name, kind and bytes of each.
    """
    found: dict[str, int] = {}
    for name, kind, nbytes in tensors:
        key = EMBEDDING + kind if name.startswith("token_embd") else kind
        found[key] = found.get(key, 0) + nbytes
    return found


def kind_of(tensor: AnyTensor) -> str:
    """Return the kind of a tensor's precision without its convention: ``Q4_K``, ``int4``, ``int8_channel``, ``F16``."""
    if isinstance(tensor, EncodedTensor):
        return precision_kind(tensor.precision)
    return {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}.get(tensor.dtype, tensor.dtype)


def precision_kind(precision: Precision) -> str:
    """Return the kind of a precision as ``runtimes.toml`` names it: with ``_channel`` where a row shares its scale."""
    return f"{precision.kind}_channel" if precision.granularity == "channel" else precision.kind


def state_bytes(config: ModelConfig, context: int, element: float = 2.0) -> int:
    """Return the bytes of keys, values and recurrent states after so many tokens.

    Args:
        config: of the model.
        context: tokens.
        element: bytes of an element of keys and values; states of recurrences are float32 in all runtimes.

    Raises:
        UnsupportedModelError: a layer mixes tokens in a way whose state is unknown.
    """
    return int(sum(_states(config, context, element)))


def head_positions(config: ModelConfig, context: int) -> dict[int, int]:
    """Return how many positions the heads of queries look at for one token, over all layers, by the heads' size.

    Args:
        config: of the model.
        context: tokens before the one that is computed.
    """
    found: dict[int, int] = {}
    for block in FAMILIES[config.family].network(config).blocks:
        if isinstance(block.tokens, Attention):
            mixer = block.tokens
            seen = min(mixer.how.window or mixer.how.chunk or context, context)
            found[mixer.head_dim] = found.get(mixer.head_dim, 0) + mixer.heads * seen
    return found


def _states(config: ModelConfig, context: int, element: float) -> Iterator[float]:
    for block in FAMILIES[config.family].network(config).blocks:
        mixer = block.tokens
        if mixer is None:
            continue
        if isinstance(mixer, Attention):
            if mixer.shares is None and mixer.how.causal:
                bound = mixer.how.window or mixer.how.chunk or context
                yield 2 * mixer.kv_heads * mixer.head_dim * min(bound, context) * element
        elif isinstance(mixer, DeltaNet):
            wide = 2 * mixer.key_heads * mixer.key_dim + mixer.value_heads * mixer.value_dim
            yield 4 * (mixer.value_heads * mixer.key_dim * mixer.value_dim + (mixer.taps - 1) * wide)
        elif isinstance(mixer, Mamba2):
            wide = mixer.heads * mixer.head_dim + 2 * mixer.groups * mixer.state
            yield 4 * (mixer.heads * mixer.head_dim * mixer.state + (mixer.taps - 1) * wide)
        elif isinstance(mixer, ShortConvolution):
            yield 4 * mixer.width * (mixer.taps - 1)
        else:
            raise UnsupportedModelError(
                f"the memory of a {mixer.name} is unknown; edgekit_workflow.memory has none for it"
            )


__all__ = [
    "CONTEXT",
    "EMBEDDING",
    "Footprint",
    "Memory",
    "by_kind",
    "footprint",
    "footprints",
    "head_positions",
    "kind_of",
    "memory_needed",
    "parameters",
    "precision_kind",
    "runtime_constants",
    "state_bytes",
    "stored_kinds",
]
