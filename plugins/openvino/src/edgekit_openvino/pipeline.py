"""Generates token ids with `openvino_genai.LLMPipeline`, from a directory with the tokenizer's models."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import ResourceError
from edgekit.files.memory import refuse_shortage
from edgekit.files.reader import Mapped
from edgekit.files.threads import Thread
from edgekit_openvino.library import genai, last_line, openvino

#: Files that the pipeline needs beside the model.
NEEDED = ("openvino_tokenizer.xml", "openvino_detokenizer.xml")
_END = None


class Pipeline:
    """A pipeline from token ids to token ids.

    Raises:
        ResourceError: GenAI cannot load the directory; the message quotes it.
    """

    def __init__(
        self, directory: Path, device: str, properties: Mapping[str, Any], mapped: Mapped | None = None
    ) -> None:
        self._genai, self._lock, self._mapped = genai(), threading.Lock(), mapped
        try:
            self._pipeline = self._genai.LLMPipeline(str(directory), device, **properties)
        except RuntimeError as error:
            refuse_shortage(error, f"{directory}: loading it with OpenVINO GenAI")
            raise ResourceError(f"{directory}: OpenVINO GenAI cannot load it: {last_line(error)}") from error

    def greedy(self, prompt: Sequence[int], count: int) -> Iterator[int]:
        """Yield the `count` most likely tokens, one after another; does not stop at an end token."""
        config = self._genai.GenerationConfig()
        config.max_new_tokens, config.do_sample, config.ignore_eos, config.apply_chat_template = (
            count,
            False,
            True,
            False,
        )
        ids = np.array([list(prompt)], np.int64)
        inputs = self._genai.TokenizedInputs(openvino().Tensor(ids), openvino().Tensor(np.ones_like(ids)))
        yield from self._stream(inputs, config)

    def _stream(self, inputs: Any, config: Any) -> Iterator[int]:
        """Yield the tokens of a generation in another thread; the thread ends when the caller stops."""
        if self._mapped is not None:
            self._mapped.refuse_cut()
        streamer, failure = _streamer(self._genai), list[Exception]()

        def run() -> None:
            try:
                with self._lock:  # a pipeline has a single state
                    self._pipeline.generate(inputs, config, streamer)
            except RuntimeError as error:
                failure.append(error)
            finally:
                streamer.tokens.put(_END)

        worker = Thread(target=run, name="edgekit-openvino-generate")
        worker.start()
        try:
            while (token := streamer.tokens.get()) is not _END:
                yield token
        finally:
            streamer.cancelled = True
            worker.join()
        if failure:
            refuse_shortage(failure[0], "generating with OpenVINO GenAI")
            raise ResourceError(f"OpenVINO GenAI cannot generate: {last_line(failure[0])}") from failure[0]


def _streamer(library: Any) -> Any:
    """Return a streamer that puts every token into a queue; its base class is GenAI's, hence not a top-level class."""

    class Streamer(library.StreamerBase):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.tokens: queue.SimpleQueue[int | None] = queue.SimpleQueue()
            self.cancelled = False

        def write(self, token: int | Sequence[int]) -> Any:
            for one in token if isinstance(token, Sequence) else (token,):
                self.tokens.put(int(one))
            status = library.StreamingStatus
            return status.CANCEL if self.cancelled else status.RUNNING

        def end(self) -> None:
            """Do nothing: every token has been queued already."""

    return Streamer()


__all__ = ["NEEDED", "Pipeline"]
