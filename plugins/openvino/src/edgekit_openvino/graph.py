"""A decoder as an OpenVINO graph: its family's blocks over `edgekit_openvino.ops`.

    input_ids       i64 [batch, n]       the new tokens
    attention_mask  i64 [batch, m]       1 for a token, 0 for padding on the left, of all m tokens so far
    position_ids    i64 [batch, n]       positions of the new tokens, counted without padding
    beam_idx        i32 [batch]          which sequence of the step before each sequence goes on with
    logits          f32 [batch, n, vocab]

Norm weights are canonical: Gemma's with their one added.

Longrope and dynamic scaling turn all tokens of a sequence anew when it outgrows the original context. A graph cannot
go back to tokens it has seen: whoever runs it has to start over there (`edgekit_openvino.runtime` does).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, cast

from edgekit.architectures import FAMILIES, ModelConfig
from edgekit.architectures.blocks import Network, calls
from edgekit.architectures.ops import OPERATIONS, Ops, refuse_missing
from edgekit.errors import UnsupportedModelError
from edgekit_openvino.ops import GraphOps, Weights


def build(config: ModelConfig, weights: Weights, stand_ins: Callable[[], Iterable[Any]] = tuple) -> Any:
    """The decoder of a model.

    Args:
        config: its hyper-parameters.
        weights: called once for each tensor, in the order in which they are needed.
        stand_ins: called at the end; Parameters that the weights are made of, where they are not constants yet.

    Returns:
        An `openvino.Model` whose nodes have names that depend on `config` alone.

    Raises:
        UnsupportedModelError: the family needs an operation that this runtime lacks.
    """
    network = refuse_lacking(config)
    graph = GraphOps(dict(network.shapes()), calls(network), weights)
    ops = cast(Ops[Any], graph)  # it may lack some, which `refuse_lacking` has made sure are not needed
    logits = network.logits(ops, network.states(ops))
    return graph.model(logits, config.name or config.family, stand_ins())


def refuse_lacking(config: ModelConfig) -> Network:
    """The blocks of a model, if this runtime has every operation that they need.

    Raises:
        UnsupportedModelError: names the mixer, the family and the operation; or the model is an encoder.
    """
    network = FAMILIES[config.family].network(config)
    if not network.predicts:
        raise UnsupportedModelError(
            f"runtime openvino runs decoders, and {config.family} models are encoders; use runtime numpy, or llamacpp "
            "with a GGUF file"
        )
    available = [name for name in OPERATIONS if hasattr(GraphOps, name)]
    refuse_missing(calls(network), available, config.family, "openvino")
    return network


def name_nodes(model: Any, prefix: str = "") -> None:
    """Give every node without a name of its own one that is the same in every process: type and place.

    OpenVINO counts unnamed nodes over the whole process, and the names are written into the IR. A constant may have
    the made-up name of the nodes that were folded into it.

    Args:
        model: its nodes, and those of the bodies of its loops.
        prefix: of all names that are given.
    """
    for place, node in enumerate(model.get_ordered_ops()):
        name, kind = node.friendly_name, node.get_type_name()
        if re.fullmatch(r"[A-Za-z]+_\d+", name) and (name == node.get_name() or kind == "Constant"):
            node.friendly_name = f"{prefix}{kind.lower()}.{place}"
        if kind == "Loop":
            name_nodes(node.get_function(), f"{node.friendly_name}/")


__all__ = ["build", "name_nodes", "refuse_lacking"]
