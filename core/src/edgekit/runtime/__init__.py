"""Running a model: the runtime protocols, text generation, chat, and the numpy runtime."""

from __future__ import annotations

from edgekit.runtime._watch import TokenScore as TokenScore
from edgekit.runtime.arguments import Prompt as Prompt
from edgekit.runtime.arguments import parse_option as parse_option
from edgekit.runtime.arguments import refuse_unknown_options as refuse_unknown_options
from edgekit.runtime.generation import FinishReason as FinishReason
from edgekit.runtime.generation import Generation as Generation
from edgekit.runtime.generation import GenerationOptions as GenerationOptions
from edgekit.runtime.generation import Sampling as Sampling
from edgekit.runtime.generation import SamplingOptions as SamplingOptions
from edgekit.runtime.generation import until as until
from edgekit.runtime.numpy import NumpyRuntime as NumpyRuntime
from edgekit.runtime.protocols import ChatRuntime as ChatRuntime
from edgekit.runtime.protocols import ChattingRuntime as ChattingRuntime
from edgekit.runtime.protocols import DescribedRuntime as DescribedRuntime
from edgekit.runtime.protocols import EmbeddingRuntime as EmbeddingRuntime
from edgekit.runtime.protocols import Runtime as Runtime
from edgekit.runtime.protocols import TokenizingRuntime as TokenizingRuntime
from edgekit.runtime.protocols import choose_runtime as choose_runtime
from edgekit.runtime.protocols import load as load
from edgekit.runtime.text import TextRuntime as TextRuntime
from edgekit.typing import F32 as F32

__all__ = [
    "F32",
    "ChatRuntime",
    "ChattingRuntime",
    "DescribedRuntime",
    "EmbeddingRuntime",
    "FinishReason",
    "Generation",
    "GenerationOptions",
    "NumpyRuntime",
    "Prompt",
    "Runtime",
    "Sampling",
    "SamplingOptions",
    "TextRuntime",
    "TokenScore",
    "TokenizingRuntime",
    "choose_runtime",
    "load",
    "parse_option",
    "refuse_unknown_options",
    "until",
]
