"""The directory of OpenVINO Model Server, against the facts of its schema; the server itself is not run."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import edgekit
from edgekit.cli import cli
from edgekit.errors import MissingPluginError, UnsupportedModelError, UsageError
from edgekit.pipeline.packaging import package
from edgekit_openvino.ovms import NOT_RUN, SCHEMA

WEIGHTS = np.arange(6, dtype=np.float32)
LAYERS = """<?xml version="1.0"?><net name="small" version="11"><layers>
<layer id="0" name="w" type="Const" version="opset1"><data element_type="f32" shape="6" offset="0" size="24"/></layer>
<layer id="1" name="a" type="{attention}" version="opset13"/></layers><edges/></net>"""
#: The options of the calculator that a graph may set: ``src/llm/llm_calculator.proto``.
OPTIONS = {
    "models_path",
    "device",
    "pipeline_type",
    "plugin_config",
    "cache_size",
    "max_num_seqs",
    "enable_prefix_caching",
}


def conforms(value, schema):
    """Whether a JSON value is what the schema allows: the words of JSON Schema that `SCHEMA` uses."""
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}
    wanted = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if not any(type(value) is kinds[kind] for kind in wanted):
        return False
    if isinstance(value, list):
        return all(conforms(item, schema["items"]) for item in value)
    if isinstance(value, dict):
        known = schema.get("properties", {})
        strange = schema.get("additionalProperties") is False and value.keys() - known.keys()
        lacking = set(schema.get("required", ())) - value.keys()
        return not strange and not lacking and all(conforms(v, known[k]) for k, v in value.items() if k in known)
    return not isinstance(value, int) or value >= schema.get("minimum", value)


def graph(folder):
    folder.mkdir()
    (folder / "openvino_model.xml").write_text(LAYERS.format(attention="Result"))
    (folder / "openvino_model.bin").write_bytes(WEIGHTS.tobytes())
    return edgekit.open(folder)


def language_model(folder, attention="ScaledDotProductAttention", tokenizer=True):
    folder.mkdir()
    (folder / "openvino_model.xml").write_text(LAYERS.format(attention=attention))
    (folder / "openvino_model.bin").write_bytes(WEIGHTS.tobytes())
    (folder / "config.json").write_text('{"model_type": "llama"}')
    for name in ("openvino_tokenizer", "openvino_detokenizer") if tokenizer else ():
        (folder / f"{name}.xml").write_text("<net/>")
        (folder / f"{name}.bin").write_bytes(b"")
    return edgekit.open(folder)


def test_a_graph(tmp_path):
    written = package(graph(tmp_path / "resnet"), "ovms", to=tmp_path / "served", options={"version": 3})
    assert written.files == (
        "Dockerfile",
        "README.md",
        "config.json",
        "edgekit.manifest.json",
        "models/resnet/3/model.bin",
        "models/resnet/3/model.xml",
    )
    assert (written.path / "models/resnet/3/model.bin").read_bytes() == WEIGHTS.tobytes()
    config = json.loads((written.path / "config.json").read_text())
    assert conforms(config, SCHEMA)
    assert config == {
        "model_config_list": [{"config": {"name": "resnet", "base_path": "models/resnet", "target_device": "CPU"}}]
    }
    assert written.notes == (NOT_RUN,)
    assert written.command == (
        'docker run --rm -p 8000:8000 -v "$PWD":/workspace:ro openvino/model_server:latest '
        "--config_path /workspace/config.json --rest_port 8000"
    )


def test_every_path_in_the_configuration_is_there(tmp_path):
    written = package(language_model(tmp_path / "story"), "ovms", to=tmp_path / "served")
    config = json.loads((written.path / "config.json").read_text())
    assert conforms(config, SCHEMA)
    (served,) = config["mediapipe_config_list"]
    assert (written.path / served["base_path"] / "graph.pbtxt").is_file()
    names = {path.name for path in (written.path / served["base_path"]).iterdir()}
    assert names >= {"openvino_model.xml", "openvino_model.bin", "openvino_tokenizer.xml", "openvino_detokenizer.xml"}


@pytest.mark.parametrize(("attention", "kind"), [("ScaledDotProductAttention", "LM_CB"), ("Softmax", "LM")])
def test_the_graph_of_a_language_model(attention, kind, tmp_path):
    source = language_model(tmp_path / "story", attention)
    options = {"properties": {"KV_CACHE_PRECISION": "u8"}, "device": "GPU"}
    written = package(source, "ovms", to=tmp_path / "served", options=options)
    text = (written.path / "models/story/graph.pbtxt").read_text()
    inner = text.partition("LLMCalculatorOptions]: {")[2].partition("}\n  }")[0]
    found = dict(line.strip().rstrip(",").split(": ", 1) for line in inner.strip().splitlines() if ": " in line)
    assert found.keys() <= OPTIONS
    assert found["models_path"] == '"./"'
    assert found["pipeline_type"] == kind
    assert found["device"] == '"GPU"'
    assert found["plugin_config"].startswith(r'"{\"KV_CACHE_PRECISION\": \"u8\"}"')
    assert text.count("{") == text.count("}")
    for line in ('calculator: "HttpLLMCalculator"', 'input_side_packet: "LLM_NODE_RESOURCES:llm"', "back_edge: true"):
        assert line in text
    assert "--device /dev/dri" in written.command


def test_what_is_written_says_that_it_was_not_run(tmp_path):
    written = package(graph(tmp_path / "resnet"), "ovms", to=tmp_path / "served")
    readme = (written.path / "README.md").read_text()
    assert NOT_RUN in readme
    assert NOT_RUN in (written.path / "Dockerfile").read_text()
    assert written.command in readme


def test_the_command_line(tmp_path):
    graph(tmp_path / "resnet")
    arguments = [
        "package",
        str(tmp_path / "resnet"),
        "--for",
        "ovms",
        "--to",
        str(tmp_path / "served"),
        "-o",
        "name=r50",
        "--json",
    ]
    said = CliRunner().invoke(cli, arguments)
    assert said.exit_code == 0, said.output
    report = json.loads(said.stdout)
    assert report["files"][-1] == "models/r50/1/model.xml"
    assert report["notes"] == [NOT_RUN]


REFUSED = [
    ({"name": "../up"}, UsageError, "name '../up'; choose letters, digits, dots, dashes and underscores, at most 100"),
    ({"version": 0}, UsageError, "version 0; choose 1 or more"),
    (
        {"port": 1},
        UsageError,
        "the packager 'ovms' has no option 'port'; it has name, version, device, properties, image",
    ),
]


@pytest.mark.parametrize(("options", "kind", "message"), REFUSED, ids=["name", "version", "port"])
def test_options_that_are_refused(options, kind, message, tmp_path):
    with pytest.raises(kind) as caught:
        package(graph(tmp_path / "g"), "ovms", to=tmp_path / "served", options=options)
    assert str(caught.value) == message
    assert not (tmp_path / "served").exists()


def test_models_that_it_does_not_serve(tmp_path):
    with pytest.raises(UnsupportedModelError) as caught:
        package(edgekit.sample.path(), "ovms", to=tmp_path / "served")
    assert re.search(
        r"serves IR, this is \w+; first write one: edgekit quantize .* INT8_ASYM --to DIR", str(caught.value)
    )
    source = language_model(tmp_path / "story", tokenizer=False)
    with pytest.raises(UnsupportedModelError) as caught:
        package(source, "ovms", to=tmp_path / "served")
    assert str(caught.value) == (
        f"{source.path}: the server cuts texts with openvino_tokenizer.xml, which is not there; pip install "
        "'edgekit-openvino[genai]' and write the directory again"
    )
    assert not Path(tmp_path / "served").exists()


def test_a_server_that_nobody_knows(tmp_path):
    with pytest.raises(MissingPluginError, match="no packager 'triton' is installed"):
        package(graph(tmp_path / "g"), "triton", to=tmp_path / "served")


def files_of(folder):
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_a_second_package_replaces_the_first(tmp_path):
    source, served, notes = graph(tmp_path / "g"), tmp_path / "served", []
    package(source, "ovms", to=served, options={"name": "one"}, notes=notes)
    assert not notes
    written = package(source, "ovms", to=served, options={"name": "two"}, notes=notes)
    assert notes == [f"{served} existed and is replaced"]
    assert sorted(files_of(served)) == list(written.files)
    assert not (served / "models" / "one").exists()


@pytest.mark.parametrize("name", ["mine.txt", "models/g/1/mine.txt", "models/g/2/model.bin", "more/mine.txt"])
def test_a_package_with_files_of_somebody_is_not_replaced(name, tmp_path):
    source, served = graph(tmp_path / "g"), tmp_path / "served"
    package(source, "ovms", to=served, options={"name": "g"})
    (served / name).parent.mkdir(exist_ok=True)
    (served / name).write_text("mine")
    before = files_of(served)
    for overwrite in (False, True):
        with pytest.raises(UsageError, match=f"holds {name.split('/')[0]}, which is not part of an artifact"):
            package(source, "ovms", to=served, overwrite=overwrite)
    assert files_of(served) == before


def test_a_target_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"holds mine\.txt, which is not part of an artifact"):
        package(graph(tmp_path / "g"), "ovms", to=tmp_path / "served")
    assert (tmp_path / "served" / "mine.txt").read_text() == "mine"
