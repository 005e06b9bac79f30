"""Requests that generate no text: ranking documents, tokenizing and detokenizing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import attrs
import numpy as np

from edgekit.typing import F32
from edgekit_serve.fields import Fields
from edgekit_serve.requests import IGNORED, LARGEST_ID, adapters, model
from edgekit_serve.settings import Settings
from edgekit_serve.wire import Json, refused

#: Largest numbers of documents and of token ids in a request.
MOST_DOCUMENTS, MOST_IDS = 256, 1 << 16


@attrs.frozen
class RankRequest:
    """A request to rank documents by their similarity to a query, as in Jina's and Cohere's APIs."""

    query: str = attrs.field(repr=False)
    documents: list[str] = attrs.field(repr=False)
    most: int
    shows: bool
    lora: Mapping[str, float] = attrs.field(factory=dict)

    @classmethod
    def of(cls, given: Json, settings: Settings) -> Self:
        """Return the request of a parsed body; raises `ApiError` if a field is invalid or unsupported."""
        fields = Fields(given, settings.lenient)
        model(fields, settings)
        query, documents = fields.text("query"), _documents(fields.take("documents"))
        if not query:
            raise refused("query must be a text, not empty", "query")
        most = fields.integer("top_n", 1, 1 << 20) or len(documents)
        shows = fields.take("return_documents")
        if not isinstance(shows, bool | None):
            raise refused("return_documents must be true or false", "return_documents")
        lora = adapters(fields, settings)
        fields.ignore(IGNORED)
        fields.done()
        return cls(query, documents, min(most, len(documents)), shows is not False, lora)


def _documents(given: Any) -> list[str]:
    texts: list[Any] = (
        [each.get("text") if isinstance(each, dict) else each for each in given] if isinstance(given, list) else []
    )
    if not 0 < len(texts) <= MOST_DOCUMENTS or not all(isinstance(each, str) and each for each in texts):
        raise refused(f"documents must be a list of 1 to {MOST_DOCUMENTS} texts, none of them empty", "documents")
    return texts


def ranked(asked: RankRequest, vectors: Sequence[F32], name: str, tokens: int) -> Json:
    """Return the response with the documents in descending order of their cosine similarity to the query.

    Args:
        asked: the request.
        vectors: the embeddings of the query and of each document, scaled to length 1.
        name: the model's name.
        tokens: number of tokens in all texts.
    """
    query, *others = vectors
    scores = [float(np.dot(query, vector)) for vector in others]
    order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))[: asked.most]
    results: list[Json] = [{"index": index, "relevance_score": scores[index]} for index in order]
    if asked.shows:
        results = [{**result, "document": {"text": asked.documents[int(result["index"])]}} for result in results]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "model": name, "results": results, "usage": usage}


@attrs.frozen
class TokenizeRequest:
    """A request to tokenize a text, in the field ``prompt`` (vLLM's API) or ``content`` (llama.cpp's)."""

    text: str = attrs.field(repr=False)

    @classmethod
    def of(cls, given: Json, settings: Settings) -> Self:
        """Return the request of a parsed body; raises `ApiError` if a field is invalid or unsupported."""
        fields = Fields(given, settings.lenient)
        model(fields, settings)
        fields.rename("content", "prompt")
        text = fields.text("prompt")
        if text is None:
            raise refused("prompt must be a text", "prompt")
        for name in ("add_special_tokens", "add_special"):
            fields.only(name, True)
        fields.only("return_token_strs", False)
        fields.ignore(["lora"])  # adapters do not change the tokenizer
        fields.done()
        return cls(text)


@attrs.frozen
class DetokenizeRequest:
    """A request to convert token ids to text."""

    tokens: list[int] = attrs.field(repr=False)

    @classmethod
    def of(cls, given: Json, settings: Settings) -> Self:
        """Return the request of a parsed body; raises `ApiError` if a field is invalid or unsupported."""
        fields = Fields(given, settings.lenient)
        model(fields, settings)
        tokens = fields.integers("tokens", MOST_IDS, LARGEST_ID)
        fields.ignore(["lora"])
        fields.done()
        return cls(tokens)


__all__ = ["MOST_DOCUMENTS", "MOST_IDS", "DetokenizeRequest", "RankRequest", "TokenizeRequest", "ranked"]
