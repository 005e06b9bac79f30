"""How families of models write calls of tools and their reasoning: data, one entry a family, with its source.

A family is told by its chat template, which names the marks. An entry serves both to parse what a model writes and to
make the grammar that holds it to a call (`edgekit.runtime._calls`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import attrs

#: How the calls between two marks are written:
#:     object    {"name": NAME, "arguments": {…}}, each between marks of its own
#:     list      [{"name": NAME, "arguments": {…}}, …]
#:     named     NAME, a mark, {…}
#:     keywords  call:NAME{key:value, …}, texts between marks that stand for quotes
#:     python    [NAME(key=value, …), …]
#:     harmony   messages with a header each, of which one with a recipient is a call
Body = Literal["object", "list", "named", "keywords", "python", "harmony"]


@attrs.frozen
class Dialect:
    """How a family writes calls of tools.

    Attributes:
        name: of the family.
        source: where the format is specified.
        told_by: texts of which one in the chat template tells the family.
        body: how a call is written.
        begin: before calls; empty where a call is a whole answer.
        end: after calls; empty where they go on to the answer's end.
        arguments: the key of the arguments.
        inner: between a name and its arguments (``named``), or around texts (``keywords``).
        padding: around the body, between the marks.
        marks: tokens of the family that are shown as text to the parser, though they are special.
    """

    name: str
    source: str
    told_by: tuple[str, ...]
    body: Body
    begin: str
    end: str
    arguments: str = "arguments"
    inner: str = ""
    padding: str = ""
    marks: tuple[str, ...] = ()

    @property
    def shown(self) -> tuple[str, ...]:
        """Every mark that a parser has to see."""
        return tuple(mark for mark in (self.begin, self.end, self.inner, *self.marks) if mark)


@attrs.frozen
class Thought:
    """How a family sets its reasoning apart.

    Attributes:
        source: where that is specified.
        begin, end: the marks before and after it; a prompt may end with the first.
    """

    source: str
    begin: str
    end: str


HERMES = Dialect(
    "hermes",
    "https://github.com/NousResearch/Hermes-Function-Calling; "
    "https://qwen.readthedocs.io/en/latest/framework/function_call.html",
    ("<tool_call>",),
    "object", "<tool_call>", "</tool_call>", padding="\n",
)  # fmt: skip
#: The families; the first whose text is in a chat template is the model's.
DIALECTS = (
    Dialect(
        "gpt-oss",
        "https://cookbook.openai.com/articles/openai-harmony (function calls)",
        ("<|channel|>",),
        "harmony", "<|channel|>", "<|call|>",
        marks=("<|start|>", "<|message|>", "<|end|>", "<|constrain|>", "<|return|>"),
    ),
    Dialect(
        "mistral",
        "https://docs.mistral.ai/cookbooks/concept-deep-dive-tokenization-tool_calling; "
        "mistral-common: tokens/tokenizers/instruct.py (v3 lists, v11 names)",
        ("[TOOL_CALLS]",),
        "named", "[TOOL_CALLS]", "", inner="[ARGS]", marks=("[CALL_ID]",),
    ),
    Dialect(
        "gemma",
        "https://ai.google.dev/gemma/docs/core/prompt-formatting-gemma4; its chat template (format_argument)",
        ("<|tool_call>",),
        "keywords", "<|tool_call>", "<tool_call|>", inner='<|"|>',
    ),
    Dialect(
        "functiongemma",
        "https://ai.google.dev/gemma/docs/functiongemma/formatting-and-best-practices",
        ("<start_function_call>",),
        "keywords", "<start_function_call>", "<end_function_call>", inner="<escape>",
    ),
    Dialect(
        "lfm2",
        "https://docs.liquid.ai/lfm/key-concepts/tool-use; the chat template of LiquidAI/LFM2.5-8B-A1B",
        ("<|tool_call_start|>", "<|tool_list_start|>"),
        "python", "<|tool_call_start|>", "<|tool_call_end|>",
    ),
    Dialect(
        "granite",
        "https://www.ibm.com/granite/docs/models/granite (tool calling, Granite 3); 4 writes calls as hermes",
        ("<|tool_call|>",),
        "list", "<|tool_call|>", "",
    ),
    HERMES,
    Dialect(
        "llama",
        "https://www.llama.com/docs/model-cards-and-prompt-formats/llama3_1 (JSON based tool calling)",
        ('"parameters": dictionary of argument name and its value', "<|python_tag|>", "Environment: ipython"),
        "object", "", "", arguments="parameters", marks=("<|python_tag|>",),
    ),
)  # fmt: skip
#: The first whose end mark is in a chat template is the model's.
THOUGHTS = (
    Thought("https://docs.mistral.ai/capabilities/reasoning (Magistral)", "[THINK]", "[/THINK]"),
    Thought("https://ai.google.dev/gemma/docs/core/prompt-formatting-gemma4", "<|channel>thought\n", "<channel|>"),
    Thought("https://qwen.readthedocs.io/en/latest/getting_started/quickstart.html (thinking)", "<think>", "</think>"),
)
#: What a model is told whose template has no tools; the calls are then written as `HERMES` writes them.
INSTRUCTIONS = (
    "You may call one or more functions. Their signatures, as JSON:\n<tools>\n{tools}\n</tools>\n\n"
    "For each call write its name and arguments as JSON within tags:\n"
    '<tool_call>\n{{"name": <name>, "arguments": <arguments>}}\n</tool_call>'
)


def dialect_of(template: str) -> Dialect:
    """Return the dialect of a chat template; `HERMES` where it names none."""
    return next((each for each in DIALECTS if any(text in template for text in each.told_by)), HERMES)


def thought_of(template: str) -> Thought | None:
    """Return how a chat template's model sets its reasoning apart; None if it does not."""
    return next((each for each in THOUGHTS if each.end.strip() in template), None)


def has_tools(template: str) -> bool:
    """Whether a chat template shows tools to the model."""
    return "tools" in template


def marks_of(template: str, *, tools: bool = True) -> tuple[str, ...]:
    """Return the marks of a chat template's model that a parser has to see, those of calls where tools are offered."""
    thought, dialect = thought_of(template), dialect_of(template)
    reasoning = () if thought is None else (thought.begin.strip("\n").removesuffix("thought"), thought.end)
    return (*(dialect.shown if tools or dialect.body == "harmony" else ()), *reasoning)


def variables_of(effort: str | None) -> Mapping[str, object]:
    """Return the template variables for a reasoning effort: gpt-oss reads one, Qwen and others another."""
    if effort is None:
        return {}
    return {"reasoning_effort": "low" if effort == "minimal" else effort, "enable_thinking": effort != "none"}


__all__ = [
    "DIALECTS",
    "HERMES",
    "INSTRUCTIONS",
    "THOUGHTS",
    "Body",
    "Dialect",
    "Thought",
    "dialect_of",
    "has_tools",
    "marks_of",
    "thought_of",
    "variables_of",
]
