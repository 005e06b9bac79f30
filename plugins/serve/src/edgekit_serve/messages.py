"""Anthropic's Messages API, for text and tools.

Source: https://docs.anthropic.com/en/api/messages and https://docs.anthropic.com/en/docs/build-with-claude/streaming
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import attrs

from edgekit_serve.blocks import Block, Blocks, arguments_of, blocks_of
from edgekit_serve.fields import Fields
from edgekit_serve.generate import Answer, Piece
from edgekit_serve.replies import Event, Shape
from edgekit_serve.requests import AnswerOptions, ChatRequest, content_of, messages_of, model
from edgekit_serve.settings import Settings
from edgekit_serve.wire import ApiError, Json, refused

_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


def request_of(given: Json, settings: Settings) -> ChatRequest:
    """Return the request of a parsed body.

    Raises:
        ApiError: 400 or 404; a field is invalid or unsupported.
    """
    fields = Fields(given, settings.lenient)
    model(fields, settings)
    messages = _messages(fields.take("messages"), fields.take("system"))
    reply = _tools(fields.take("tools"), fields.object("tool_choice"))
    fields.rename("stop_sequences", "stop")
    thinking = fields.object("thinking")
    if thinking is not None:
        reply["template_variables"] = {"enable_thinking": thinking.get("type") in ("enabled", "adaptive")}
    fields.ignore(["context_management", "output_config", "betas", "container"])
    requested = AnswerOptions.of(fields, settings, None)
    if messages[-1]["role"] == "assistant":
        reply["continue_final"] = True
    return ChatRequest(messages, requested, reply)


def _messages(given: Any, system: Any) -> list[Json]:
    """Return the messages of a conversation in the form of OpenAI's chat API."""
    if not isinstance(given, list) or not given:
        raise refused("messages must be a list of at least one message", "messages")
    converted = [] if system is None else [{"role": "system", "content": content_of(system, "system")}]
    for number, message in enumerate(given):
        converted += _message(message, f"messages[{number}]")
    return messages_of(converted, "messages")


def _message(message: Any, where: str) -> list[Json]:
    if not isinstance(message, dict) or message.get("role") not in ("user", "assistant"):
        raise refused(f"{where} must be an object with a role, user or assistant, and a content", where)
    content, role = message.get("content"), message["role"]
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if not isinstance(content, list) or not content:
        raise refused(f"{where}.content must be a text, or a list of blocks", f"{where}.content")
    blocks = [_block(block, f"{where}.content[{number}]") for number, block in enumerate(content)]
    results = [block for block in blocks if block["role"] == "tool"]
    text = "".join(block["content"] for block in blocks if block["role"] == "text")
    if role == "user":
        return [*results, {"role": "user", "content": text}] if text or not results else results
    calls = [block["call"] for block in blocks if block["role"] == "call"]
    thought = "".join(block["content"] for block in blocks if block["role"] == "thought")
    return [{"role": role, "content": text, "tool_calls": calls or None, "reasoning_content": thought or None}]


def _block(block: Any, where: str) -> Json:
    match block:
        case {"type": "text", "text": str(text)}:
            return {"role": "text", "content": text}
        case {"type": "thinking", "thinking": str(text)}:
            return {"role": "thought", "content": text}
        case {"type": "tool_use", "id": str(number), "name": str(name), "input": dict(given)}:
            function = {"name": name, "arguments": json.dumps(given)}
            return {"role": "call", "call": {"id": number, "type": "function", "function": function}}
        case {"type": "tool_result", "tool_use_id": str(number), **rest}:
            content = rest.get("content") or ""
            text = content if content == "" else content_of(content, f"{where}.content")
            return {"role": "tool", "tool_call_id": number, "content": text}
    kinds = "text, thinking, tool_use and tool_result"
    raise ApiError(400, f"{where}: only blocks of type {kinds} are supported", "unsupported_value", param=where)


