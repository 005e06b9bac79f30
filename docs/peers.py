"""What other servers document of the features in `docs/features.py`: the columns of the comparison, with sources."""

from __future__ import annotations

_LLAMA = "https://github.com/ggml-org/llama.cpp/blob/0c1e57098"
_PYTHON = "https://github.com/abetlen/llama-cpp-python/blob/v0.3.36/llama_cpp"
_VLLM = "https://github.com/vllm-project/vllm/blob/v0.33.0"
_STUDIO = "https://github.com/lmstudio-ai/docs/blob/c6854fb"
_MLX = "https://github.com/ml-explore/mlx-lm/blob/v0.32.2/mlx_lm"
#: Short names of sources, for the cells below; all of them were read.
SOURCES = {
    "ls": f"{_LLAMA}/tools/server/README.md",
    "ls-routes": f"{_LLAMA}/tools/server/server.cpp",
    "ls-fields": f"{_LLAMA}/tools/server/server-schema.cpp",
    "ls-common": f"{_LLAMA}/tools/server/server-common.cpp",
    "ls-context": f"{_LLAMA}/tools/server/server-context.cpp",
    "ls-http": f"{_LLAMA}/tools/server/server-http.cpp",
    "ls-grammar": f"{_LLAMA}/common/chat-auto-parser-generator.cpp",
    "ls-calls": f"{_LLAMA}/docs/function-calling.md",
    "lcp-routes": f"{_PYTHON}/server/app.py",
    "lcp-types": f"{_PYTHON}/server/types.py",
    "lcp-models": f"{_PYTHON}/server/model.py",
    "lcp-llama": f"{_PYTHON}/llama.py",
    "lcp-chat": f"{_PYTHON}/llama_chat_format.py",
    "vllm-chat": f"{_VLLM}/vllm/entrypoints/openai/chat_completion/protocol.py",
    "vllm-text": f"{_VLLM}/vllm/entrypoints/openai/completion/protocol.py",
    "vllm-chats": f"{_VLLM}/vllm/entrypoints/openai/chat_completion/api_router.py",
    "vllm-responses": f"{_VLLM}/vllm/entrypoints/openai/responses/api_router.py",
    "vllm-messages": f"{_VLLM}/vllm/entrypoints/anthropic/api_router.py",
    "vllm-structured": f"{_VLLM}/vllm/sampling_params.py",
    "vllm-pooling": f"{_VLLM}/vllm/entrypoints/pooling/base/protocol.py",
    "vllm-rerank": f"{_VLLM}/vllm/entrypoints/pooling/scoring/api_router.py",
    "vllm-tokens": f"{_VLLM}/vllm/entrypoints/serve/tokenize/api_router.py",
    "vllm-keys": f"{_VLLM}/vllm/entrypoints/serve/middleware/authenticate.py",
    "vllm-metrics": f"{_VLLM}/vllm/v1/metrics/loggers.py",
    "vllm-traces": f"{_VLLM}/vllm/tracing/utils.py",
    "vllm-home": f"{_VLLM}/docs/README.md",
    "vllm-calls": f"{_VLLM}/docs/features/tool_calling.md",
    "vllm-reasoning": f"{_VLLM}/docs/features/reasoning_outputs.md",
    "vllm-lora": f"{_VLLM}/docs/features/lora.md",
    "vllm-faq": f"{_VLLM}/docs/usage/faq.md",
    "lms": f"{_STUDIO}/1_developer/3_openai-compat/index.mdx",
    "lms-chat": f"{_STUDIO}/1_developer/3_openai-compat/chat-completions.md",
    "lms-own": f"{_STUDIO}/1_developer/2_rest/chat.md",
    "lms-schema": f"{_STUDIO}/1_developer/3_openai-compat/structured-output.md",
    "lms-calls": f"{_STUDIO}/1_developer/3_openai-compat/tools.mdx",
    "lms-vectors": f"{_STUDIO}/1_developer/3_openai-compat/embeddings.md",
    "lms-changes": f"{_STUDIO}/1_developer/api-changelog.md",
    "lms-messages": f"{_STUDIO}/1_developer/4_anthropic-compat/index.mdx",
    "lms-parallel": f"{_STUDIO}/0_app/5_advanced/parallel-requests.md",
    "lms-models": f"{_STUDIO}/1_developer/0_core/ttl-and-auto-evict.md",
    "mlx": f"{_MLX}/server.py",
}
PEERS = ("llama-server", "llama-cpp-python", "vLLM", "LM Studio", "mlx-lm")
#: Feature -> a cell for each of PEERS: "what: source#line", where "no" cites the list that lacks it; or "" where the
#: documentation does not say, of LM Studio, whose source is closed.
CELLS: dict[str, tuple[str, str, str, str, str]] = {
    "Chats, completions, streams": (
        "yes: ls-routes#260", "yes: lcp-routes#264", "yes: vllm-chats#44", "yes: lms#30", "yes: mlx#1243"),
    "Lists of prompts, token ids, several choices": (
        "yes: ls#491", "no: lcp-routes#308", "yes: vllm-text#53", "", "no: mlx#1778"),
    "Penalties, bias": (
        "yes: ls-fields#130", "yes: lcp-types#136", "yes: vllm-chat#240", "yes: lms-chat#46", "yes: mlx#1318"),
    "`min_p` beside `top_k` and `top_p`": (
        "yes: ls-fields#97", "yes: lcp-types#124", "yes: vllm-chat#288", "in its own API: lms-own#130",
        "yes: mlx#1317"),
    "Stop texts and tokens": (
        "texts: ls-common#1043", "texts: lcp-types#129", "yes: vllm-chat#292", "texts: lms-chat#45", "texts: mlx#1340"),
    "Several texts in one batch, a new one at the next token": (
        "yes: ls#177", "no: lcp-routes#64", "yes: vllm-home#45", "yes, llama.cpp: lms-parallel#6",
        "yes, without seed: mlx#768"),
    "The beginning of a prompt computed once": (
        "yes: ls#587", "of the last prompt: lcp-llama#918", "yes: vllm-home#45", "", "yes: mlx#843"),
    "Log probabilities": (
        "yes: ls-fields#179", "yes: lcp-types#131", "yes: vllm-chat#242", "not listed: lms-chat#37", "yes: mlx#1327"),
    "The prompt's own scores": (
        "no: ls-common#1051", "yes: lcp-llama#1722", "yes: vllm-text#99", "", "no: mlx#1299"),
    "JSON schemas": (
        "yes: ls#1316", "yes: lcp-types#236", "yes: vllm-chat#252", "yes: lms-schema#27", "no: mlx#1299"),
    "Regular expressions and grammars": (
        "GBNF: ls#569", "GBNF: lcp-types#153", "yes: vllm-structured#105", "", "no: mlx#1299"),
    "Calls of tools, as each family writes them": (
        "yes: ls-calls#6", "by chat format: lcp-chat#1466", "by parser: vllm-calls#12", "yes: lms-calls#103",
        "yes: mlx#1593"),
    "Demanded calls that match their schema": (
        "yes: ls-grammar#74", "of a named tool: lcp-chat#712", "yes: vllm-calls#125",
        "llama.cpp only: lms-changes#155", "no: mlx#1299"),
    "Reasoning apart from the answer": (
        "yes: ls#1441", "no: lcp-types#192", "yes: vllm-reasoning#5", "yes: lms-changes#228", "yes: mlx#1511"),
    "A begun answer": (
        "yes: ls-common#1323", "no: lcp-types#192", "yes: vllm-chat#340", "", "no: mlx#1299"),
    "OpenAI's Responses": (
        "yes: ls-routes#264", "no: lcp-routes#264", "yes: vllm-responses#49", "yes: lms#25", "no: mlx#1243"),
    "Anthropic's Messages": (
        "yes: ls-routes#268", "no: lcp-routes#264", "yes: vllm-messages#53", "yes: lms-messages#20", "no: mlx#1243"),
    "Embeddings of texts and token ids": (
        "yes: ls-context#5386", "texts: lcp-types#169", "yes: vllm-pooling#214", "texts: lms-vectors#20",
        "no: mlx#1243"),
    "Reranking": (
        "yes: ls-routes#275", "no: lcp-routes#264", "yes: vllm-rerank#85", "not listed: lms#20", "no: mlx#1243"),
    "Tokenization": (
        "yes: ls-routes#277", "yes: lcp-routes#556", "yes: vllm-tokens#36", "not listed: lms#20", "no: mlx#1243"),
    "LoRA adapters by request": (
        "yes: ls-fields#229", "no: lcp-types#192", "yes: vllm-lora#54", "", "yes: mlx#1306"),
    "Several models, loaded when asked for": (
        "yes: ls#1676", "one at a time: lcp-models#43", "no: vllm-faq#5", "yes: lms-models#17",
        "one at a time: mlx#404"),
    "OpenTelemetry traces without content": (
        "no: ls#1122", "no: lcp-routes#264", "yes: vllm-traces#15", "", "no: mlx#1243"),
    "Keys as either API sends them": (
        "yes: ls-http#271", "Bearer: lcp-routes#249", "Bearer: vllm-keys#31", "yes: lms-messages#39", "none: mlx#1239"),
    "Metrics by model": (
        "yes: ls#1126", "no: lcp-routes#264", "yes: vllm-metrics#499", "", "no: mlx#1787"),
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
    name, _, line = source.partition("#")
    # A page in Markdown shows its lines only as plain text.
    plain = "?plain=1" if SOURCES[name].endswith((".md", ".mdx")) else ""
    return f"[{what}]({SOURCES[name]}{plain}#L{line})"


__all__ = ["CELLS", "PEERS", "SOURCES", "comparison"]
