"""Chat templates: how a model expects a conversation to be written as one text.

A template is a program from an untrusted file. It runs in a process that can only render; see `_render`.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import json
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

import attrs

from edgekit.artifact import Artifact
from edgekit.errors import InvalidFileError, MissingPluginError, UsageError
from edgekit.runtime._dialects import INSTRUCTIONS, has_tools
from edgekit.tokenizer._record import Tokenizer

#: A conversation: each message has a ``role`` and a ``content``, a text.
Messages = Sequence[Mapping[str, Any]]

ROLES = ("system", "user", "assistant", "tool", "developer")
#: Time limit for rendering a template, in seconds.
PATIENCE = 10.0
#: Stands behind a message that is to be continued, to find its end in the prompt.
_MARK = "\ue000edgekit:continue\ue001"
_PROGRAM = Path(__file__).with_name("_render.py")
#: Largest answer in bytes: the longest prompt with every character escaped.
_LARGEST = 64 << 20


def prompt_of(
    artifact: Artifact,
    messages: Messages | str,
    variables: Mapping[str, Any] | None = None,
    *,
    continue_final: bool = False,
) -> str:
    """Render messages with an artifact's chat template.

    Args:
        artifact: of any format.
        messages: each with a ``role`` (system, user, assistant, tool, developer) and a ``content``, a text; or one
            text, the message of the user.
        variables: further variables of the template, such as ``tools`` and ``enable_thinking``.
        continue_final: whether the last message, of the assistant, is the beginning of the answer.

    Raises:
        UsageError: the artifact has no template, the messages are malformed, or the template does not accept them.
        InvalidFileError: the template fails, or exceeds the limits of time or memory.
        MissingPluginError: Jinja is not installed.
    """
    template, tokenizer = template_of(artifact), artifact.tokenizer
    special = special_tokens(tokenizer) if tokenizer else {}
    return render_answer(template, messages, {**special, **(variables or {})}, continue_final=continue_final)


def special_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """Return ``bos_token`` and ``eos_token`` if the vocabulary has them: template variables for special tokens."""
    ids = {"bos_token": tokenizer.bos, "eos_token": tokenizer.eos}
    return {name: tokenizer.tokens[i] for name, i in ids.items() if i is not None and 0 <= i < len(tokenizer.tokens)}


def template_of(artifact: Artifact) -> str:
    """Return the source of an artifact's chat template, from a GGUF file's metadata or the tokenizer's files.

    Raises:
        UsageError: it has none.
    """
    # Metadata first: a GGUF file has its template even if edgekit cannot read the kind of its tokenizer.
    source = artifact.config.get("tokenizer.chat_template")
    if source is None and artifact.tokenizer is not None:
        source = artifact.tokenizer.chat_template or _only(artifact.tokenizer, artifact)
    if not isinstance(source, str):
        raise UsageError(
            f"{artifact.path}: it has no chat template, as base models have none; "
            "continue a text instead (`edgekit run`, `generate` in Python)",
            public="the model has no chat template; send a prompt to be continued instead",
        )
    return source


def _only(tokenizer: Tokenizer, artifact: Artifact) -> str | None:
    """Return the only template of a model without a default one."""
    templates = tokenizer.chat_templates
    if len(templates) > 1:
        raise UsageError(
            f"{artifact.path}: of its chat templates ({', '.join(templates)}) none is the default one; render one with "
            "edgekit.runtime.chat.render, and use generate",
            public="none of the model's chat templates is the default one; send a prompt to be continued instead",
        )
    return next(iter(templates.values()), None)


def no_tokenizer(path: Path) -> str:
    """Return the error message for an artifact without a tokenizer."""
    return (
        f"{path}: it has no tokenizer, so it takes no text; write it again from a source that has its tokenizer's "
        "files, or continue token ids (`tokens` in Python)"
    )


def has_template(artifact: Artifact) -> bool:
    """Whether an artifact has a chat template.

    Raises:
        As reading its tokenizer does, if its files are malformed or of an unsupported kind.
    """
    try:
        template_of(artifact)
    except UsageError:
        return False
    return True


def render_answer(
    template: str, messages: Messages | str, variables: Mapping[str, Any], *, continue_final: bool = False
) -> str:
    """Return the prompt of an answer; arguments as of `prompt_of`, raises as `render`.

    A template that shows no tools gets them in the system message, and calls in the history as text.
    """
    converted = [dict(message) for message in conversation(messages)]
    if not has_tools(template):
        converted = without_tools(converted, variables.get("tools"))
    if not continue_final:
        return render(template, converted, **variables)
    if converted[-1]["role"] != "assistant":
        wrong = "the last message is to be continued, and is not of the assistant"
        raise UsageError(wrong, public=wrong)
    converted[-1]["content"] += _MARK
    text, mark, _ = render(template, converted, **{**variables, "add_generation_prompt": False}).partition(_MARK)
    if not mark:
        wrong = "the model's chat template leaves out the last message, so it cannot be continued"
        raise UsageError(wrong, public=wrong)
    return text


def without_tools(messages: Messages, tools: Any) -> list[dict[str, Any]]:
    """Return messages for a template that knows no tools: these are told in words, and calls and results are texts."""
    converted = [_as_text(message) for message in messages]
    if tools:
        instructions = INSTRUCTIONS.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
        if converted[0]["role"] in ("system", "developer"):
            converted[0] = {**converted[0], "content": f"{converted[0]['content']}\n\n{instructions}"}
        else:
            converted.insert(0, {"role": "system", "content": instructions})
    return converted


def _as_text(message: Mapping[str, Any]) -> dict[str, Any]:
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    calls = [
        f"<tool_call>\n{json.dumps(call['function'], ensure_ascii=False)}\n</tool_call>"
        for call in message.get("tool_calls") or ()
    ]
    content = "\n".join(filter(None, [message["content"], *calls]))
    return {**{key: value for key, value in message.items() if key != "tool_calls"}, "content": content}


def render(template: str, messages: Messages | str, **variables: Any) -> str:
    """Return the prompt that a chat template renders, in 7 to 10 ms; the first call takes 0.1 s.

    Args:
        template: Jinja source.
        messages: each with a ``role`` and a ``content``.
        variables: further variables of the template, such as ``bos_token``.

    Raises:
        As `prompt_of`.
    """
    messages = conversation(messages)
    if importlib.util.find_spec("jinja2") is None:
        raise MissingPluginError("rendering a chat template needs jinja2; pip install 'edgekit-core[chat]'")
    given = {"messages": [dict(message) for message in messages], "add_generation_prompt": True, **variables}
    answer = _renderer(os.getpid()).ask(json.dumps({"template": template, "variables": given}).encode())
    if "text" in answer:
        return str(answer["text"])
    if str(answer["error"]).startswith("ValueError: "):  # the template's own raise_exception
        refusal = f"the model's chat template refuses the messages: {answer['error'][12:]}"
        raise UsageError(refusal, public=refusal)
    failure = f"the model's chat template fails: {answer['error']}"
    raise InvalidFileError(f"{failure}; build the prompt yourself (generate)", public=failure)


def conversation(messages: Messages | str) -> Messages:
    """Return the checked messages; a single text becomes a message of the user.

    Raises:
        UsageError: as `check`.
    """
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    check(messages)
    return [_completed(message) for message in messages]


def _completed(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message whose content is a text, and the arguments of whose calls are objects, as templates expect."""
    converted = {**message, "content": message.get("content") or ""}
    if converted.get("tool_calls"):
        converted["tool_calls"] = [{**call, "function": _function(call)} for call in converted["tool_calls"]]
    return converted


