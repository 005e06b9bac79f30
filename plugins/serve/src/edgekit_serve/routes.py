"""The routes: what a client can ask of one loaded model."""

from __future__ import annotations

import time
from base64 import b64encode
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import aclosing, suppress
from importlib.util import find_spec
from typing import TypeVar, cast

import attrs
import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edgekit.runtime import (
    AdaptingRuntime,
    ChatRuntime,
    DetokenizingRuntime,
    EmbeddingRuntime,
    ReplyingRuntime,
    Runtime,
    ScoringRuntime,
    TokenizingRuntime,
    TokenScore,
)
from edgekit.runtime.chat import has_template
from edgekit.runtime.text import TextRuntime
from edgekit.typing import F32
from edgekit_serve import body, fields, messages, metrics, replies, responses, texts
from edgekit_serve.engine import Engine, Ticket
from edgekit_serve.generate import ANSWER, Answer, Asked, Begin, attended
from edgekit_serve.replies import Shape
from edgekit_serve.requests import AnswerOptions, ChatRequest, CompletionRequest, EmbeddingRequest, Prompt
from edgekit_serve.settings import Settings
from edgekit_serve.texts import DetokenizeRequest, RankRequest, TokenizeRequest
from edgekit_serve.wire import HEADERS, ApiError, Json, refused

Given = TypeVar("Given")
Item = TypeVar("Item")
#: Key of a request's body in its scope, where that has been read: the bytes, and the object.
PARSED = "edgekit_serve.parsed"
#: Path of each request with a body -> the name of its handler in `Routes`.
POSTS = {
    "/v1/completions": "complete",
    "/v1/chat/completions": "chat",
    "/v1/embeddings": "embed",
    "/v1/responses": "respond",
    "/v1/messages": "message",
    "/v1/rerank": "rank",
    "/tokenize": "tokenize",
    "/detokenize": "detokenize",
}


