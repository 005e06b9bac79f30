"""Takes an answer apart as it comes: reasoning, text, and calls of tools as a family writes them.

What only looks like a call stays text: one that is no JSON, or of a function that was not offered. The arguments of a
call are passed on as they come where they are JSON; else when the call is complete.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Container, Iterator
from typing import Any, Literal

import attrs

from edgekit.runtime._dialects import Dialect, Thought

#: What a part of an answer is; a call is its name, followed by its arguments.
Kind = Literal["text", "reasoning", "call", "arguments"]


@attrs.frozen
class Part:
    """A part of an answer.

    Attributes:
        kind: what it is.
        text: new characters; of a call the function's name.
        call: which call it belongs to, from 0; -1 for none.
    """

    kind: Kind
    text: str
    call: int = -1


class Splitter:
    """Sets reasoning apart from the answer.

    Args:
        thought: the marks; None for no reasoning.
        opened: whether the prompt has begun the reasoning.
    """

    def __init__(self, thought: Thought | None, opened: bool) -> None:
        self._thought, self._held, self._begun = thought, "", False
        self._state = "answer" if thought is None else "reasoning" if opened else "start"

    def feed(self, text: str, *, final: bool = False) -> Iterator[Part]:
        """Yield what a new piece of the answer decides."""
        self._held += text
        while (state := self._state) != "answer":
            yield from self._reason(final)
            if self._state == state:
                return
        if self._held:
            yield Part("text", self._held)
            self._held = ""

    def _reason(self, final: bool) -> Iterator[Part]:
        thought = self._thought
        assert thought is not None
        if self._state == "start":
            begun = self._held.lstrip()
            if begun.startswith(thought.begin):
                self._held, self._state = begun[len(thought.begin) :], "reasoning"
            elif final or not thought.begin.startswith(begun):
                self._state = "answer"
        elif self._state == "reasoning":
            place = self._held.find(thought.end)
            if place >= 0:
                text = self._held[:place].rstrip()
                yield from _part("reasoning", text if self._begun else text.lstrip())
                self._held, self._state = self._held[place + len(thought.end) :], "gap"
                return
            if not self._begun:  # the line break behind the mark
                self._held = self._held.lstrip()
                self._begun = bool(self._held)
            kept = 0 if final else _kept(self._held, thought.end)
            yield from _part("reasoning", self._held[: len(self._held) - kept])
            self._held = self._held[len(self._held) - kept :]
        elif self._held.strip() or final:  # the line breaks between the reasoning and the answer
            self._held, self._state = self._held.lstrip(), "answer"


def _part(kind: Kind, text: str, call: int = -1) -> Iterator[Part]:
    if text:
        yield Part(kind, text, call)


def _kept(text: str, mark: str) -> int:
    """Return how many characters may belong to a mark: a beginning of it, with white space before."""
    begun = max((n for n in range(1, min(len(mark), len(text)) + 1) if text.endswith(mark[:n])), default=0)
    return len(text) - len(text[: len(text) - begun].rstrip())


class Calls:
    """Sets calls of tools apart from the text of an answer.

    Args:
        dialect: how the family writes calls.
        names: the functions that were offered.
    """

    def __init__(self, dialect: Dialect, names: Container[str]) -> None:
        self._dialect, self._names = dialect, names
        self._held, self._state, self._count = "", "text", 0
        self._value, self._listed, self._any = JsonValue(), False, False

    def feed(self, text: str, *, final: bool = False) -> Iterator[Part]:
        """Yield what a new piece of the answer decides."""
        self._held += text
        while True:
            before = self._held, self._state
            yield from getattr(self, f"_{self._state}")(final)
            if (self._held, self._state) == before:
                break
        if final:
            yield from _part("text", self._held)
            self._held = ""

    def _text(self, final: bool) -> Iterator[Part]:
        """Text, up to the mark before a call."""
        begin = self._dialect.begin
        if not begin:
            yield from self._bare()
            return
        place = self._held.find(begin)
        if place >= 0:
            text, self._held, self._state = self._held[:place], self._held[place + len(begin) :], "body"
            self._any = self._any or bool(text.strip())
            yield from _part("text", text.rstrip())
            return
        kept = 0 if final else _kept(self._held, begin)
        if final and (self._count or not self._any):  # white space around calls
            self._held = self._held.rstrip()
        if not self._any and not self._held[: len(self._held) - kept].strip():
            kept = 0 if final else len(self._held)  # white space before a call is no text
        yield from self._said(len(self._held) - kept)

    def _said(self, count: int) -> Iterator[Part]:
        said, self._held = self._held[:count], self._held[count:]
        self._any = self._any or bool(said)
        yield from _part("text", said)

    def _bare(self) -> Iterator[Part]:
        """A call that is a whole answer begins it."""
        begun = self._held.lstrip().removeprefix("<|python_tag|>").lstrip()
        if not self._any and not self._count and begun.startswith("{"):
            self._held, self._state = begun, "body"
        elif self._any or self._count or (begun and not "<|python_tag|>".startswith(begun)):
            yield from self._said(len(self._held))

    def _body(self, final: bool) -> Iterator[Part]:
        """The beginning of a call, or calls, behind the mark."""
        head = _head(self._dialect).match(self._held)
        groups = head.groupdict() if head else {}
        name = groups.get("name") or groups.get("plain")
        if head and name in self._names:
            # A further element of a list has no bracket of its own.
            self._listed = bool(groups.get("list")) or (self._listed and not groups.get("plain"))
            self._held, self._state, self._value = self._held[head.end() :], "arguments", JsonValue()
            yield Part("call", str(name), self._count)
            return
        end = self._dialect.end
        place = self._held.find(end) if end else -1
        if place < 0 and not (final or self._is_whole()):
            return
        body, rest = (self._held[:place], self._held[place + len(end) :]) if place >= 0 else (self._held, "")
        calls = parsed(self._dialect, body)
        self._state = "text"
        if calls and all(name in self._names for name, _ in calls):
            self._held = rest
            for name, arguments in calls:
                yield Part("call", name, self._count)
                yield Part("arguments", json.dumps(arguments, ensure_ascii=False), self._count)
                self._count += 1
            return
        self._held, self._any = rest, True
        yield Part("text", self._dialect.begin + body + (end if place >= 0 else ""))

    def _is_whole(self) -> bool:
        """Whether what has no mark at its end is a whole JSON value, or cannot become one."""
        if self._dialect.end:
            return False
        text = self._held.lstrip()
        if not text.startswith(("{", "[")):
            return self._dialect.body in ("list", "object") and bool(text)
        value = JsonValue()
        return value.feed(text) < len(text) or value.done

    def _arguments(self, final: bool) -> Iterator[Part]:
        """The arguments, as they come."""
        count = self._value.feed(self._held)
        passed, self._held = self._held[:count], self._held[count:]
        yield from _part("arguments", passed, self._count)
        if self._value.done:
            self._count, self._state = self._count + 1, "tail"

    def _tail(self, final: bool) -> Iterator[Part]:
        """What stands behind the arguments: the end of the call, and a further one."""
        dialect = self._dialect
        closing = r"\s*" if dialect.body == "named" and not self._listed else r"\s*\}\s*"
        if self._listed or not dialect.begin:
            separator = "," if self._listed else ";"
            further = re.match(closing + separator + r"\s*(?=\{)", self._held)
            if further:
                self._held, self._state = self._held[further.end() :], "body"
                return
            if not final and re.fullmatch(rf"{closing}{separator}\s*", self._held):
                return
            closing += r"\]\s*" if self._listed else ""
        closing += re.escape(dialect.end)
        whole = re.match(closing, self._held)
        if whole and (dialect.end or final or self._held[whole.end() :]):
            self._held, self._state = self._held[whole.end() :], "text"
        elif not whole:
            rest = re.sub(r"^[\s}\]]*", "", self._held)
            if final or not dialect.end.startswith(rest):
                self._state = "text"
            if final and dialect.end.startswith(rest):  # it was cut off here
                self._held = ""
        if self._state == "text" and not self._held.strip():
            self._held = ""
        yield from ()


def _head(dialect: Dialect) -> re.Pattern[str]:
    """The beginning of a call, up to its arguments, where those are JSON."""
    pair = rf'\{{\s*"name"\s*:\s*"(?P<name>[^"\\]*)"\s*,\s*"(?:{dialect.arguments}|arguments|parameters)"\s*:\s*(?=\{{)'
    match dialect.body:
        case "object":
            return re.compile(rf"\s*{pair}")
        case "list":
            return re.compile(rf"\s*(?P<list>\[?)\s*{pair}")
        case "named":
            plain = rf"(?P<plain>[\w.-]+)(?:\[CALL_ID\]\w+)?\s*{re.escape(dialect.inner)}\s*(?=\{{)"
            return re.compile(rf"\s*(?:(?P<list>\[?)\s*{pair}|{plain})")
    return re.compile(r"(?!)")


class JsonValue:
    """Finds the end of a JSON value that comes in pieces."""

    def __init__(self) -> None:
        self.done, self._depth, self._string, self._escaped = False, 0, False, False

    def feed(self, text: str) -> int:
        """Return how many of the characters belong to the value."""
        if self.done:
            return 0
        for number, character in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._string:
                self._escaped, self._string = character == "\\", character != '"'
            elif character == '"':
                self._string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    self.done = True
                    return number + 1
        return len(text)


def parsed(dialect: Dialect, body: str) -> list[tuple[str, dict[str, Any]]] | None:
    """Return the names and arguments of a whole body of calls; None where it is none."""
    try:
        match dialect.body:
            case "keywords":
                return _keywords(body.strip(), dialect.inner)
            case "python":
                return _python(body.strip())
        return _json(json.loads(body))
    except (ValueError, SyntaxError, RecursionError, MemoryError, IndexError):
        return None


def _json(found: Any) -> list[tuple[str, dict[str, Any]]] | None:
    calls = found if isinstance(found, list) else [found]
    pairs = []
    for call in calls:
        keys = {"name", "arguments", "parameters", "id"}
        if not (isinstance(call, dict) and isinstance(call.get("name"), str) and call.keys() <= keys):
            return None
        arguments = call.get("arguments", call.get("parameters", {}))
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        if not isinstance(arguments, dict):
            return None
        pairs.append((call["name"], arguments))
    return pairs


def _python(body: str) -> list[tuple[str, dict[str, Any]]] | None:
    if body.startswith(("[{", "{")):  # as a model was asked for JSON
        return _json(json.loads(body))
    if len(body) > 1 << 16:  # Python's parser takes time and stack
        return None
    tree = ast.parse(body, mode="eval").body
    pairs = []
    for call in tree.elts if isinstance(tree, ast.List) else [tree]:
        if not isinstance(call, ast.Call) or call.args or any(word.arg is None for word in call.keywords):
            return None
        pairs.append((ast.unparse(call.func), {str(word.arg): _literal(word.value) for word in call.keywords}))
    return pairs


def _literal(node: ast.expr) -> Any:
    """The value of a literal, in Python's words or JSON's."""
    match node:
        case ast.Name(id="true" | "false" | "null" as word):
            return {"true": True, "false": False, "null": None}[word]
        case ast.List(elts=elements):
            return [_literal(element) for element in elements]
        case ast.Dict(keys=keys, values=values):
            return {str(_literal(key)): _literal(value) for key, value in zip(keys, values, strict=True) if key}
        case ast.Constant(value=str() | int() | float() | None as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
    raise ValueError(f"no literal: {ast.dump(node)[:40]}")


def _keywords(body: str, quote: str) -> list[tuple[str, dict[str, Any]]] | None:
    """``call:NAME{key:value, …}``, where texts stand between two quotes of the family's."""
    head = re.match(r"call:([\w.-]+)(?=\{)", body)
    if head is None:
        return None
    value, end = _Keywords(body, quote).value(head.end())
    return [(head[1], value)] if end == len(body) and isinstance(value, dict) else None


