"""The speed that a model will have, predicted from the bytes that each token moves.

    seconds a token = bytes moved / min(bandwidth, rate × threads) + overhead + layers × layer
                      + heads × positions × attention / threads

- *bytes moved*: every weight that a token uses, read once: of experts only the chosen ones, of an embedding that is no
  output matrix one row; and the keys and values of the context so far.
- *rate*: what one core decodes and multiplies, by runtime and kind of precision (``runtimes.toml``): it bounds the
  speed where memory does not, which is what happens to 4-bit weights on few cores, and to models that fit the cache.
- *attention*: seconds of one core for each position that each head of queries looks at, by the heads' size.
- *overhead*, *layer*: time that does not depend on bytes; it is most of the time of a model of a few million weights.

This is a prediction, not a measurement of the model: the constants come from one processor, or from models that
`edgekit profile --measure` makes and times on this machine (`edgekit_workflow.calibration`). `edgekit bench` measures.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping

from edgekit.architectures import FAMILIES, ModelConfig
from edgekit.architectures.mixers import Experts, ExpertsBeside
from edgekit.artifact import Artifact
from edgekit.errors import UsageError
from edgekit.tensor import EncodedTensor
from edgekit_workflow.hardware import Machine
from edgekit_workflow.memory import footprint, head_positions, kind_of, runtime_constants, state_bytes
from edgekit_workflow.pace import Pace

_EXPERTS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", "ffn_gate_up_exps")


@functools.cache
def paces() -> Mapping[str, Pace]:
    """The pace of each known runtime, by name."""
    return {name: Pace(**tables["speed"]) for name, tables in runtime_constants().items()}


def pace_of(runtime: str) -> Pace:
    """Return the pace of a runtime as ``runtimes.toml`` has it.

    Raises:
        UsageError: there are no measurements of it.
    """
    if runtime not in paces():
        raise UsageError(f"no speed is known of the runtime {runtime!r:.80}; known are {', '.join(paces())}")
    return paces()[runtime]


def active_share(config: ModelConfig, name: str) -> float:
    """Return the share of a canonical tensor's bytes that one token reads.

    Args:
        config: of the model.
        name: of the tensor; an untied embedding counts as one row, a stack of experts by those that are used.
    """
    if name.startswith("token_embd") and not config.tied:
        return 1 / config.vocab
    if not any(part in name for part in _EXPERTS):
        return 1.0
    used, count = _experts(config)
    return used / count


@functools.cache
def _experts(config: ModelConfig) -> tuple[int, int]:
    """Experts that a token uses, and that a layer has."""
    for block in FAMILIES[config.family].network(config).blocks:
        if isinstance(block.channels, Experts | ExpertsBeside):
            return block.channels.routing.used, block.channels.count
    return 1, 1


def predicted_speed(
    config: ModelConfig,
    moved: Mapping[str, float],
    runtime: str,
    machine: Machine,
    *,
    context: int = 0,
    threads: int | None = None,
    state_element: float = 2.0,
    accelerator_share: float = 0.6,
) -> float | None:
    """Predict the tokens a second of one text.

    Args:
        config: of the model.
        moved: bytes that a token reads, by kind of precision.
        runtime: a name in ``runtimes.toml``.
        machine: whose bandwidth counts, or that of a GPU on which the runtime computes and which holds the weights.
        context: tokens before the one that is computed.
        threads: that compute; None for all physical cores.
        state_element: bytes of an element of keys and values.
        accelerator_share: of a GPU's bandwidth that is reached.

    Returns:
        Tokens a second; None if the machine's bandwidth is unknown, or the model predicts no tokens.

    Raises:
        UsageError: the runtime is unknown.
    """
    pace = machine.paces.get(runtime) or pace_of(runtime)
    if not config.causal:
        return None
    state = state_bytes(config, context, state_element) if context else 0
    total = sum(moved.values()) + state
    fixed = pace.overhead + config.layers * pace.layer
    gpu = _gpu_bandwidth(machine, pace.gpu, total)
    if gpu is not None:
        return 1 / (total / (gpu * accelerator_share) + fixed)
    if machine.bandwidth is None:
        return None
    cores = threads or machine.cores
    weights = sum(moved.values())
    computing = sum(nbytes / (pace.rate(kind, weights) * cores) for kind, nbytes in moved.items())
    attending = sum(count * pace.attending(size) for size, count in head_positions(config, context).items()) / cores
    cached = total <= max(machine.caches.values(), default=0)
    return 1 / (max(0.0 if cached else total / machine.bandwidth, computing) + attending + fixed)


def _gpu_bandwidth(machine: Machine, vendors: Collection[str], needed: float) -> float | None:
    """Bandwidth of a GPU of these vendors that the weights fit; one without memory of its own has the machine's."""
    found = [
        device.bandwidth or machine.bandwidth
        for device in machine.devices
        if device.kind == "gpu" and device.vendor in vendors and needed < (device.memory or machine.memory)
    ]
    return max((bandwidth for bandwidth in found if bandwidth), default=None)


def stored_tensors(artifact: Artifact, runtime: str) -> dict[str, tuple[str, int]]:
    """Return kind of precision and bytes of an artifact's tensors as a runtime reads them, by canonical name.

    numpy decodes to float32. Where a runtime multiplies weights slower in 16-bit floats (MLX on processors), and its
    pace has a rate for that, the kind of a quantized weight ends in the dtype of the norms, which all values then have:
    ``int4_BF16``.

    Raises:
        UsageError: the runtime is unknown.
        UnsupportedModelError: the model's family is.
    """
    rates, roles = pace_of(runtime).rates, artifact.model.roles
    vectors = {kind_of(tensor) for tensor in artifact.tensors.values() if len(tensor.shape) == 1}
    floats = f"_{vectors.pop()}" if len(vectors) == 1 else ""
    found: dict[str, tuple[str, int]] = {}
    for name, tensor in artifact.tensors.items():
        kind, nbytes = kind_of(tensor), tensor.nbytes
        if isinstance(tensor, EncodedTensor) and footprint(runtime).float32:
            kind, nbytes = "F32", 4 * tensor.size
        elif kind.startswith("offset"):  # MatMulNBits and a product of sums beside it, which moves few bytes
            kind = kind.replace("offset", "int")
        elif isinstance(tensor, EncodedTensor) and kind + floats in rates:
            kind += floats
        found[roles.get(name, name)] = kind, nbytes
    return found


def moved_bytes(config: ModelConfig, stored: Mapping[str, tuple[str, int]]) -> dict[str, float]:
    """Return the bytes that a token reads, by kind of precision.

    Args:
        config: of the model.
        stored: kind of precision and bytes of each tensor, by canonical name.
    """
    found: dict[str, float] = {}
    for name, (kind, nbytes) in stored.items():
        found[kind] = found.get(kind, 0.0) + nbytes * active_share(config, name)
    return found


__all__ = ["active_share", "moved_bytes", "pace_of", "paces", "predicted_speed", "stored_tensors"]