def _function(call: Any) -> dict[str, Any]:
    function = dict(call["function"])
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError, RecursionError):
            parsed = json.loads(arguments)
            arguments = parsed if isinstance(parsed, dict) else arguments
    return {**function, "arguments": arguments}


def check(messages: Messages) -> None:
    """Raise if the messages are malformed.

    Raises:
        UsageError: no messages, an unknown role, or a content that is not a text.
    """
    if not messages:
        raise UsageError("no messages; give at least one, {'role': 'user', 'content': ...}")
    for message in messages:
        if not isinstance(message, Mapping):
            raise UsageError(f"message {message!r:.80}; a message is a dict with role and content")
        calls = message.get("tool_calls") or ()
        if not _are_calls(calls) or (calls and message.get("role") != "assistant"):
            raise UsageError(
                f"message {dict(message)!r:.80}; tool_calls is of the assistant's messages, a list of "
                "{'id': ..., 'type': 'function', 'function': {'name': ..., 'arguments': ...}}"
            )
        silent = message.get("role") == "assistant" and message.get("content") is None
        if message.get("role") not in ROLES or not (silent or isinstance(message.get("content"), str)):
            raise UsageError(
                f"message {dict(message)!r:.80}; each has a role ({', '.join(ROLES)}) and a content, a text"
            )


