"""A model's chat template, run in a child process of its own; see `_render` for what it may do."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekit.errors import InvalidFileError, UsageError

#: Seconds by the clock until the child is ended.
PATIENCE = 10.0
_PROGRAM = Path(__file__).with_name("_render.py")
_ROLES = ("system", "user", "assistant", "tool", "developer")


def render(template: str, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
    """The prompt that a chat template makes of messages.

    Args:
        template: Jinja source.
        messages: each with a ``role`` and a ``content``.
        variables: what the template sees besides, such as ``bos_token``.

    Raises:
        UsageError: messages that are none, or the template does not accept.
        InvalidFileError: the template fails, or wants too much time or memory.
    """
    _check(messages)
    given = {"messages": [dict(message) for message in messages], "add_generation_prompt": True, **variables}
    said = _child(json.dumps({"template": template, "variables": given}).encode())
    if "text" in said:
        return str(said["text"])
    if str(said["error"]).startswith("ValueError: "):  # the template's own raise_exception
        raise UsageError(f"the model's chat template refuses the messages: {said['error'][12:]}")
    raise InvalidFileError(f"the model's chat template fails: {said['error']}; build the prompt yourself (generate)")


def _check(messages: Sequence[Mapping[str, Any]]) -> None:
    if not messages:
        raise UsageError("no messages; give at least one, {'role': 'user', 'content': ...}")
    for message in messages:
        if message.get("role") not in _ROLES or not isinstance(message.get("content"), str):
            raise UsageError(
                f"message {dict(message)!r:.80}; each has a role ({', '.join(_ROLES)}) and a content, a text"
            )


def _child(given: bytes) -> dict[str, Any]:
    # -I: nothing of the caller's environment, working directory or start-up files.
    line = [sys.executable, "-I", str(_PROGRAM)]
    try:
        done = subprocess.run(line, input=given, capture_output=True, timeout=PATIENCE, env={}, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"it did not end within {PATIENCE:g} seconds"}
    if done.returncode:
        return {"error": _died(done)}
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def _died(done: subprocess.CompletedProcess[bytes]) -> str:
    if done.returncode < 0:
        return f"it was ended by signal {-done.returncode}: too much time or memory"
    last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
    return f"its process ended with code {done.returncode}: {last[:500]}"
