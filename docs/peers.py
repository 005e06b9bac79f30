"""What other servers document of the features in `docs/features.py`: the columns of the comparison, with sources."""

from __future__ import annotations

_LLAMA = "https://github.com/ggml-org/llama.cpp/blob/master"
_PYTHON = "https://github.com/abetlen/llama-cpp-python/blob/v0.3.36/llama_cpp"
_VLLM = "https://docs.vllm.ai/en/stable"
_STUDIO = "https://lmstudio.ai/docs"
_MLX = "https://github.com/ml-explore/mlx-lm/blob/main/mlx_lm"
#: Short names of sources, for the cells below.
SOURCES = {
    "ls": f"{_LLAMA}/tools/server/README.md",
    "ls-common": f"{_LLAMA}/tools/server/server-common.cpp",
    "ls-calls": f"{_LLAMA}/docs/function-calling.md",
    "lcp-routes": f"{_PYTHON}/server/app.py",
    "lcp-types": f"{_PYTHON}/server/types.py",
    "lcp-llama": f"{_PYTHON}/llama.py",
    "lcp-docs": "https://llama-cpp-python.readthedocs.io/en/latest/server/",
    "vllm": f"{_VLLM}/serving/openai_compatible_server/",
    "vllm-routes": f"{_VLLM}/serving/online_serving/",
    "vllm-fields": "https://github.com/vllm-project/vllm/blob/v0.10.1/vllm/entrypoints/openai/protocol.py",
    "vllm-home": f"{_VLLM}/",
    "vllm-prefix": f"{_VLLM}/features/automatic_prefix_caching/",
    "vllm-reasoning": f"{_VLLM}/features/reasoning_outputs/",
    "vllm-lora": f"{_VLLM}/features/lora/",
    "vllm-traces": f"{_VLLM}/examples/online_serving/opentelemetry/",
    "lms": f"{_STUDIO}/developer/openai-compat",
    "lms-chat": f"{_STUDIO}/developer/openai-compat/chat-completions",
    "lms-schema": f"{_STUDIO}/developer/openai-compat/structured-output",
    "lms-tools": f"{_STUDIO}/developer/openai-compat/tools",
    "lms-changes": f"{_STUDIO}/developer/api-changelog",
    "lms-messages": f"{_STUDIO}/developer/anthropic-compat",
    "lms-parallel": f"{_STUDIO}/app/advanced/parallel-requests",
    "lms-models": f"{_STUDIO}/developer/core/ttl-and-auto-evict",
    "mlx": f"{_MLX}/SERVER.md",
    "mlx-code": f"{_MLX}/server.py",
}
PEERS = ("llama-server", "llama-cpp-python", "vLLM", "LM Studio", "mlx-lm")
#: Feature -> a cell for each of PEERS: "what: source", or "" where no source says.
CELLS: dict[str, tuple[str, str, str, str, str]] = {
    "Chats, completions, streams": ("yes: ls", "yes: lcp-routes", "yes: vllm-routes", "yes: lms", "yes: mlx"),
    "Lists of prompts, token ids, several choices": (
        "yes: ls", "no: lcp-routes", "yes: vllm-fields", "", "no: mlx-code"),
    "Penalties, bias": ("yes: ls", "yes: lcp-types", "yes: vllm-fields", "yes: lms-chat", "yes: mlx"),
    "`min_p` beside `top_k` and `top_p`": ("yes: ls", "yes: lcp-types", "yes: vllm-fields", "", "yes: mlx"),
    "Stop texts and tokens": (
        "texts: ls", "texts: lcp-types", "yes: vllm-fields", "texts: lms-chat", "texts: mlx"),
    "Several texts in one batch, a new one at the next token": (
        "yes: ls", "no: lcp-routes", "yes: vllm-home", "yes, llama.cpp: lms-parallel", "yes, without seed: mlx-code"),
    "The beginning of a prompt computed once": (
        "yes: ls", "of the last prompt: lcp-llama", "yes: vllm-prefix", "", "yes: mlx-code"),
    "Log probabilities": ("yes: ls", "yes: lcp-types", "yes: vllm-fields", "", "yes: mlx"),
    "The prompt's own scores": ("no: ls-common", "yes: lcp-types", "yes: vllm-fields", "", "no: mlx-code"),
    "JSON schemas": ("yes: ls", "yes: lcp-types", "yes: vllm-fields", "yes: lms-schema", "no: mlx-code"),
    "Regular expressions and grammars": ("GBNF: ls", "GBNF: lcp-types", "yes: vllm-fields", "", "no: mlx-code"),
    "Calls of tools, as each family writes them": (
        "yes: ls-calls", "by chat format: lcp-docs", "by parser: vllm", "yes: lms-tools", "yes: mlx-code"),
    "Demanded calls that match their schema": (
        "", "", "yes: vllm-fields", "llama.cpp only: lms-changes", "no: mlx-code"),
    "Reasoning apart from the answer": (
        "yes: ls", "", "yes: vllm-reasoning", "yes: lms-changes", "yes: mlx-code"),
    "A begun answer": ("yes: ls", "", "yes: vllm-fields", "", "no: mlx-code"),
    "OpenAI's Responses": ("yes: ls", "no: lcp-routes", "yes: vllm-routes", "yes: lms", "no: mlx-code"),
    "Anthropic's Messages": ("yes: ls", "no: lcp-routes", "yes: vllm-routes", "yes: lms-messages", "no: mlx-code"),
    "Embeddings of texts and token ids": (
        "yes: ls", "texts: lcp-types", "yes: vllm-routes", "yes: lms", "no: mlx-code"),
    "Reranking": ("yes: ls", "no: lcp-routes", "yes: vllm-routes", "no: lms", "no: mlx-code"),
    "Tokenization": ("yes: ls", "yes: lcp-routes", "yes: vllm-routes", "no: lms", "no: mlx-code"),
    "LoRA adapters by request": ("yes: ls", "no: lcp-types", "yes: vllm-lora", "", "yes: mlx"),
    "Several models, loaded when asked for": (
        "yes: ls", "one at a time: lcp-docs", "", "yes: lms-models", "one at a time: mlx"),
    "OpenTelemetry traces without content": ("", "", "yes: vllm-traces", "", ""),
    "Keys as either API sends them": ("yes: ls", "Bearer: lcp-routes", "", "yes: lms-messages", "none: mlx-code"),
    "Metrics by model": ("yes: ls", "no: lcp-routes", "", "", "no: mlx-code"),
}  # fmt: skip


def comparison(features: list[str]) -> str:
    """The table; raises where a row is of no feature, or a source is not there."""
    unknown = CELLS.keys() - set(features)
    if unknown:
        raise LookupError(f"{sorted(unknown)} is no feature; change docs/peers.py with docs/features.py")
    rows = [
        f"| {feature} | yes | {' | '.join(map(_cell, CELLS[feature]))} |" for feature in features if feature in CELLS
    ]
    head = f"| feature | edgekit | {' | '.join(PEERS)} |"
    return "\n".join([head, "|---" * (len(PEERS) + 2) + "|", *rows])


def _cell(text: str) -> str:
    if not text:
        return "?"
    what, _, source = text.rpartition(": ")
    return f"[{what}]({SOURCES[source]})"


__all__ = ["CELLS", "PEERS", "SOURCES", "comparison"]
