"""Writes the directory that OpenVINO Model Server serves from, according to its documentation; not tested with it.

    config.json                      the models and their directories
    models/<name>/<version>/         a graph: model.xml, model.bin; the server takes the highest version
    models/<name>/graph.pbtxt        a language model: a MediaPipe graph of one node, the model's files beside it
    Dockerfile                       the server's image with all of it inside
    README.md                        the command that starts it, and a request

A language model is served by the graph's ``HttpLLMCalculator`` under ``/v3/chat/completions``. Its ``pipeline_type`` is
LM_CB (continuous batching with paged attention) if the model's graph has ScaledDotProductAttention, which that needs,
and else LM (one request at a time); see `edgekit_openvino.ops`.

Sources: openvinotoolkit/model_server: ``docs/starting_server.md``, ``docs/llm/reference.md``, ``src/schema.cpp`` (the
schema of config.json, rewritten as `SCHEMA`), ``src/llm/llm_calculator.proto`` (the options of the node).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from edgekit.artifact import Artifact
from edgekit.errors import UnsupportedModelError, UsageError
from edgekit.pipeline.packaging import Package, write_files
from edgekit_openvino import ir
from edgekit_openvino.pipeline import NEEDED

IMAGE = "openvino/model_server:latest"
PORT = 8000
NOT_RUN = "not run here: written by the documentation of OpenVINO Model Server, and checked against its schema"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
#: JSON schema of the config.json that the server accepts.
SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["model_config_list"],
    "additionalProperties": False,
    "properties": {
        "model_config_list": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["config"],
                "additionalProperties": False,
                "properties": {
                    "config": {
                        "type": "object",
                        "required": ["name", "base_path"],
                        "additionalProperties": False,
                        "properties": {
                            "name": {"type": "string"},
                            "base_path": {"type": "string"},
                            "batch_size": {"type": ["integer", "string"], "minimum": 0},
                            "model_version_policy": {"type": "object", "maxProperties": 1},
                            "shape": {"type": ["object", "string"]},
                            "nireq": {"type": "integer", "minimum": 0},
                            "target_device": {"type": "string"},
                            "plugin_config": {"type": "object"},
                            "stateful": {"type": "boolean"},
                            "idle_sequence_cleanup": {"type": "boolean"},
                            "low_latency_transformation": {"type": "boolean"},
                            "max_sequence_number": {"type": "integer", "minimum": 0},
                        },
                    }
                },
            },
        },
        "mediapipe_config_list": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name"],
                "additionalProperties": False,
                "properties": {
                    "name": {"type": "string"},
                    "base_path": {"type": "string"},
                    "graph_path": {"type": "string"},
                    "subconfig": {"type": "string"},
                },
            },
        },
    },
}
_GRAPH = """\
input_stream: "HTTP_REQUEST_PAYLOAD:input"
output_stream: "HTTP_RESPONSE_PAYLOAD:output"