class Routes:
    """The handlers of the routes, for one model.

    Args:
        runtime: of any plugin.
        settings: limits, and the model's name.
        failed: called when the runtime no longer computes.
        shared: the metrics of the server; None for new ones.
    """

    def __init__(
        self,
        runtime: Runtime,
        settings: Settings,
        failed: Callable[[], None],
        shared: metrics.Metrics | None = None,
    ) -> None:
        adapters = tuple(runtime.adapters()) if isinstance(runtime, AdaptingRuntime) else ()
        self.runtime, self.settings = runtime, attrs.evolve(settings, adapters=adapters)
        self.shared = shared or metrics.Metrics()
        self.engine = Engine(runtime, settings.parallel, settings.waiting, failed)
        self.metrics = self.shared.of(settings.model, self.engine)
        self.started, self.context, self.abilities = int(time.time()), _context(runtime), _abilities(runtime)

    def table(self) -> list[Route]:
        """Return the routes: paths, methods and handlers."""
        return [
            Route("/health", self.health),
            Route("/metrics", self.show_metrics),
            Route("/v1/models", self.models),
            Route("/v1/models/{name}", self.model),
            Route("/lora-adapters", self.adapters),
            *(Route(path, handler, methods=["POST"]) for path, handler in self.handlers().items()),
        ]

    def handlers(self) -> dict[str, Callable[[Request], Awaitable[Response]]]:
        """Return the handlers of requests with a body, by path."""
        return {path: getattr(self, name) for path, name in POSTS.items()}

    def close(self) -> None:
        """Wait for running work, and release the model."""
        self.engine.close()
        self.shared.forget(self.settings.model)

    async def health(self, request: Request) -> Response:
        """Return 200 if the model computes, else 503."""
        well = self.engine.well
        return JSONResponse({"status": "ok" if well else "failed"}, 200 if well else 503, HEADERS)

    async def show_metrics(self, request: Request) -> Response:
        """Return the metrics in Prometheus's text format."""
        return Response(self.shared.text(), headers={**HEADERS, "content-type": metrics.CONTENT_TYPE})

    async def models(self, request: Request) -> Response:
        """Return the list of models: the model, and the model with each adapter."""
        cards = [self.card(), *map(self._adapted_card, self.settings.adapters)]
        return JSONResponse({"object": "list", "data": cards}, headers=HEADERS)

    async def model(self, request: Request) -> Response:
        """Return the card of the model, or of the model with an adapter; 404 if the path has another name."""
        name = request.path_params["name"]
        if name in self.settings.adapters:
            return JSONResponse(self._adapted_card(name), headers=HEADERS)
        if name != self.settings.model:
            raise ApiError(404, f"no such model; this server has {self.settings.model!r}", "model_not_found")
        return JSONResponse(self.card(), headers=HEADERS)

    async def adapters(self, request: Request) -> Response:
        """Return the adapters that the field ``lora`` may name; a request that names none gets none."""
        listed = [{"id": number, "name": name, "scale": 0.0} for number, name in enumerate(self.settings.adapters)]
        return JSONResponse(listed, headers=HEADERS)

    def _adapted_card(self, name: str) -> Json:
        return {**self.card(), "id": name, "parent": self.settings.model}

    def _with(self, lora: Mapping[str, float]) -> Runtime:
        """Return the runtime, or one of the same model with adapters."""
        return cast(AdaptingRuntime, self.runtime).adapted(lora) if lora else self.runtime

    def card(self) -> Json:
        """Return what clients are told of the model."""
        card = {"id": self.settings.model, "object": "model", "created": self.started, "owned_by": "edgekit"}
        context = {"context_length": self.context, "max_model_len": self.context} if self.context else {}
        return {**card, **context, "capabilities": self.abilities}

    async def complete(self, request: Request) -> Response:
        """Continue one or several prompts."""
        asked = await self._given(request, CompletionRequest.of)
        texts = [
            Asked(self._continuing(prompt, asked.requested, number), place, self._echoing(asked, prompt))
            for place, prompt in enumerate(asked.prompts)
            for number in range(asked.requested.choices)
        ]
        return replies.reply(self._answer(request, asked.requested, texts), replies.Completion(self.settings.model))

    def _continuing(self, prompt: Prompt, requested: AnswerOptions, number: int) -> Begin:
        runtime, options = self._with(requested.lora), self._options(requested, number)
        return lambda most: runtime.stream(prompt, max_tokens=most, **options)

    def _options(self, requested: AnswerOptions, number: int) -> Json:
        """Return the options of a text, with its tokens' scores if the confidence is recorded."""
        recorded = {"logprobs": 0} if self.settings.confidence else {}
        return {**recorded, **requested.of_choice(number)}

    def _echoing(self, asked: CompletionRequest, prompt: Prompt) -> Callable[[], tuple[str, list[TokenScore]]] | None:
        """Return a function that yields the prompt as text and, if requested, its tokens' scores; None without echo."""
        runtime, count = self._with(asked.requested.lora), asked.requested.options.get("logprobs")
        if not asked.echo:
            return None
        if not isinstance(prompt, str) and not isinstance(runtime, DetokenizingRuntime):
            raise self._lacks("echo of token ids")
        if count is not None and not (isinstance(runtime, ScoringRuntime) and isinstance(runtime, TokenizingRuntime)):
            raise self._lacks("log probabilities of prompts")

        def echo() -> tuple[str, list[TokenScore]]:
            text = prompt if isinstance(prompt, str) else cast(DetokenizingRuntime, runtime).decode(prompt)
            if count is None:
                return text, []
            ids = cast(TokenizingRuntime, runtime).encode(prompt) if isinstance(prompt, str) else prompt
            return text, cast(ScoringRuntime, runtime).scores(ids, count)

        return echo

    async def chat(self, request: Request) -> Response:
        """Answer a chat conversation."""
        asked = await self._given(request, ChatRequest.of)
        return self._replied(request, asked, replies.Chat(self.settings.model))

    async def respond(self, request: Request) -> Response:
        """Answer a request of OpenAI's Responses API."""
        asked = await self._given(request, responses.request_of)
        return self._replied(request, asked.chat, responses.Response(self.settings.model, asked))

    async def message(self, request: Request) -> Response:
        """Answer a request of Anthropic's Messages API."""
        asked = await self._given(request, messages.request_of)
        return self._replied(request, asked, messages.Message(self.settings.model))

    def _replied(self, request: Request, asked: ChatRequest, shape: Shape) -> Response:
        requested = asked.requested
        texts = [Asked(self._answering(asked, number)) for number in range(requested.choices)]
        return replies.reply(self._answer(request, requested, texts), shape)

    def _answering(self, asked: ChatRequest, number: int) -> Begin:
        runtime, options = self._with(asked.requested.lora), self._options(asked.requested, number)
        if isinstance(runtime, ReplyingRuntime):
            return lambda most: runtime.reply(asked.messages, max_tokens=most, **options, **asked.reply)
        if not isinstance(runtime, ChatRuntime):
            raise self._lacks("chat")
        if asked.reply:
            raise self._lacks(f"{next(iter(asked.reply))} in chats")
        return lambda most: runtime.chat_stream(asked.messages, max_tokens=most, **options)

    async def embed(self, request: Request) -> Response:
        """Return the embeddings of texts."""
        if not isinstance(self.runtime, EmbeddingRuntime):
            raise self._lacks("embeddings")
        asked = await self._given(request, EmbeddingRequest.of)
        made = await self._vectors(request, asked.lora, asked.texts)
        vectors = [(_shortened(vector, asked.dimensions), count) for vector, count in made]
        return JSONResponse(self._embeddings(vectors, asked.base64), headers=HEADERS)

    async def rank(self, request: Request) -> Response:
        """Return documents ranked by their similarity to a query."""
        if not isinstance(self.runtime, EmbeddingRuntime):
            raise self._lacks("embeddings, which order documents")
        asked = await self._given(request, RankRequest.of)
        made = await self._vectors(request, asked.lora, [asked.query, *asked.documents])
        tokens = sum(count for _, count in made)
        self.metrics.read(tokens)
        return JSONResponse(
            texts.ranked(asked, [vector for vector, _ in made], self.settings.model, tokens), headers=HEADERS
        )

    async def tokenize(self, request: Request) -> Response:
        """Return the token ids of a text."""
        runtime = self.runtime
        if not isinstance(runtime, TokenizingRuntime):
            raise self._lacks("tokenization")
        asked = await self._given(request, TokenizeRequest.of)
        ids = await self._one(request, lambda: runtime.encode(asked.text))
        context = {"max_model_len": self.context} if self.context else {}
        return JSONResponse({"tokens": ids, "count": len(ids), **context}, headers=HEADERS)

    async def detokenize(self, request: Request) -> Response:
        """Return the text of token ids."""
        runtime = self.runtime
        if not isinstance(runtime, DetokenizingRuntime):
            raise self._lacks("detokenization")
        asked = await self._given(request, DetokenizeRequest.of)
        text = await self._one(request, lambda: runtime.decode(asked.tokens))
        return JSONResponse({"prompt": text, "content": text}, headers=HEADERS)

    async def _vectors(
        self, request: Request, lora: Mapping[str, float], given: Sequence[Prompt]
    ) -> list[tuple[F32, int]]:
        return await self._all(request, _vectors(cast(EmbeddingRuntime, self._with(lora)), given))

    async def _one(self, request: Request, work: Callable[[], Item]) -> Item:
        (made,) = await self._all(request, (work() for _ in range(1)))
        return made

    async def _all(self, request: Request, work: Generator[Item]) -> list[Item]:
        """Return all items of a task that runs on the model; cancel it if the client disconnects."""
        ticket = Ticket()
        made = self.engine.run(work, ticket)
        try:
            async with attended(request.receive, self.settings.seconds), aclosing(made) as items:
                collected = [item async for item in items]
        except TimeoutError:
            late = f"not done within {self.settings.seconds:g} seconds; send fewer texts"
            raise ApiError(504, late, "timeout") from None
        self.metrics.waited(ticket.waited)
        return collected

    def _embeddings(self, made: list[tuple[F32, int]], base64: bool) -> Json:
        tokens = sum(count for _, count in made)
        self.metrics.read(tokens)
        data = [
            {"object": "embedding", "index": index, "embedding": _encoded(vector) if base64 else vector.tolist()}
            for index, (vector, _) in enumerate(made)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "data": data, "model": self.settings.model, "usage": usage}

    async def _given(self, request: Request, of: Callable[[Json, Settings], Given]) -> Given:
        """Return the parsed body. A large one is parsed in a thread, so that other requests are served meanwhile."""
        parsed = request.scope.get(PARSED)
        if parsed is not None:  # the server has several models, and looked for the name
            return await fields.aside(parsed[0], lambda: of(parsed[1], self.settings))
        data = await body.read(request, self.settings)
        return await fields.aside(data, lambda: of(fields.parse(data), self.settings))

    def _lacks(self, what: str) -> ApiError:
        return ApiError(400, f"the runtime {self.runtime.name!r} has no {what}", "unsupported_route")

    def _answer(self, request: Request, requested: AnswerOptions, asked: Sequence[Asked]) -> Answer:
        answer = Answer(self.engine, self.metrics, request.url.path, requested, asked, self.settings.seconds)
        request.scope[ANSWER] = answer
        return answer


