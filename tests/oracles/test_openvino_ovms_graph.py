"""graph.pbtxt of a language model, read by protobuf's own parser of its text format.

The messages are those parts of ``mediapipe/framework/calculator.proto``, ``mediapipe_options.proto`` and
``stream_handler/sync_set_input_stream_handler.proto`` (google/mediapipe) and of ``src/llm/llm_calculator.proto``
(openvinotoolkit/model_server) that such graphs use: the parser refuses a field, a kind of value or an extension that
they do not have. The server itself is not run here.
"""

from __future__ import annotations

import json

import pytest
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory, text_format

import edgekit
from edgekit import sample
from edgekit.pipeline.packaging import package

pytest.importorskip("openvino")

STRING, BOOL, UINT64, ENUM, MESSAGE = 9, 8, 4, 14, 11
ONE, MANY, REQUIRED = 1, 3, 2
#: Fields of the messages by name: number, label, kind and the name of a message or an enumeration.
MESSAGES = {
    "MediaPipeOptions": [],
    "InputStreamInfo": [("tag_index", 1, ONE, STRING), ("back_edge", 2, ONE, BOOL)],
    "InputStreamHandlerConfig": [
        ("input_stream_handler", 1, ONE, STRING),
        ("options", 3, ONE, MESSAGE, "MediaPipeOptions"),
    ],
    "SyncSet": [("tag_index", 1, MANY, STRING)],
    "SyncSetInputStreamHandlerOptions": [("sync_set", 1, MANY, MESSAGE, "SyncSet")],
    "Node": [
        ("name", 1, ONE, STRING),
        ("calculator", 2, ONE, STRING),
        ("input_stream", 3, MANY, STRING),
        ("output_stream", 4, MANY, STRING),
        ("input_side_packet", 5, MANY, STRING),
        ("node_options", 8, MANY, MESSAGE, "google.protobuf.Any"),
        ("input_stream_handler", 11, ONE, MESSAGE, "InputStreamHandlerConfig"),
        ("input_stream_info", 13, MANY, MESSAGE, "InputStreamInfo"),
    ],
    "CalculatorGraphConfig": [
        ("node", 1, MANY, MESSAGE, "Node"),
        ("input_stream", 10, MANY, STRING),
        ("output_stream", 15, MANY, STRING),
    ],
    "LLMCalculatorOptions": [
        ("models_path", 1, REQUIRED, STRING),
        ("max_num_batched_tokens", 2, ONE, UINT64),
        ("cache_size", 3, ONE, UINT64),
        ("max_num_seqs", 4, ONE, UINT64),
        ("dynamic_split_fuse", 5, ONE, BOOL),
        ("device", 6, ONE, STRING),
        ("plugin_config", 7, ONE, STRING),
        ("enable_prefix_caching", 10, ONE, BOOL),
        ("pipeline_type", 19, ONE, ENUM, "PipelineType"),
    ],
}
PIPELINES = ("LM", "VLM", "LM_CB", "VLM_CB", "AUTO")


@pytest.fixture(scope="module")
def pool():
    """Descriptors of the messages above."""
    file = descriptor_pb2.FileDescriptorProto(name="graph.proto", package="mediapipe", syntax="proto2")
    file.dependency.append("google/protobuf/any.proto")
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, label, kind, *of in fields:
            one = message.field.add(name=field, number=number, label=label, type=kind)
            if of:
                one.type_name = f".{of[0]}" if of[0].startswith("google.") else f".mediapipe.{of[0]}"
    messages = {message.name: message for message in file.message_type}
    messages["MediaPipeOptions"].extension_range.add(start=20000, end=536870912)
    pipelines = file.enum_type.add(name="PipelineType")
    for number, name in enumerate(PIPELINES):
        pipelines.value.add(name=name, number=number)
    messages["SyncSetInputStreamHandlerOptions"].extension.add(
        name="ext",
        number=395003159,
        label=ONE,
        type=MESSAGE,
        type_name=".mediapipe.SyncSetInputStreamHandlerOptions",
        extendee=".mediapipe.MediaPipeOptions",
    )
    pool = descriptor_pool.DescriptorPool()
    any_file = descriptor_pb2.FileDescriptorProto()
    any_pb2.DESCRIPTOR.CopyToProto(any_file)
    pool.Add(any_file)
    pool.Add(file)
    return pool


def message(pool, name):
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"mediapipe.{name}"))()


def parsed(text, pool):
    return text_format.Parse(text, message(pool, "CalculatorGraphConfig"), descriptor_pool=pool)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The sample model as the server gets it."""
    folder = tmp_path_factory.mktemp("ovms")
    made = edgekit.quantize(sample.path(), "INT8_ASYM", to=folder / "story", format="openvino")
    options = {"properties": {"KV_CACHE_PRECISION": "u8"}, "device": "GPU"}
    return package(made, "ovms", to=folder / "served", options=options)


def test_the_graph_is_read_by_protobufs_parser(served, pool):
    graph = parsed((served.path / "models/story/graph.pbtxt").read_text("utf-8"), pool)
    (node,) = graph.node
    assert node.calculator == "HttpLLMCalculator"
    assert list(node.input_side_packet) == ["LLM_NODE_RESOURCES:llm"]
    assert set(graph.input_stream) | {"LOOPBACK:loopback"} == set(node.input_stream)
    assert set(graph.output_stream) | {"LOOPBACK:loopback"} == set(node.output_stream)
    (packed,) = node.node_options
    options = message(pool, "LLMCalculatorOptions")
    assert packed.type_url.replace(" ", "") == "type.googleapis.com/mediapipe.LLMCalculatorOptions"
    options.ParseFromString(packed.value)
    assert options.IsInitialized()
    assert (options.models_path, options.device) == ("./", "GPU")
    assert json.loads(options.plugin_config) == {"KV_CACHE_PRECISION": "u8"}
    assert PIPELINES[options.pipeline_type] in ("LM", "LM_CB")


@pytest.mark.parametrize(
    ("old", "new"),
    [("pipeline_type: LM", "pipeline_kind: LM"), ("pipeline_type: LM", "pipeline_type: FAST"), ("sync_set {", "set {")],
)
def test_the_parser_refuses_what_the_messages_lack(served, pool, old, new):
    text = (served.path / "models/story/graph.pbtxt").read_text("utf-8")
    assert old in text
    with pytest.raises(text_format.ParseError):
        parsed(text.replace(old, new), pool)


def test_the_configuration_names_the_directory_of_the_graph(served):
    config = json.loads((served.path / "config.json").read_text("utf-8"))
    assert config == {
        "model_config_list": [],
        "mediapipe_config_list": [{"name": "story", "base_path": "models/story"}],
    }
    assert (served.path / config["mediapipe_config_list"][0]["base_path"] / "graph.pbtxt").is_file()