def _tools(tools: Any, choice: Json | None) -> Json:
    """Return the tools and the choice among them as keyword arguments of `reply`."""
    if not tools:
        if choice and choice.get("type") in ("any", "tool"):
            raise refused("tool_choice demands a call, and there are no tools", "tool_choice")
        return {}
    if not isinstance(tools, list):
        raise refused("tools must be a list", "tools")
    converted: Json = {"tools": [_tool(tool, f"tools[{number}]") for number, tool in enumerate(tools)]}
    match choice or {"type": "auto"}:
        case {"type": "auto"}:
            pass
        case {"type": "none"}:
            return {}
        case {"type": "any"}:
            converted["tool_choice"] = "required"
        case {"type": "tool", "name": str(name)}:
            converted["tool_choice"] = {"type": "function", "function": {"name": name}}
        case _:
            raise refused("tool_choice.type must be auto, any, none, or tool with a name", "tool_choice")
    if choice and choice.get("disable_parallel_tool_use"):
        converted["parallel_tool_calls"] = False
    return converted


def _tool(tool: Any, where: str) -> Json:
    match tool:
        case {"name": str(name), "input_schema": dict(schema), **rest} if rest.get("type") in (None, "custom"):
            described = {"description": rest["description"]} if rest.get("description") else {}
            return {"type": "function", "function": {"name": name, **described, "parameters": schema}}
    raise refused(f"{where} must be an object with name, description and input_schema, an object", where)


@attrs.define
class Message(Shape):
    """The form of answers to ``/v1/messages``."""

    blocks: Blocks = attrs.field(factory=Blocks, init=False)

    prefix = "msg_"
    named = True

    def whole(self, answer: Answer) -> Json:
        """Return the whole message."""
        (text,) = answer.texts
        content = [_finished(block) for block in blocks_of(text)]
        return self._head(answer, content, _REASONS[text.reason])

    def first(self, answer: Answer) -> Iterator[Event]:
        """Yield the event with the empty message."""
        yield {"type": "message_start", "message": self._head(answer, [], None)}

    def piece(self, piece: Piece, answer: Answer) -> Iterator[Event]:
        """Yield the events of a piece: blocks that start, grow or stop."""
        for step, block, text in self.blocks.add(piece):
            if step == "begin":
                yield {"type": "content_block_start", "index": block.index, "content_block": _begun(block)}
            elif step == "more":
                yield {"type": "content_block_delta", "index": block.index, "delta": _delta(block, text)}
            else:
                yield {"type": "content_block_stop", "index": block.index}

    def last(self, answer: Answer) -> Iterator[Event]:
        """Yield the events of the end, with the stop reason and the token counts."""
        if self.blocks.blocks:
            yield {"type": "content_block_stop", "index": self.blocks.blocks[-1].index}
        ended = {"stop_reason": _REASONS[answer.texts[0].reason], "stop_sequence": None}
        yield {"type": "message_delta", "delta": ended, "usage": _usage(answer)}
        yield {"type": "message_stop"}

    def failed(self, error: ApiError) -> Event:
        """Return the event for an error after the first piece."""
        return error.anthropic_body()

    def _head(self, answer: Answer, content: list[Json], reason: str | None) -> Json:
        head = {"id": self.identifier, "type": "message", "role": "assistant", "model": self.model, "content": content}
        return {**head, "stop_reason": reason, "stop_sequence": None, "usage": _usage(answer)}


def _usage(answer: Answer) -> dict[str, int]:
    return {"input_tokens": answer.prompt_tokens, "output_tokens": answer.completion_tokens}


def _begun(block: Block) -> Json:
    if block.kind == "call":
        return {"type": "tool_use", "id": block.id, "name": block.name, "input": {}}
    return (
        {"type": "text", "text": ""} if block.kind == "text" else {"type": "thinking", "thinking": "", "signature": ""}
    )


def _finished(block: Block) -> Json:
    if block.kind == "call":
        return {**_begun(block), "input": arguments_of(block)}
    return {**_begun(block), "text" if block.kind == "text" else "thinking": block.text}


def _delta(block: Block, text: str) -> Json:
    if block.kind == "call":
        return {"type": "input_json_delta", "partial_json": text}
    if block.kind == "text":
        return {"type": "text_delta", "text": text}
    return {"type": "thinking_delta", "thinking": text}


__all__ = ["Message", "request_of"]
