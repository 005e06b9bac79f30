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
from edgekit.runtime.protocols import AdaptingRuntime as AdaptingRuntime
from edgekit.runtime.protocols import CacheUse as CacheUse
from edgekit.runtime.protocols import CachingRuntime as CachingRuntime
from edgekit.runtime.protocols import ChatRuntime as ChatRuntime
from edgekit.runtime.protocols import ChattingRuntime as ChattingRuntime
from edgekit.runtime.protocols import DescribedRuntime as DescribedRuntime
from edgekit.runtime.protocols import DetokenizingRuntime as DetokenizingRuntime
from edgekit.runtime.protocols import EmbeddingRuntime as EmbeddingRuntime
from edgekit.runtime.protocols import ReplyingRuntime as ReplyingRuntime
from edgekit.runtime.protocols import Runtime as Runtime
from edgekit.runtime.protocols import ScoringRuntime as ScoringRuntime
from edgekit.runtime.protocols import TokenizingRuntime as TokenizingRuntime
from edgekit.runtime.protocols import choose_runtime as choose_runtime
from edgekit.runtime.protocols import load as load
from edgekit.runtime.reply import Part as Part
from edgekit.runtime.reply import Reply as Reply
from edgekit.runtime.reply import ReplyOptions as ReplyOptions
from edgekit.runtime.reply import ToolCall as ToolCall
from edgekit.runtime.text import TextRuntime as TextRuntime
from edgekit.typing import F32 as F32

__all__ = [
    "F32",
    "AdaptingRuntime",
    "CacheUse",
    "CachingRuntime",
    "ChatRuntime",
    "ChattingRuntime",
    "DescribedRuntime",
    "DetokenizingRuntime",
    "EmbeddingRuntime",
    "FinishReason",
    "Generation",
    "GenerationOptions",
    "NumpyRuntime",
    "Part",
    "Prompt",
    "Reply",
    "ReplyOptions",
    "ReplyingRuntime",
    "Runtime",
    "Sampling",
    "SamplingOptions",
    "ScoringRuntime",
    "TextRuntime",
    "TokenScore",
    "TokenizingRuntime",
    "ToolCall",
    "choose_runtime",
    "load",
    "parse_option",
    "refuse_unknown_options",
    "until",
]
