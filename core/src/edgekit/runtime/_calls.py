"""Calls of tools: what a client offers, and the grammar that holds a model to a call as its family writes it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, cast

import attrs

from edgekit.errors import UsageError
from edgekit.runtime._dialects import Dialect, Thought
from edgekit.runtime._structured import WHITESPACE, Grammar, schema_text

#: Tools that a request may offer, and characters of one's name.
MOST_TOOLS, LONGEST_NAME = 128, 64
_NAME = re.compile(rf"[A-Za-z0-9_.-]{{1,{LONGEST_NAME}}}")
_JSON = {"whitespace_flexible": True, "whitespace_pattern": WHITESPACE}
#: Writes a mark in a grammar: as a token where the vocabulary has it, else as text.
Mark = Callable[[str], str]


@attrs.frozen
class Tools:
    """The tools of a request.

    Attributes:
        given: as OpenAI's API has them, each ``{"type": "function", "function": {…}}``.
        names: those that may be called; fewer where one is demanded.
        demanded: whether the answer has to be a call.
        parallel: whether it may be several.
    """

    given: tuple[dict[str, Any], ...]
    names: tuple[str, ...]
    demanded: bool
    parallel: bool

    @classmethod
    def of(
        cls,
        tools: Sequence[Mapping[str, Any]] | None,
        choice: str | Mapping[str, Any] | None = None,
        parallel: bool = True,
    ) -> Tools | None:
        """Return checked tools; None for none, or where none may be called.

        Args:
            tools: ``{"type": "function", "function": {"name", "description", "parameters"}}`` each.
            choice: ``auto``, ``none``, ``required``, or ``{"type": "function", "function": {"name"}}``.
            parallel: whether an answer may have several calls.

        Raises:
            UsageError: a malformed tool, or a choice that is not among them.
        """
        given = tuple(_tool(tool, f"tools[{number}]") for number, tool in enumerate(tools or ()))
        if len(given) > MOST_TOOLS:
            _refuse(f"tools has {len(given)} entries; at most {MOST_TOOLS} are supported")
        names = tuple(tool["function"]["name"] for tool in given)
        if len({*names}) < len(names):
            _refuse(f"tools has two functions of one name; the names are {', '.join(names)}")
        demanded = _demanded(choice, names)
        if not given or choice == "none":
            return None
        return cls(given, (demanded,) if demanded else names, bool(demanded) or choice == "required", parallel)

    def schema(self, name: str) -> dict[str, Any]:
        """Return the JSON schema of a function's arguments."""
        function = next(tool["function"] for tool in self.given if tool["function"]["name"] == name)
        return dict(function.get("parameters") or {"type": "object", "properties": {}, "additionalProperties": False})


def _demanded(choice: str | Mapping[str, Any] | None, names: Sequence[str]) -> str | None:
    """Return the name of the one function that a choice demands."""
    if choice in (None, "auto", "none"):
        return None
    if not names:
        _refuse("tool_choice demands a call, and there are no tools")
    if choice == "required":
        return None
    match choice:
        case {"type": "function", "function": {"name": str(name)}} if name in names:
            return name
    _refuse(f"tool_choice {choice!r:.80}; choose auto, none, required, or a function of tools")


def _tool(tool: Mapping[str, Any], where: str) -> dict[str, Any]:
    match tool:
        case {"type": "function", "function": {"name": str(name), **rest}} if _NAME.fullmatch(name):
            if not isinstance(rest.get("parameters"), Mapping | None):
                _refuse(f"{where}.function.parameters must be a JSON schema, an object")
            if not isinstance(rest.get("description"), str | None):
                _refuse(f"{where}.function.description must be a text")
            schema_text(cast("Mapping[str, Any]", rest.get("parameters") or {}))
            return {"type": "function", "function": {"name": name, **rest}}
    _refuse(
        f"{where} must be an object with type function and function: its name (letters, digits, '_', '.' and '-', at "
        f"most {LONGEST_NAME}), description and parameters"
    )


def _refuse(message: str) -> NoReturn:
    raise UsageError(message, public=message)


def demanded_calls(tools: Tools, dialect: Dialect, thought: Thought | None, opened: bool, mark: Mark) -> Grammar:
    """Return the grammar of an answer that is a call, or several.

    Args:
        tools: those that may be called.
        dialect: how the family writes a call.
        thought: how it sets reasoning apart, which may come first.
        opened: whether the prompt begins the reasoning already.
        mark: writes a mark in the grammar.
    """
    rules = [f"call{number}: {_call(dialect, tools, name, mark)}" for number, name in enumerate(tools.names)]
    one = "(" + " | ".join(f"call{number}" for number in range(len(tools.names))) + ")"
    return after_thought(_several(dialect, one, tools.parallel, mark), rules, thought, opened, mark)


