"""Answers of a model to messages: text, reasoning and calls of tools, as they come or as one message."""

from __future__ import annotations

import secrets
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import attrs

from edgekit.runtime._parse import Kind, Part
from edgekit.runtime.generation import Generation, GenerationOptions

_LETTERS = string.ascii_letters + string.digits


class ReplyOptions(GenerationOptions, total=False):
    """Keyword arguments of `reply`: those of `GenerationOptions`, and these.

    Attributes:
        tools: functions that the model may call, ``{"type": "function", "function": {"name", "description",
            "parameters"}}`` each, as in OpenAI's API.
        tool_choice: ``"auto"``, the default; ``"none"``; ``"required"`` for at least one call; or ``{"type":
            "function", "function": {"name": NAME}}`` for a call of that one. A demanded call needs llguidance.
        parallel_tool_calls: whether an answer may have several calls; True by default.
        reasoning_effort: for models whose template reads it: ``"none"``, ``"low"``, ``"medium"``, ``"high"``.
        template_variables: further variables of the chat template, such as ``{"enable_thinking": False}``.
        continue_final: whether the last message, of the assistant, is the beginning of the answer.
    """

    tools: Sequence[Mapping[str, Any]] | None
    tool_choice: str | Mapping[str, Any] | None
    parallel_tool_calls: bool
    reasoning_effort: str | None
    template_variables: Mapping[str, Any] | None
    continue_final: bool


@attrs.define
class ToolCall:
    """A call of a function.

    Attributes:
        name: of the function.
        arguments: JSON; incomplete where the answer was cut off.
        id: by which a message of role tool refers to the call: 9 letters or digits, as Mistral's templates want it.
    """

    name: str
    arguments: str = ""
    id: str = attrs.field(factory=lambda: "".join(secrets.choice(_LETTERS) for _ in range(9)))

    def to_dict(self) -> dict[str, Any]:
        """Return it as OpenAI's API has it, in a message's ``tool_calls``."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@attrs.define(eq=False)
class Reply(Iterator[Part]):
    """An answer that is being generated: an iterator of its parts; what has come is in its attributes.

    Attributes:
        generation: the text underneath, with token counts and scores.
        parts: of the answer.
        text: what the user is to read.
        reasoning: what the model thought before.
        calls: of tools.

    Example:
        >>> answer = model.reply(messages, tools=tools).message()  # doctest: +SKIP
        >>> messages += [answer, {"role": "tool", "tool_call_id": answer["tool_calls"][0]["id"], "content": "rain"}]
    """

    generation: Generation
    parts: Iterator[Part]
    text: str = attrs.field(default="", init=False)
    reasoning: str = attrs.field(default="", init=False)
    calls: list[ToolCall] = attrs.field(factory=list, init=False)

    def __next__(self) -> Part:
        part = next(self.parts)
        match part.kind:
            case "text":
                self.text += part.text
            case "reasoning":
                self.reasoning += part.text
            case "call":
                self.calls.append(ToolCall(part.text))
            case "arguments":
                self.calls[part.call].arguments += part.text
        return part

    @property
    def finish_reason(self) -> Literal["stop", "length", "tool_calls"] | None:
        """Why it ended: as of the text, or ``"tool_calls"`` where it ended with calls; None until then."""
        reason = self.generation.finish_reason
        return "tool_calls" if reason == "stop" and self.calls else reason

    def message(self) -> dict[str, Any]:
        """Generate to the end, and return the answer as a message of a conversation."""
        for _ in self:
            pass
        message: dict[str, Any] = {"role": "assistant", "content": self.text}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.calls:
            message["tool_calls"] = [call.to_dict() for call in self.calls]
        return message

    def cancel(self) -> None:
        """End the answer after the current token; any thread may call it."""
        self.generation.cancel()

    def close(self) -> None:
        """Discard the rest of the answer, in the thread that iterates."""
        for iterator in (self.parts, self.generation):
            close = getattr(iterator, "close", None)
            if close is not None:
                close()


__all__ = ["Kind", "Part", "Reply", "ReplyOptions", "ToolCall"]
