"""OpenAI's Responses API: text, tools and streamed events; nothing is stored.

Source: https://platform.openai.com/docs/api-reference/responses and .../responses-streaming
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs

from edgekit_serve.blocks import Block, Blocks, blocks_of
from edgekit_serve.fields import Fields
from edgekit_serve.generate import Answer, Piece
from edgekit_serve.replies import Event, Shape
from edgekit_serve.requests import AnswerOptions, ChatRequest, content_of, format_of, messages_of, model, reply_of
from edgekit_serve.settings import Settings
from edgekit_serve.wire import ApiError, Json, refused

_TEXTS = ("input_text", "output_text", "text")


@attrs.frozen
class ResponseRequest:
    """A request of ``/v1/responses``.

    Attributes:
        chat: the equivalent chat request.
        shown: the fields that the response repeats.
    """

    chat: ChatRequest
    shown: Json = attrs.field(repr=False)


def request_of(given: Json, settings: Settings) -> ResponseRequest:
    """Return the request of a parsed body.

    Raises:
        ApiError: 400 or 404; a field is invalid or unsupported.
    """
    fields = Fields(given, settings.lenient)
    model(fields, settings)
    instructions = fields.text("instructions")
    messages = _messages(fields.take("input"), instructions)
    for name in ("previous_response_id", "conversation", "prompt", "max_tool_calls", "context_management"):
        fields.only(name)
    fields.only("background", False)
    fields.only("truncation", "disabled")
    fields.only("include", [])
    fields.only("top_logprobs", 0)
    fields.rename("max_output_tokens", "max_tokens")
    shown = {name: given.get(name) for name in ("tools", "tool_choice", "temperature", "top_p", "text", "metadata")}
    held = _text(fields.object("text"))
    reasoning = fields.object("reasoning") or {}
    tools, choice = _tools(fields.take("tools")), _choice(fields.take("tool_choice"))
    parallel = fields.take("parallel_tool_calls")
    asked = {"tools": tools, "tool_choice": choice, "parallel_tool_calls": parallel}
    reply = reply_of(Fields({**asked, "reasoning_effort": reasoning.get("effort")}))
    requested = AnswerOptions.of(fields, settings, None)
    requested.options.update(held)
    shown |= {"instructions": instructions, "max_output_tokens": requested.max_tokens if requested.asked else None}
    return ResponseRequest(ChatRequest(messages, requested, reply), shown)


def _messages(given: Any, instructions: str | None) -> list[Json]:
    converted: list[Json] = [{"role": "system", "content": instructions}] if instructions else []
    if isinstance(given, str) and given:
        return messages_of([*converted, {"role": "user", "content": given}], "input")
    if not isinstance(given, list) or not given:
        raise refused("input must be a text, not empty, or a list of items", "input")
    for number, item in enumerate(given):
        _take(item, f"input[{number}]", converted)
    return messages_of(converted, "input")


def _take(item: Any, where: str, converted: list[Json]) -> None:
    """Convert an input item and append it to the messages; consecutive calls are joined in one message."""
    match item:
        case {"type": "function_call", "call_id": str(number), "name": str(name), "arguments": str(text)}:
            if not converted or converted[-1]["role"] != "assistant":
                converted.append({"role": "assistant", "content": ""})
            function = {"name": name, "arguments": text}
            converted[-1].setdefault("tool_calls", []).append({"id": number, "type": "function", "function": function})
        case {"type": "function_call_output", "call_id": str(number), "output": output}:
            content = output if output == "" else content_of(output, f"{where}.output", _TEXTS)
            converted.append({"role": "tool", "tool_call_id": number, "content": content})
        case {"type": "reasoning"}:
            pass  # reasoning of an earlier turn
        case {"role": str(role), "content": content, **rest} if rest.get("type") in (None, "message"):
            converted.append({"role": role, "content": content_of(content, f"{where}.content", _TEXTS)})
        case _:
            kinds = "message, function_call, function_call_output and reasoning"
            raise ApiError(400, f"{where}: only items of type {kinds} are supported", "unsupported_value", param=where)


def _text(given: Json | None) -> Json:
    """Return the constraint on the text from the field ``text``, as a keyword argument of `stream`."""
    inner = Fields(given or {})
    held = format_of(inner.object("format"), "text.format")
    inner.only("verbosity", "medium")
    inner.done()
    return held


def _tools(tools: Any) -> Any:
    """Return the function tools in the form of the chat API."""
    if not isinstance(tools, list):
        return tools
    return [_tool(tool, f"tools[{number}]") for number, tool in enumerate(tools)]


def _tool(tool: Any, where: str) -> Json:
    match tool:
        case {"type": "function", "name": str(name), **rest}:
            kept = {key: rest[key] for key in ("description", "parameters") if rest.get(key) is not None}
            return {"type": "function", "function": {"name": name, **kept}}
    raise ApiError(400, f"{where}: only tools of type function are supported", "unsupported_value", param=where)


def _choice(choice: Any) -> Any:
    match choice:
        case {"type": "function", "name": str(name)}:
            return {"type": "function", "function": {"name": name}}
    return choice


@attrs.define
class Response(Shape):
    """The form of answers to ``/v1/responses``."""

    asked: ResponseRequest
    blocks: Blocks = attrs.field(factory=Blocks, init=False)
    number: int = attrs.field(default=0, init=False)

    prefix = "resp_"
    named = True

    def whole(self, answer: Answer) -> Json:
        """Return the whole response."""
        items = [self._item(block, "completed") for block in blocks_of(answer.texts[0])]
        return self._head(answer, items, _status(answer))

    def first(self, answer: Answer) -> Iterator[Event]:
        """Yield the events with the empty response."""
        for kind in ("created", "in_progress"):
            yield self._event(f"response.{kind}", response=self._head(answer, [], "in_progress"))

    def piece(self, piece: Piece, answer: Answer) -> Iterator[Event]:
        """Yield the events of a piece: output items that are added, grow or are done."""
        for step, block, text in self.blocks.add(piece):
            if step == "begin":
                yield from self._begun(block)
            elif step == "more":
                kind = {"text": "output_text", "reasoning": "reasoning_text", "call": "function_call_arguments"}
                yield self._event(
                    f"response.{kind[block.kind]}.delta", **self._place(block), **_logs(block), delta=text
                )
            else:
                yield from self._ended(block)

    def last(self, answer: Answer) -> Iterator[Event]:
        """Yield the events of the end, with the whole response."""
        if self.blocks.blocks:
            yield from self._ended(self.blocks.blocks[-1])
        status = _status(answer)
        items = [self._item(block, "completed") for block in self.blocks.blocks]
        yield self._event(f"response.{status}", response=self._head(answer, items, status))

    def failed(self, error: ApiError) -> Event:
        """Return the event for an error after the first piece."""
        return self._event("error", code=error.code, message=error.message, param=error.param)

    def _begun(self, block: Block) -> Iterator[Event]:
        item = {**self._item(block, "in_progress"), **({"content": []} if block.kind == "text" else {})}
        yield self._event("response.output_item.added", output_index=block.index, item=item)
        if block.kind == "text":
            yield self._event("response.content_part.added", **self._place(block), part=_part(""))

    def _ended(self, block: Block) -> Iterator[Event]:
        place = self._place(block)
        if block.kind == "text":
            yield self._event("response.output_text.done", **place, **_logs(block), text=block.text)
            yield self._event("response.content_part.done", **place, part=_part(block.text))
        elif block.kind == "call":
            yield self._event("response.function_call_arguments.done", **place, name=block.name, arguments=block.text)
        else:
            yield self._event("response.reasoning_text.done", **place, text=block.text)
        item = self._item(block, "completed")
        yield self._event("response.output_item.done", output_index=block.index, item=item)

    def _event(self, kind: str, **fields: Any) -> Event:
        self.number += 1
        return {"type": kind, "sequence_number": self.number - 1, **fields}

    def _place(self, block: Block) -> Json:
        inside = {} if block.kind == "call" else {"content_index": 0}
        return {"item_id": self._id(block), "output_index": block.index, **inside}

    def _id(self, block: Block) -> str:
        prefix = {"text": "msg", "reasoning": "rs", "call": "fc"}[block.kind]
        return f"{prefix}_{self.identifier.removeprefix(self.prefix)}{block.index}"

    def _item(self, block: Block, status: str) -> Json:
        head = {"id": self._id(block), "status": status}
        if block.kind == "text":
            return {**head, "type": "message", "role": "assistant", "content": [_part(block.text)]}
        if block.kind == "call":
            call = {"call_id": block.id, "name": block.name, "arguments": block.text}
            return {**head, "type": "function_call", **call}
        content = [{"type": "reasoning_text", "text": block.text}]
        return {**head, "type": "reasoning", "summary": [], "content": content}

    def _head(self, answer: Answer, items: list[Json], status: str) -> Json:
        shown, usage = self.asked.shown, answer.usage
        tokens = {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        }
        return {
            "id": self.identifier,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": shown["instructions"],
            "max_output_tokens": shown["max_output_tokens"],
            "metadata": shown["metadata"] or {},
            "model": self.model,
            "output": items,
            "parallel_tool_calls": self.asked.chat.reply.get("parallel_tool_calls", True),
            "temperature": self.asked.chat.requested.options["temperature"],
            "text": shown["text"] or {"format": {"type": "text"}},
            "tool_choice": shown["tool_choice"] or "auto",
            "tools": shown["tools"] or [],
            "top_p": self.asked.chat.requested.options["top_p"],
            "usage": None if status == "in_progress" else tokens,
        }


def _status(answer: Answer) -> str:
    return "incomplete" if answer.texts[0].reason == "length" else "completed"


def _part(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _logs(block: Block) -> Json:
    return {"logprobs": []} if block.kind == "text" else {}


__all__ = ["Response", "ResponseRequest", "request_of"]