@attrs.frozen
class _Keywords:
    """Reads a value: JSON without quotes around keys, and with the family's quotes around texts."""

    text: str
    quote: str

    def value(self, at: int, depth: int = 0) -> tuple[Any, int]:
        """Return a value and the place behind it."""
        if depth > 64:
            raise ValueError("nested too deeply")
        for quote in (self.quote, '"'):
            if self.text.startswith(quote, at):
                end = self.text.index(quote, at + len(quote))
                return self.text[at + len(quote) : end], end + len(quote)
        if self.text[at] == "{":
            return self._items(at, "}", depth, keys=True)
        if self.text[at] == "[":
            return self._items(at, "]", depth, keys=False)
        word = re.compile(r"[^,}\]]*").match(self.text, at)
        assert word is not None
        return json.loads(word[0]), word.end()

    def _items(self, at: int, closing: str, depth: int, *, keys: bool) -> tuple[Any, int]:
        pairs: dict[str, Any] = {}
        values: list[Any] = []
        at += 1
        while self.text[at] != closing:
            at = self._skip(at, ",") if pairs or values else at
            if keys:
                key, at = self._key(at)
                pairs[key], at = self.value(at, depth + 1)
            else:
                value, at = self.value(at, depth + 1)
                values.append(value)
        return (pairs if keys else values), at + 1

    def _key(self, at: int) -> tuple[str, int]:
        if self.text.startswith((self.quote, '"'), at):
            key, at = self.value(at)
            return key, self._skip(at, ":")
        end = self.text.index(":", at)
        return self.text[at:end], end + 1

    def _skip(self, at: int, expected: str) -> int:
        if self.text[at] != expected:
            raise ValueError(f"no {expected}")
        return at + 1


