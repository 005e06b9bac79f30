"""The page of the server's routes and features: routes from the application, features with their tests."""

from __future__ import annotations

import ast
from pathlib import Path

import peers

import edgekit
from edgekit import sample
from edgekit.runtime import NumpyRuntime
from edgekit_serve import fields, requests, settings
from edgekit_serve.routes import Routes

ROOT = Path(__file__).resolve().parent.parent
CORE, SERVE, ORACLES = "tests/core", "tests/plugins/serve", "tests/oracles"
#: Feature -> the parameters or routes by which a client asks for it, and the tests that cover it, as file::test.
FEATURES = {
    "Chats, completions, streams": (
        "`messages`, `prompt`, `stream`", [f"{SERVE}/test_serve_openai.py::test_the_public_client",
                                           f"{ORACLES}/test_clients.py::test_texts_and_vectors"]),
    "Lists of prompts, token ids, several choices": (
        "`prompt`, `n`", [f"{SERVE}/test_serve_features.py::test_lists_of_prompts_and_choices"]),
    "Penalties, bias": (
        "`repetition_penalty`, `presence_penalty`, `frequency_penalty`, `logit_bias`",
        [f"{CORE}/test_sampling.py::test_choices_from_noise_follow_the_penalties",
         f"{ORACLES}/test_runtime_features.py::test_penalties"]),
    "`min_p` beside `top_k` and `top_p`": ("`min_p`", [f"{CORE}/test_sampling.py::test_what_is_drawn_survives"]),
    "Stop texts and tokens": ("`stop`, `stop_token_ids`", [f"{CORE}/test_sampling.py::test_stop_tokens_end_a_text"]),
    "Seeds that repeat a text, alone or among others": (
        "`seed`", [f"{ORACLES}/test_runtime_features.py::test_16_seeds_at_once"]),
    "Several texts in one batch, a new one at the next token": (
        "`--parallel` (llama.cpp)",
        [f"{ORACLES}/test_llamacpp_sequences.py::test_texts_that_wait_share_a_batch",
         f"{ORACLES}/test_llamacpp_sequences.py::test_a_text_joins_while_another_goes_on",
         f"{ORACLES}/test_llamacpp_sequences.py::test_16_seeds_at_once"]),
    "The beginning of a prompt computed once": (
        "always; across requests (llama.cpp)",
        [f"{ORACLES}/test_llamacpp_sequences.py::test_what_another_text_has_is_not_computed_again"]),
    "Log probabilities": (
        "`logprobs`, `top_logprobs`",
        [f"{SERVE}/test_serve_features.py::test_scores_of_chats", f"{ORACLES}/test_runtime_features.py::test_scores"]),
    "The prompt's own scores": ("`echo`, `logprobs`", [f"{SERVE}/test_serve_features.py::test_echo_with_scores"]),
    "JSON schemas": (
        "`response_format`",
        ["tests/contracts/test_structured_texts.py::test_500_texts_under_a_schema",
         f"{ORACLES}/test_structured_llamacpp.py::test_texts_under_a_schema",
         f"{SERVE}/test_serve_openai.py::test_structured_outputs_with_pydantic",
         f"{ORACLES}/test_clients.py::test_structured_outputs"]),
    "Regular expressions and grammars": (
        "`regex`, `grammar`", [f"{CORE}/test_structured.py::test_regular_expressions_and_grammars"]),
    "Schemas that nothing satisfies are refused": (
        "`response_format`", [f"{CORE}/test_structured.py::test_what_nothing_can_follow"]),
    "Calls of tools, as each family writes them": (
        "`tools`", [f"{CORE}/test_reply.py::test_what_each_family_writes",
                    f"{CORE}/test_reply.py::test_what_only_looks_like_a_call_is_text"]),
    "Demanded calls that match their schema": (
        "`tool_choice`, `parallel_tool_calls`",
        [f"{CORE}/test_reply.py::test_demanded_calls_of_each_family",
         f"{ORACLES}/test_structured_llamacpp.py::test_calls_of_tools",
         f"{SERVE}/test_serve_openai.py::test_tools_with_streaming",
         f"{ORACLES}/test_clients.py::test_tools_with_streaming"]),
    "Reasoning apart from the answer": (
        "`reasoning_effort`, `chat_template_kwargs`", [f"{SERVE}/test_serve_features.py::test_reasoning_is_set_apart"]),
    "A begun answer": ("`continue_final_message`", [f"{SERVE}/test_serve_features.py::test_an_answer_that_is_begun"]),
    "OpenAI's Responses": ("`/v1/responses`", [f"{SERVE}/test_serve_openai.py::test_responses",
                                              f"{SERVE}/test_serve_openai.py::test_responses_with_tools",
                                              f"{ORACLES}/test_clients.py::test_responses"]),
    "Anthropic's Messages": ("`/v1/messages`", [f"{SERVE}/test_serve_anthropic.py::test_texts",
                                               f"{SERVE}/test_serve_anthropic.py::test_tools",
                                               f"{ORACLES}/test_clients.py::test_anthropics_client"]),
    "Embeddings of texts and token ids": (
        "`input`, `dimensions`",
        [f"{SERVE}/test_serve_features.py::test_embeddings_of_token_ids_and_fewer_dimensions"]),
    "Reranking": ("`/v1/rerank`", [f"{SERVE}/test_serve_features.py::test_documents_in_order"]),
    "Tokenization": ("`/tokenize`, `/detokenize`", [f"{SERVE}/test_serve_features.py::test_tokens_there_and_back"]),
    "A small chat model: chat, JSON, a tool's round trip": (
        "llama.cpp, numpy, OpenVINO, ONNX Runtime, MLX",
        [f"{ORACLES}/test_smollm2_server.py::test_chat_json_and_tools"]),
    "LoRA adapters by request": (
        "`lora`, `model`; `--lora` (llama.cpp, MLX)",
        [f"{ORACLES}/test_llamacpp_runtime.py::test_adapters_of_single_texts",
         f"{ORACLES}/test_mlx_runtime.py::test_adapters_of_single_texts",
         f"{SERVE}/test_serve_features.py::test_adapters_by_request"]),
    "Several models, loaded when asked for": (
        "`model`, `--memory`",
        [f"{SERVE}/test_serve_models.py::test_a_model_is_loaded_at_its_first_request",
         f"{SERVE}/test_serve_models.py::test_the_least_recently_used_makes_room",
         f"{SERVE}/test_serve_models.py::test_a_model_in_use_stays"]),
    "LangChain's and LlamaIndex' OpenAI classes": (
        "a tool's round trip",
        [f"{ORACLES}/test_openai_classes.py::test_langchain", f"{ORACLES}/test_openai_classes.py::test_llama_index"]),
    "OpenTelemetry traces without content": (
        "`--traces`", [f"{SERVE}/test_serve_traces.py::test_a_span_for_each_request",
                       f"{SERVE}/test_serve_traces.py::test_spans_reach_a_collector"]),
    "Keys as either API sends them": (
        "`Authorization`, `x-api-key`", [f"{SERVE}/test_serve_features.py::test_keys_as_anthropics_clients_send_them"]),
    "A bounded queue": ("`--queue`", [f"{SERVE}/test_serve_app.py::test_the_queue_is_bounded",
                                      f"{SERVE}/test_serve_process.py::test_64_clients"]),
    "Metrics by model": ("`/metrics`", [f"{SERVE}/test_serve_app.py::test_metrics",
                                        f"{SERVE}/test_serve_models.py::test_metrics_by_model"]),
}  # fmt: skip


