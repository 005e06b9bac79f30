"""The speed that a model will have, predicted from the bytes that each token moves.

    seconds a token = bytes moved / min(bandwidth, rate × threads) + overhead + layers × layer

- *bytes moved*: every weight that a token uses, read once: of experts only the chosen ones, of an embedding that is no
  output matrix one row; and the keys and values of the context so far.
- *rate*: what one core decodes and multiplies, by runtime and kind of precision (``runtimes.toml``): it bounds the
  speed where memory does not, which is what happens to 4-bit weights on few cores, and to models that fit the cache.
- *overhead*, *layer*: time that does not depend on bytes; it is most of the time of a model of a few million weights.

This is a prediction, not a measurement: the rates come from one processor. `edgekit bench` measures.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping

import attrs

from edgekit.architectures import FAMILIES, ModelConfig
from edgekit.architectures.mixers import Experts, ExpertsBeside
from edgekit.errors import UsageError
from edgekit_workflow.hardware import Machine
from edgekit_workflow.memory import runtime_constants, state_bytes

_EXPERTS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", "ffn_gate_up_exps")


@attrs.frozen
class Pace:
    """How fast a runtime computes; a table of ``runtimes.toml``.

    Attributes:
        overhead: seconds a token that no model avoids.
        layer: seconds a layer.
        rates: bytes a second of one core by kind of precision; ``other`` for all others.
        gpu: vendors of GPUs that the runtime computes on where it can.
    """

    overhead: float
    layer: float
    rates: Mapping[str, float]
    gpu: tuple[str, ...] = attrs.field(default=(), converter=tuple)


@functools.cache
def paces() -> Mapping[str, Pace]:
    """The pace of each known runtime, by name."""
    return {name: Pace(**tables["speed"]) for name, tables in runtime_constants().items()}


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
    if runtime not in paces():
        raise UsageError(f"no speed is known of the runtime {runtime!r:.80}; known are {', '.join(paces())}")
    if not config.causal:
        return None
    pace = paces()[runtime]
    state = state_bytes(config, context, state_element) if context else 0
    total = sum(moved.values()) + state
    fixed = pace.overhead + config.layers * pace.layer
    gpu = _gpu_bandwidth(machine, pace.gpu, total)
    if gpu is not None:
        return 1 / (total / (gpu * accelerator_share) + fixed)
    if machine.bandwidth is None:
        return None
    cores = threads or machine.cores
    computing = sum(nbytes / (_rate(pace, kind) * cores) for kind, nbytes in moved.items())
    cached = total <= max(machine.caches.values(), default=0)
    return 1 / (max(0.0 if cached else total / machine.bandwidth, computing) + fixed)


def _rate(pace: Pace, kind: str) -> float:
    return pace.rates.get(kind, pace.rates["other"])


def _gpu_bandwidth(machine: Machine, vendors: Collection[str], needed: float) -> float | None:
    """Bandwidth of a GPU of these vendors that the weights fit; one without memory of its own has the machine's."""
    found = [
        device.bandwidth or machine.bandwidth
        for device in machine.devices
        if device.kind == "gpu" and device.vendor in vendors and needed < (device.memory or machine.memory)
    ]
    return max((bandwidth for bandwidth in found if bandwidth), default=None)


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


__all__ = ["Pace", "active_share", "moved_bytes", "paces", "predicted_speed"]
