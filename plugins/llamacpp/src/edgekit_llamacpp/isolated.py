"""The runtime in a child process, so that a crash of native code becomes an error.

The processes exchange frames over pipes: length (u32), JSON; if the JSON has ``shape``, the bytes of a float32 array.
Nothing is unpickled, so that a child compromised by a malicious file cannot execute code here. Streams are lazy: the
child computes the next piece on request.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, Self, Unpack, cast

import attrs
import numpy as np
import numpy.typing as npt

from edgekit import errors
from edgekit.artifact import Artifact
from edgekit.errors import EdgekitError, InvalidFileError, PluginError, UsageError
from edgekit.runtime import Generation, GenerationOptions, Part, Prompt, Reply, ReplyOptions, TokenScore
from edgekit.runtime.arguments import prompt_given
from edgekit.runtime.chat import Messages, conversation
from edgekit.typing import F32
from edgekit_llamacpp.model import Options

#: Bytes of a frame's JSON, and of an array.
_MESSAGE, _ARRAY = 64 << 20, 8 << 30


def send(stream: IO[bytes], message: Mapping[str, Any], array: F32 | None = None) -> None:
    """Write a frame."""
    if array is not None:
        message = {**message, "shape": array.shape}
    data = json.dumps(message).encode()
    stream.write(struct.pack("<I", len(data)) + data)
    if array is not None:
        stream.write(np.ascontiguousarray(array, "<f4").tobytes())
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[dict[str, Any], F32 | None]:
    """Read a frame.

    Raises:
        EOFError: the other process has ended, or sent a malformed frame.
    """
    (length,) = struct.unpack("<I", _exactly(stream, 4))
    if length > _MESSAGE:
        raise EOFError(f"a message of {length} bytes")
    message: dict[str, Any] = json.loads(_exactly(stream, length))
    if "shape" not in message:
        return message, None
    shape = [int(size) for size in message["shape"]]
    if min(shape) < 0 or 4 * math.prod(shape) > _ARRAY:
        raise EOFError(f"an array of shape {shape}")
    return message, np.frombuffer(_exactly(stream, 4 * math.prod(shape)), "<f4").reshape(shape).astype(np.float32)


def _exactly(stream: IO[bytes], count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise EOFError("the other side is gone")
    return data


class IsolatedRuntime:
    """`edgekit_llamacpp.runtime.LlamaCppRuntime` in a child process, with the same results and errors.

    It has the methods of `edgekit.runtime.Runtime`, and of those for chat, embeddings and tokens.

    Raises:
        InvalidFileError: the child died while loading the model or computing.
    """

    name = "llamacpp"

    def __init__(self, artifact: Artifact, options: Options) -> None:
        self.artifact = artifact
        self._lock, self._streams, self._owner = threading.RLock(), 0, os.getpid()
        path = os.pathsep.join(entry for entry in sys.path if entry)
        self._child: subprocess.Popen[bytes] | None = subprocess.Popen(
            [sys.executable, "-m", "edgekit_llamacpp.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
        )
        try:
            message, _ = self._ask("load", path=str(artifact.path.resolve()), options=attrs.asdict(options))
        except BaseException:
            self.close()
            raise
        self.context = int(message["value"])
        """Tokens that the context holds."""

    def description(self) -> dict[str, Any]:
        """Return how it computes, with the chosen options."""
        message, _ = self._ask("description")
        return dict(message["value"])

    def logits(self, tokens: npt.ArrayLike) -> F32:
        """Return the logits of every next token, float32 [n, vocab]."""
        return self._array("logits", tokens=np.asarray(tokens).tolist())

    def embed(self, text: Prompt) -> F32:
        """Return the embedding of a text, float32 [width], of length 1; pooled as the file says."""
        return self._array("embed", text=prompt_given(text))

    def encode(self, text: str) -> list[int]:
        """Encode a text to token ids, with the model's BOS if it has one."""
        message, _ = self._ask("encode", text=text)
        return [int(token) for token in message["value"]]

    def prompt(
        self, messages: Messages | str, variables: Mapping[str, Any] | None = None, *, continue_final: bool = False
    ) -> str:
        """Render messages with the model's chat template."""
        given = {"variables": variables and dict(variables), "continue_final": continue_final}
        message, _ = self._ask("prompt", messages=_plain(messages), **given)
        return str(message["value"])

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids, special tokens by their names."""
        message, _ = self._ask("decode", tokens=[int(token) for token in tokens])
        return str(message["value"])

    def scores(self, tokens: Sequence[int], logprobs: int = 0) -> list[TokenScore]:
        """The score of each token given those before it."""
        message, _ = self._ask("scores", tokens=[int(token) for token in tokens], logprobs=logprobs)
        return [TokenScore.of(score) for score in message["value"]]

    def generate(self, prompt: Prompt, **options: Unpack[GenerationOptions]) -> str:
        """Continue a text until the model ends it."""
        return "".join(self.stream(prompt, **options))

    def stream(self, prompt: Prompt, **options: Unpack[GenerationOptions]) -> Generation:
        """As `generate`, piece by piece."""
        return self._stream("stream", prompt=prompt_given(prompt), **options)

    def chat(self, messages: Messages | str, **options: Unpack[GenerationOptions]) -> str:
        """Answer messages, with the model's own chat template."""
        return "".join(self.chat_stream(messages, **options))

    def chat_stream(self, messages: Messages | str, **options: Unpack[GenerationOptions]) -> Generation:
        """The answer piece by piece."""
        return self._stream("chat_stream", messages=_plain(messages), **options)

    def reply(self, messages: Messages | str, **options: Unpack[ReplyOptions]) -> Reply:
        """The answer in parts: text, reasoning and calls of tools."""
        number, generation = self._begin("reply", messages=_plain(messages), **options)
        found = (Part(*part) for part in self._items(number, generation))
        return Reply(generation, found)

    def close(self) -> None:
        """End the child; may be called more than once."""
        child, self._child = self._child, None
        if child is None or self._owner != os.getpid():  # a copy of the process does not end its parent's child
            return
        for pipe in (child.stdin, child.stdout):
            with contextlib.suppress(OSError):
                cast("IO[bytes]", pipe).close()
        try:
            child.wait(timeout=2)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_child", None) is not None:
            self.close()

    def _array(self, method: str, **arguments: Any) -> F32:
        _, array = self._ask(method, **arguments)
        if array is None:
            raise PluginError(f"the child gave no array for {method}; report this")
        return array

    def _stream(self, method: str, **arguments: Any) -> Generation:
        number, generation = self._begin(method, **arguments)
        generation.pieces = self._items(number, generation)
        return generation

    def _begin(self, method: str, **arguments: Any) -> tuple[int, Generation]:
        self._streams += 1
        number = self._streams
        message, _ = self._ask("begin", number=number, kind=method, arguments=arguments)
        return number, Generation(iter(()), int(message["value"]))

    def _items(self, number: int, generation: Generation) -> Iterator[Any]:
        try:
            while not generation.cancelled:
                message, _ = self._ask("next", number=number)
                piece, generation.completion_tokens, generation.finish_reason, scores = message["value"]
                generation.scores += map(TokenScore.of, scores)
                if piece is None:
                    return
                yield piece
        finally:
            if self._child is not None:
                self._ask("end", number=number)

    def _ask(self, method: str, **arguments: Any) -> tuple[dict[str, Any], F32 | None]:
        self._refuse_copy()
        with self._lock:
            child = self._child
            if child is None:
                raise UsageError("the runtime is closed; open the model again")
            try:
                send(cast("IO[bytes]", child.stdin), {"method": method, "arguments": arguments})
                message, array = receive(cast("IO[bytes]", child.stdout))
            except (EOFError, OSError, ValueError) as error:
                raise self._died(method) from error
        if "error" in message:
            raise _error(str(message["error"]), str(message["message"]), message.get("public"))
        return message, array

    def _refuse_copy(self) -> None:
        if self._owner != os.getpid():
            raise UsageError(
                f"{self.artifact.path}: it was loaded before this process was forked, and its pipes are the parent's; "
                "load the model again here"
            )

    def _died(self, method: str) -> EdgekitError:
        child, self._child = self._child, None
        assert child is not None
        child.kill()
        code = child.wait()
        for pipe in (child.stdin, child.stdout):
            with contextlib.suppress(OSError):
                cast("IO[bytes]", pipe).close()
        return InvalidFileError(
            f"{self.artifact.path}: llama.cpp died ({_how(code)}) in {method}; the file is broken, or too large for "
            "this machine: get it again, or choose a smaller one"
        )


def _plain(messages: Messages | str) -> list[dict[str, Any]]:
    """Return messages as plain JSON values."""
    return [dict(message) for message in conversation(messages)]


def _how(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _error(name: str, message: str, public: str | None = None) -> EdgekitError:
    """Return the child's error, as an instance of its class."""
    kind: Any = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, EdgekitError):
        return kind(message, public=public)
    return PluginError(f"{name}: {message}")


__all__ = ["IsolatedRuntime", "receive", "send"]