def _context(runtime: Runtime) -> int | None:
    """Return the size of the context in tokens; None if the runtime does not have the attribute."""
    with suppress(Exception):
        return int(cast(TextRuntime, runtime).context)
    return None


def _abilities(runtime: Runtime) -> list[str]:
    """Return the kinds of requests that the model supports, for its card."""
    answers = isinstance(runtime, ChatRuntime)
    with suppress(Exception):  # the tokenizer cannot be read, or the runtime has no artifact
        answers = answers and has_template(cast(TextRuntime, runtime).artifact)
    able = {
        "completion": True,
        "chat": answers,
        "tools": answers and isinstance(runtime, ReplyingRuntime),
        "structured_output": find_spec("llguidance") is not None,
        "embeddings": isinstance(runtime, EmbeddingRuntime),
        "tokenize": isinstance(runtime, TokenizingRuntime),
    }
    return [name for name, has in able.items() if has]


def _vectors(runtime: EmbeddingRuntime, given: Sequence[Prompt]) -> Generator[tuple[F32, int]]:
    """Return a vector per text, and the number of tokens, an end token included; 0 if the runtime counts none."""
    for text in given:
        yield runtime.embed(text), _count(runtime, text)


def _count(runtime: EmbeddingRuntime, text: Prompt) -> int:
    if not isinstance(text, str):
        return len(text)
    if isinstance(runtime, TextRuntime):
        return len(runtime.whole_ids(text))
    return len(runtime.encode(text)) if isinstance(runtime, TokenizingRuntime) else 0


def _shortened(vector: F32, dimensions: int | None) -> F32:
    """Return the first `dimensions` numbers of a vector, scaled to length 1, as for Matryoshka embeddings.

    Raises:
        ApiError: 400 if the vector is shorter.
    """
    if dimensions is None:
        return vector
    if dimensions > len(vector):
        raise refused(f"dimensions is {dimensions}; the model's vectors have {len(vector)}", "dimensions")
    kept = vector[:dimensions].astype(np.float64)
    return (kept / max(float(np.linalg.norm(kept)), 1e-30)).astype(np.float32)


def _encoded(vector: F32) -> str:
    """Return a vector as little-endian float32 in base64, the encoding that OpenAI's client requests."""
    return b64encode(np.ascontiguousarray(vector, "<f4").tobytes()).decode("ascii")


__all__ = ["PARSED", "POSTS", "Routes"]