def after_thought(answer: str, rules: Sequence[str], thought: Thought | None, opened: bool, mark: Mark) -> Grammar:
    """Return a grammar of an answer that reasoning may precede, and must where the prompt has begun it.

    Args:
        answer: the right side of the answer's rule.
        rules: further rules.
        thought: the marks of reasoning; None for none.
        opened: whether the prompt begins it.
        mark: writes a mark in the grammar.
    """
    if thought is None:
        return Grammar("\n".join((f"start: {answer}", *rules)))
    before = "" if opened else mark(thought.begin)
    end = mark(thought.end)
    if end.startswith("<["):
        thinking, lazy = rf"{before} /(.|\n)*/ {end} /\s{{0,2}}/", []
    else:
        last = re.escape(thought.end).replace("/", r"\/")
        thinking, lazy = rf"{before} thinking /\s{{0,2}}/", [rf"thinking[lazy]: /(.|\n)*{last}/"]
    start = "start: thought answer" if opened else "start: thought? answer"
    return Grammar("\n".join((start, f"thought: {thinking}", f"answer: {answer}", *lazy, *rules)))


def _several(dialect: Dialect, one: str, parallel: bool, mark: Mark) -> str:
    """The calls of an answer, between their marks."""
    begin, end = (mark(text) if text else "" for text in (dialect.begin, dialect.end))
    padding = json.dumps(dialect.padding) if dialect.padding else ""
    match dialect.body:
        case "list" | "python":
            more = f'(", " {one})*' if parallel else ""
            return f'{begin} "[" {one} {more} "]" {end}'
        case "harmony":
            return one  # its end mark ends the answer
    call = f"{begin} {padding} {one} {padding} {end}"
    if not parallel or not dialect.begin:
        return call
    return f"{call} ({padding} {call})*"


def _call(dialect: Dialect, tools: Tools, name: str, mark: Mark) -> str:
    """The right side of one call's rule."""
    schema, quoted = tools.schema(name), json.dumps(name)
    match dialect.body:
        case "named":
            return f"{quoted} {mark(dialect.inner)} {_json(schema)}"
        case "harmony":
            recipient = json.dumps(f"commentary to=functions.{name} ")
            constrained = f'{mark("<|constrain|>")} "json" {mark("<|message|>")}'
            return f"{mark(dialect.begin)} {recipient} {constrained} {_json(schema)}"
        case "keywords":
            return f'{json.dumps(f"call:{name}{{")} {_keywords(schema, ":", dialect, mark)} "}}"'
        case "python":
            return f'{json.dumps(f"{name}(")} {_keywords(schema, "=", dialect, mark)} ")"'
    properties = {"name": {"const": name}, dialect.arguments: schema}
    whole = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    for key in ("$defs", "definitions"):  # references count from the root
        if key in schema:
            whole[key] = schema.pop(key)
    return _json(whole)


def _json(schema: Mapping[str, Any]) -> str:
    return f"%json {json.dumps({**schema, 'x-guidance': _JSON})}"


def _keywords(schema: Mapping[str, Any], sign: str, dialect: Dialect, mark: Mark) -> str:
    """Arguments ``key=value, …``: those that are required, then any of the others in order."""
    properties: dict[str, Any] = dict(schema.get("properties") or {})
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    required = [name for name in schema.get("required") or () if name in properties]
    others = [name for name in properties if name not in required]
    comma = '","' if dialect.body == "keywords" else '", "'

    def pair(name: str) -> str:
        return f"{json.dumps(name + sign)} {_value({**shared, **dict(properties[name])}, dialect, mark)}"

    if required:
        before = f" {comma} ".join(map(pair, required))
        return before + "".join(f" ({comma} {pair(name)})?" for name in others)
    chains = [
        pair(name) + "".join(f" ({comma} {pair(later)})?" for later in others[number + 1 :])
        for number, name in enumerate(others)
    ]
    return f"({' | '.join(chains)})?" if chains else '""'


def _value(schema: Mapping[str, Any], dialect: Dialect, mark: Mark) -> str:
    if dialect.body != "keywords" or schema.get("type") != "string":
        return _json(schema)
    quote = mark(dialect.inner)
    texts = [value for value in schema.get("enum") or () if isinstance(value, str)]
    least, most = schema.get("minLength", 0), schema.get("maxLength", "")
    inside = f"({' | '.join(map(json.dumps, texts))})" if texts else rf"/[^<>\n]{{{least},{most}}}/"
    return f"{quote} {inside} {quote}"


__all__ = ["LONGEST_NAME", "MOST_TOOLS", "Mark", "Tools", "after_thought", "demanded_calls"]