node: {{
  name: "LLMExecutor"
  calculator: "HttpLLMCalculator"
  input_stream: "LOOPBACK:loopback"
  input_stream: "HTTP_REQUEST_PAYLOAD:input"
  input_side_packet: "LLM_NODE_RESOURCES:llm"
  output_stream: "LOOPBACK:loopback"
  output_stream: "HTTP_RESPONSE_PAYLOAD:output"
  input_stream_info: {{
    tag_index: "LOOPBACK:0",
    back_edge: true
  }}
  node_options: {{
    [type.googleapis.com / mediapipe.LLMCalculatorOptions]: {{
{options}
    }}
  }}
  input_stream_handler {{
    input_stream_handler: "SyncSetInputStreamHandler",
    options {{
      [mediapipe.SyncSetInputStreamHandlerOptions.ext] {{
        sync_set {{
          tag_index: "LOOPBACK:0"
        }}
      }}
    }}
  }}
}}
"""


@attrs.frozen
class _Request:
    """The checked options of a package."""

    source: Artifact
    name: str
    version: int
    device: str
    properties: Mapping[str, Any]
    image: str
    is_language_model: bool

    @property
    def folder(self) -> str:
        return f"models/{self.name}"


class Ovms:
    """Packages an IR for OpenVINO Model Server; see `edgekit.pipeline.packaging.Packager`."""

    name = "ovms"

    def package(
        self,
        source: Artifact,
        to: Path,
        *,
        name: str | None = None,
        version: int = 1,
        device: str = "CPU",
        properties: Mapping[str, Any] | None = None,
        image: str = IMAGE,
    ) -> Package:
        """Write the directory.

        Args:
            source: an artifact in the format ``openvino``.
            to: the directory to write.
            name: the name under which the model is served; None takes the source's file name.
            version: version number of a graph; language models have none.
            device: ``CPU``, ``GPU``, ``NPU`` or ``AUTO``; not checked here, since another machine serves the model.
            properties: properties of OpenVINO's compilation, such as ``{"KV_CACHE_PRECISION": "u8"}``.
            image: the server's container image.

        Raises:
            UnsupportedModelError: the source has another format, or is a language model without tokenizer models.
            UsageError: the server does not accept the name or version, or the target is not empty.
        """
        chosen = name or re.sub(r"[^A-Za-z0-9._-]", "-", source.path.resolve().stem).lstrip("._-") or "model"
        request = _Request(source, chosen, version, device, properties or {}, image, _is_language_model(source))
        _check(request)
        files = _write(request, to)
        return Package(to, files, run_command(request.image, device), (NOT_RUN,))


def run_command(image: str, device: str) -> str:
    """Return the shell command that starts the server on the current directory."""
    render = "--device /dev/dri --group-add video " if device.startswith("GPU") else ""
    return (
        f'docker run --rm {render}-p {PORT}:{PORT} -v "$PWD":/workspace:ro {image} '
        f"--config_path /workspace/config.json --rest_port {PORT}"
    )


def _is_language_model(source: Artifact) -> bool:
    return source.format == "openvino" and any(file.name == "config.json" for file in source.files)


def _check(request: _Request) -> None:
    source = request.source
    if source.format != "openvino":
        raise UnsupportedModelError(
            f"{source.path}: OpenVINO Model Server serves IR, this is {source.format}; first write one: "
            f"edgekit quantize {source.path} INT8_ASYM --to DIR --format openvino"
        )
    if not _NAME.fullmatch(request.name):
        raise UsageError(f"name {request.name!r}; choose letters, digits, dots, dashes and underscores, at most 100")
    if type(request.version) is not int or request.version < 1:
        raise UsageError(f"version {request.version!r}; choose 1 or more")
    lacking = [name for name in NEEDED if not (source.path / name).is_file()] if request.is_language_model else []
    if lacking:
        raise UnsupportedModelError(
            f"{source.path}: the server cuts texts with {lacking[0]}, which is not there; pip install "
            "'edgekit-openvino[genai]' and write the directory again"
        )


def _write(request: _Request, to: Path) -> tuple[str, ...]:
    contents = {
        "config.json": _config(request),
        "Dockerfile": _dockerfile(request),
        "README.md": _readme(request),
    }
    if request.is_language_model:
        contents[f"{request.folder}/graph.pbtxt"] = graph_of(request)
    return write_files(to, Ovms.name, contents, _copies(request))


def _copies(request: _Request) -> dict[str, Path]:
    """Return the files to copy: name in the package -> file of the source."""
    files = request.source.files
    if request.is_language_model:
        return {f"{request.folder}/{file.name}": file for file in files}
    graph = (file for file in files if file.suffix in (".xml", ".bin"))
    return {f"{request.folder}/{request.version}/model{file.suffix}": file for file in graph}


def _config(request: _Request) -> str:
    if request.is_language_model:
        served: dict[str, Any] = {
            "model_config_list": [],
            "mediapipe_config_list": [{"name": request.name, "base_path": request.folder}],
        }
    else:
        config: dict[str, Any] = {"name": request.name, "base_path": request.folder, "target_device": request.device}
        plugin = {"plugin_config": dict(request.properties)} if request.properties else {}
        served = {"model_config_list": [{"config": {**config, **plugin}}]}
    return json.dumps(served, indent=2) + "\n"


def graph_of(request: _Request) -> str:
    """Return the MediaPipe graph of a language model in protobuf's text format."""
    xml = next(file for file in request.source.files if file.name == "openvino_model.xml")
    fused = any(layer.kind == "ScaledDotProductAttention" for layer in ir.read(xml).layers.values())
    options = [
        'models_path: "./"',
        f"device: {_quoted(request.device)}",
        f"pipeline_type: {'LM_CB' if fused else 'LM'}",
    ]
    if request.properties:
        options.append(f"plugin_config: {_quoted(json.dumps(dict(request.properties)))}")
    return _GRAPH.format(options=",\n".join(f"      {option}" for option in options))


def _quoted(text: str) -> str:
    """Return a string literal in protobuf's text format."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _dockerfile(request: _Request) -> str:
    return (
        f"# {NOT_RUN}.\n"
        f"FROM {request.image}\n"
        "COPY config.json /workspace/config.json\n"
        "COPY models /workspace/models\n"
        f"EXPOSE {PORT}\n"
        f'CMD ["--config_path", "/workspace/config.json", "--rest_port", "{PORT}"]\n'
    )


def _readme(request: _Request) -> str:
    return (
        f"# {request.name}, for OpenVINO Model Server\n\n({NOT_RUN}.)\n\nStart it from this directory:\n\n"
        f"```sh\n{run_command(request.image, request.device)}\n```\n\nOr build an image with the model inside:\n\n"
        f"```sh\ndocker build -t {request.name.lower()} . && docker run --rm -p {PORT}:{PORT} {request.name.lower()}\n"
        f"```\n\nAsk it:\n\n```sh\n{_example(request)}\n```\n"
    )


def _example(request: _Request) -> str:
    where = f"http://localhost:{PORT}"
    if not request.is_language_model:
        return (
            f"curl {where}/v2/models/{request.name}  # its inputs; POST them to {where}/v2/models/{request.name}/infer"
        )
    message = {"model": request.name, "max_tokens": 40, "messages": [{"role": "user", "content": "Tell me a story."}]}
    return f"curl {where}/v3/chat/completions -H 'Content-Type: application/json' -d '{json.dumps(message)}'"


__all__ = ["IMAGE", "NOT_RUN", "SCHEMA", "Ovms", "graph_of", "run_command"]