def page() -> str:
    """The page; raises where a test that it names is not there."""
    return f"""# The server's routes and features

What `edgekit serve` answers ([how to serve a model](../how-to/serve.md)). The routes come from the application; each
feature names the tests that cover it, and this page cannot be generated if one of them is missing.

## Routes

{routes()}

## Features

{features()}

## Beside other servers

As their source says, and of LM Studio, whose source is closed, its documentation: llama.cpp 0c1e57098, which
llama-cpp-python 0.3.36 contains, vLLM 0.33.0, LM Studio's pages of April 2026 and mlx-lm 0.32.2. Each cell links to the
line. A "no" links to the list of routes or fields that lacks it; "not listed": the documentation lists what there is,
and this is not in it; "not documented": the page that would say it does not.

{peers.comparison(FEATURES)}

## Parameters that are accepted where they change nothing

Any value: {_listed(requests.IGNORED)}.

Only with the value that matches what the server does: {_listed(_neutral())}.

With `--lenient`, other parameters and values are ignored instead of refused.

## Limits of a request

{limits()}
"""


def routes() -> str:
    """Methods, paths and what answers them, from the application."""
    made = Routes(NumpyRuntime.open(edgekit.open(sample.path())), settings.Settings(), lambda: None)
    rows = [
        f"| `{'GET' if 'GET' in (route.methods or ()) else 'POST'} {route.path}` | {_first_line(route.endpoint)} |"
        for route in made.table()
    ]
    made.engine.close()
    return "\n".join(["| route | what it does |", "|---|---|", *rows])


def _first_line(function: object) -> str:
    return str(function.__doc__).partition("\n")[0].rstrip(".")


def features() -> str:
    """Each feature, how it is asked for, and the tests that cover it."""
    rows = []
    for feature, (asked, tests) in FEATURES.items():
        named = "<br>".join(f"`{_checked(test).removeprefix('tests/')}`" for test in tests)
        rows.append(f"| {feature} | {asked} | {named} |")
    return "\n".join(["| feature | asked for by | tests |", "|---|---|---|", *rows])


def _checked(test: str) -> str:
    file, _, name = test.partition("::")
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    if not any(isinstance(node, ast.FunctionDef) and node.name == name for node in tree.body):
        raise LookupError(f"{test} is not there; change docs/features.py with the test")
    return test


def _neutral() -> list[str]:
    return [f"{name} {' or '.join(map(fields.shown, values)) or 'null'}" for name, values in requests.NEUTRAL.items()]


def _listed(names: object) -> str:
    return ", ".join(f"`{name}`" for name in names)  # type: ignore[attr-defined]


def limits() -> str:
    """The numbers of a request that are limited."""
    default = settings.Settings()
    rows = {
        "bytes of a body": default.max_body,
        "objects and lists in it": fields.MAX_CONTAINERS,
        "prompts of a completion": requests.MOST_PROMPTS,
        "texts of one prompt (`n`)": requests.MOST_CHOICES,
        "texts of an embedding request": requests.MOST_INPUTS,
        "stop texts, and characters of one": f"{requests.MOST_STOPS}, {requests.LONGEST_STOP}",
        "alternatives of a token (`top_logprobs`)": requests.MOST_SCORES,
    }
    shown = [
        f"| {what} | {most:,} |" if isinstance(most, int) else f"| {what} | {most} |" for what, most in rows.items()
    ]
    return "\n".join(["| what | at most |", "|---|---|", *shown])


__all__ = ["FEATURES", "page"]
