"""Builds the OpenVINO graph of a model: its family's blocks over the operations of `edgekit_openvino.ops`.

    input_ids       i64 [batch, n]       the new tokens
    attention_mask  i64 [batch, m]       1 for a token, 0 for padding on the left, of all m tokens so far
    position_ids    i64 [batch, n]       positions of the new tokens, counted without padding
    beam_idx        i32 [batch]          index of the sequence in the previous step that each sequence continues
    logits          f32 [batch, n, vocab]

An encoder's graph takes the ids and the mask of whole texts, 0 for padding on the right, and gives
``last_hidden_state`` f32 [batch, n, width].

Norm weights are canonical: Gemma's are stored with 1 added.

Longrope and dynamic scaling change the rotation of all tokens when a sequence outgrows the original context. The graph
cannot rotate cached keys again: the caller must then compute the sequence from the start (`edgekit_openvino.runtime`
does).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, cast

from edgekit.architectures import FAMILIES, ModelConfig
from edgekit.architectures.blocks import Network, calls
from edgekit.architectures.ops import OPERATIONS, Ops, refuse_missing
from edgekit_openvino.ops import GraphOps, Weights


def build(config: ModelConfig, weights: Weights, stand_ins: Callable[[], Iterable[Any]] = tuple) -> Any:
    """Return the graph of a model.

    Args:
        config: the model's hyper-parameters.
        weights: returns the node of a tensor; called once per tensor, in the order in which they are needed.
        stand_ins: called last; returns the Parameters that stand for weights that are not constants yet.

    Returns:
        An `openvino.Model` whose nodes have names that depend only on `config`.

    Raises:
        UnsupportedModelError: the family needs an operation that this runtime does not implement.
    """
    network = refuse_lacking(config)
    graph = GraphOps(dict(network.shapes()), calls(network), weights, network.predicts)
    ops = cast(Ops[Any], graph)  # operations that it lacks are not needed: `refuse_lacking` checks that
    states = network.states(ops)
    computed = network.logits(ops, states) if network.predicts else states
    return graph.model(computed, config.name or config.family, stand_ins())


def refuse_lacking(config: ModelConfig) -> Network:
    """Return the blocks of a model, if this runtime implements every operation that they need.

    Raises:
        UnsupportedModelError: an operation is missing; names it, the mixer and the family.
    """
    network = FAMILIES[config.family].network(config)
    available = [name for name in OPERATIONS if hasattr(GraphOps, name)]
    refuse_missing(calls(network), available, config.family, "openvino")
    return network


def name_nodes(model: Any, prefix: str = "") -> None:
    """Name every unnamed node by its type and position, so that the names are the same in every process.

    OpenVINO numbers unnamed nodes over the whole process and writes these names into the IR. A constant may have the
    generated name of a node that was folded into it.

    Args:
        model: the graph; the bodies of its loops are named too.
        prefix: the start of every name that is given.
    """
    for place, node in enumerate(model.get_ordered_ops()):
        name, kind = node.friendly_name, node.get_type_name()
        if re.fullmatch(r"[A-Za-z]+_\d+", name) and (name == node.get_name() or kind == "Constant"):
            node.friendly_name = f"{prefix}{kind.lower()}.{place}"
        if kind == "Loop":
            name_nodes(node.get_function(), f"{node.friendly_name}/")


__all__ = ["build", "name_nodes", "refuse_lacking"]