class Harmony:
    """Takes an answer of gpt-oss apart: messages, each with a channel, and a recipient where it is a call.

    Source: https://cookbook.openai.com/articles/openai-harmony
    """

    _ENDS = re.compile(r"<\|end\|>|<\|call\|>|<\|return\|>|(?=<\|start\|>)")

    def __init__(self, names: Container[str]) -> None:
        self._names, self._held, self._count = names, "", 0
        self._kind: Kind | None = None

    def feed(self, text: str, *, final: bool = False) -> Iterator[Part]:
        """Yield what a new piece of the answer decides."""
        self._held += text
        while True:
            before = self._held, self._kind
            yield from self._message(final) if self._kind else self._header(final)
            if (self._held, self._kind) == before:
                return

    def _header(self, final: bool) -> Iterator[Part]:
        header, mark, rest = self._held.partition("<|message|>")
        if not mark:
            plain = not self._held.lstrip().startswith(("<|", " to=", "to="))
            if self._held.strip() and plain and not "<|".startswith(self._held.strip()):
                self._kind = "text"  # no header at all
            elif final:
                self._held = ""
            return
        self._held = rest
        recipient = re.search(r"to=functions\.([\w.-]+)", header)
        if recipient and recipient[1] in self._names:
            self._kind = "arguments"
            yield Part("call", recipient[1], self._count)
            return
        self._kind = "reasoning" if "<|channel|>analysis" in header and not recipient else "text"
        if recipient:  # of a function that was not offered
            self._held = f"{header}{mark}{rest}"
            self._held = self._held.replace("<|message|>", " ", 1)

    def _message(self, final: bool) -> Iterator[Part]:
        kind = self._kind
        assert kind is not None
        ended = self._ENDS.search(self._held)
        kept = (
            0 if final else max(_kept(self._held, mark) for mark in ("<|end|>", "<|call|>", "<|return|>", "<|start|>"))
        )
        text = self._held[: ended.start() if ended else len(self._held) - kept]
        self._held = self._held[ended.end() if ended else len(text) :]
        yield from _part(kind, text, self._count if kind == "arguments" else -1)
        if ended or final:
            self._count += kind == "arguments"
            self._kind = None


def parts(
    pieces: Iterator[str], dialect: Dialect, names: Container[str] | None, thought: Thought | None, opened: bool
) -> Iterator[Part]:
    """Yield the parts of an answer.

    Args:
        pieces: of the answer, with the family's marks in them.
        dialect: how the family writes calls.
        names: the functions that were offered; None for none.
        thought: how the family sets reasoning apart.
        opened: whether the prompt has begun the reasoning.
    """
    if dialect.body == "harmony":
        harmony = Harmony(names or ())
        for piece in pieces:
            yield from harmony.feed(piece)
        yield from harmony.feed("", final=True)
        return
    splitter, calls = Splitter(thought, opened), Calls(dialect, names) if names else None
    for piece in pieces:
        yield from _both(splitter.feed(piece), calls)
    yield from _both(splitter.feed("", final=True), calls)
    if calls is not None:
        yield from calls.feed("", final=True)


def _both(found: Iterator[Part], calls: Calls | None) -> Iterator[Part]:
    for part in found:
        if calls is None or part.kind != "text":
            yield part
        else:
            yield from calls.feed(part.text)


__all__ = ["Calls", "Harmony", "JsonValue", "Kind", "Part", "Splitter", "parsed", "parts"]
