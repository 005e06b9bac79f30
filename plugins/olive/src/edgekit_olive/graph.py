"""Builds the ONNX graph of a decoder: its family's blocks over the operations of `edgekit_olive.ops`.

    input_ids               i64 [batch, new]          the new tokens
    attention_mask          i64 [batch, total]        1 for a token, 0 for padding on the left, of all tokens so far
    position_ids            i64 [batch, new]          positions of the new tokens, counted without padding
    past_key_values.N.key   f32 [batch, kv_heads, past, head_dim]       and .value; initially empty
    logits                  f32 [batch, new, vocab]
    present.N.key           f32 [batch, kv_heads, total, head_dim]      and .value

An encoder has no keys and values of earlier tokens, and ``last_hidden_state`` [batch, new, width] instead of logits; an
embedding model with bidirectional attention has no earlier tokens either.

Longrope and dynamic scaling change the rotation of all tokens when a sequence outgrows the original context. The graph
cannot rotate cached keys again: the caller must then compute the sequence from the start (`edgekit_olive.runtime`
does).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from edgekit.architectures import FAMILIES, ModelConfig
from edgekit.architectures.blocks import Network, calls
from edgekit.architectures.ops import OPERATIONS, Ops, refuse_missing
from edgekit_olive.builder import Builder
from edgekit_olive.library import onnx
from edgekit_olive.ops import GraphOps, Value, causal, groupable
from edgekit_olive.weights import GraphWeights, Weight

#: The opset of standard operators, and the IR version that onnxruntime 1.20 and later read.
OPSET, IR_VERSION = 21, 10
#: Keys of the model's metadata: the name of the normalized states, and the dialect.
STATES, DIALECT = "edgekit.states", "edgekit.dialect"


def build(config: ModelConfig, weights: Mapping[str, Weight], *, fused: bool = True) -> Any:
    """Return the graph of a model.

    Args:
        config: the model's hyper-parameters.
        weights: its tensors by role, with their positions in the file beside the graph.
        fused: whether ONNX Runtime's own operators may be used; else only standard ones.

    Returns:
        An `onnx.ModelProto` without the weights' values.

    Raises:
        UnsupportedModelError: the family needs an operation that this runtime does not implement.
    """
    network = refuse_lacking(config)
    builder = Builder()
    # GroupQueryAttention raises an error for other head sizes at run time.
    uses = calls(network)
    grouped = fused and config.head_dim % 8 == 0 and all(map(groupable, uses))
    tensors = GraphWeights(builder, weights, fused)
    remembers = all(map(causal, uses))
    graph = GraphOps(builder, tensors, fused=fused, grouped=grouped, remembers=remembers, context=config.context or 0)
    ops = cast(Ops[Any], graph)  # operations that it lacks are not needed: `refuse_lacking` checks that
    states: Value = network.states(ops)
    result, width = (network.logits(ops, states), network.vocab) if network.predicts else (states, network.width)
    name = "logits" if network.predicts else "last_hidden_state"
    builder.op("Identity", graph.real(result), output=name)
    builder.output(name, "FLOAT", ["batch", "new", width], first=True)
    return _model(builder, config.family, {STATES: states.name, DIALECT: "fused" if fused else "portable"})


def _model(builder: Builder, name: str, properties: Mapping[str, str]) -> Any:
    helper = onnx().helper
    graph = helper.make_graph(builder.nodes, name, builder.inputs, builder.outputs, list(builder.initializers.values()))
    domains = sorted({node.domain for node in builder.nodes} - {""})
    opsets = [helper.make_opsetid("", OPSET), *(helper.make_opsetid(domain, 1) for domain in domains)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="edgekit")
    helper.set_model_props(model, dict(properties))
    return model


def refuse_lacking(config: ModelConfig) -> Network:
    """Return the blocks of a model, if this runtime implements every operation that they need.

    Raises:
        UnsupportedModelError: an operation is missing; names it, the mixer and the family.
    """
    network = FAMILIES[config.family].network(config)
    available = [name for name in OPERATIONS if hasattr(GraphOps, name)]
    refuse_missing(calls(network), available, config.family, "onnxruntime")
    return network


__all__ = ["DIALECT", "IR_VERSION", "OPSET", "STATES", "build", "refuse_lacking"]