def _are_calls(calls: Any) -> bool:
    functions = [call.get("function") if isinstance(call, Mapping) else None for call in calls]
    return all(isinstance(each, Mapping) and isinstance(each.get("name"), str) for each in functions)


@functools.cache
def _renderer(process: int) -> _Renderer:
    """Return this process's renderer; a forked process must not share its parent's pipes."""
    renderer = _Renderer(process)
    atexit.register(renderer.close)
    return renderer


@attrs.define(eq=False)
class _Renderer:
    """The rendering process; started at the first use, and restarted if it dies."""

    owner: int
    _process: subprocess.Popen[bytes] | None = attrs.field(default=None, init=False)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)

    def ask(self, given: bytes) -> dict[str, Any]:
        """Return the answer for one template; calls are serialised, and one takes at most `PATIENCE`."""
        with self._lock:
            process = self._started()
            timer = threading.Timer(PATIENCE, _kill, [process])
            timer.start()
            try:
                return _exchange(process, given)
            except (OSError, EOFError, ValueError) as error:
                why = (
                    f"its process died ({error})" if timer.is_alive() else f"it did not end within {PATIENCE:g} seconds"
                )
                self._end()
                return {"error": why}
            finally:
                timer.cancel()

    def close(self) -> None:
        """End the process."""
        if self.owner == os.getpid():
            self._end()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._end()
            # -I: ignores the caller's environment, working directory and start-up files.
            line = [sys.executable, "-I", str(_PROGRAM)]
            streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            streams["stderr"] = subprocess.DEVNULL
            self._process = subprocess.Popen(line, env={}, start_new_session=True, **streams)
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            _kill(process)
            for pipe in (process.stdin, process.stdout):
                _close(cast("IO[bytes]", pipe))
            process.wait()


def _exchange(process: subprocess.Popen[bytes], given: bytes) -> dict[str, Any]:
    stdin, stdout = cast("IO[bytes]", process.stdin), cast("IO[bytes]", process.stdout)
    stdin.write(struct.pack("<I", len(given)) + given)
    stdin.flush()
    (length,) = struct.unpack("<I", _exactly(stdout, 4))
    if length > _LARGEST:
        raise EOFError(f"it answered {length} bytes")
    answer: dict[str, Any] = json.loads(_exactly(stdout, length))
    return answer


def _exactly(stream: IO[bytes], count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise EOFError("its answer was cut off")
    return data


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the process and the copy of it that renders."""
    if process.poll() is not None:
        return
    try:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    except ProcessLookupError:
        return


def _close(pipe: IO[bytes]) -> None:
    try:
        pipe.close()
    except OSError:  # unwritten data has no reader
        return


__all__ = [
    "PATIENCE",
    "ROLES",
    "Messages",
    "check",
    "conversation",
    "has_template",
    "no_tokenizer",
    "prompt_of",
    "render",
    "render_answer",
    "special_tokens",
    "template_of",
    "without_tools",
]
