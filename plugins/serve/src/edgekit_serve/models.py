"""Several models in one server: each is loaded at its first request, and the least recently used makes room."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import attrs
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from edgekit.errors import EdgekitError, MemoryShortageError, UsageError
from edgekit.runtime import Runtime
from edgekit_serve import body, fields
from edgekit_serve.metrics import CONTENT_TYPE, Metrics
from edgekit_serve.routes import PARSED, POSTS, Routes
from edgekit_serve.settings import Settings
from edgekit_serve.wire import HEADERS, ApiError, Json

LOG = logging.getLogger("edgekit_serve")
_SOON = {"retry-after": "5"}


@attrs.define(eq=False)
class Model:
    """A model that a server can load.

    Attributes:
        name: for clients.
        nbytes: of its files, which count against `Settings.memory`.
        load: returns it loaded; called in a thread.
        routes: that serve it; None while it is not loaded.
        requests: that are answered with it now.
        used: when a request last asked for it, as a number that increases.
    """

    name: str
    nbytes: int
    load: Callable[[], Runtime] = attrs.field(repr=False)
    routes: Routes | None = attrs.field(default=None, init=False, repr=False)
    requests: int = attrs.field(default=0, init=False)
    used: int = attrs.field(default=0, init=False)


class Models:
    """The models of a server.

    Args:
        models: the first is that of requests that name none.
        settings: limits; `Settings.memory` bounds the models that are loaded at the same time.
        serve: makes the routes of a loaded model.
        metrics: of the server.

    Raises:
        UsageError: two of one name, or a model that is larger than the memory for all.
    """

    def __init__(
        self,
        models: Sequence[Model],
        settings: Settings,
        serve: Callable[[str, Runtime], Routes],
        metrics: Metrics,
    ) -> None:
        self.models, self.settings = {model.name: model for model in models}, settings
        self._serve, self._metrics = serve, metrics
        self._loading, self._clock = asyncio.Lock(), 0
        names = [model.name for model in models]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UsageError(f"two models are named {twice!r}; give each a name of its own, --name once for each")
        for model in models:
            if settings.memory is not None and model.nbytes > settings.memory:
                raise UsageError(
                    f"{model.name} has {model.nbytes:,} bytes, and --memory allows {settings.memory:,}; allow more, "
                    "or leave it out"
                )

    @property
    def well(self) -> bool:
        """Whether the models that are loaded compute."""
        return all(model.routes.engine.well for model in self.models.values() if model.routes is not None)

    def start(self, model: Model, runtime: Runtime) -> None:
        """Serve a model with a runtime that is loaded already."""
        model.routes = self._serve(model.name, runtime)

    def close(self) -> None:
        """Release all models."""
        for model in self.models.values():
            if model.routes is not None:
                model.routes.close()
                model.routes = None

    @asynccontextmanager
    async def loaded(self, name: str | None) -> AsyncIterator[Routes]:
        """The routes of a model, which stays loaded in the block.

        Raises:
            ApiError: 404; there is no such model. 503; it cannot be loaded, or does not fit beside those in use.
        """
        model = self._named(name)
        model.requests += 1  # from here on it is not unloaded
        self._clock += 1
        model.used = self._clock
        try:
            while model.routes is None:
                # A client that hangs up does not stop the loading: its thread would go on, and the model be lost.
                await asyncio.shield(asyncio.ensure_future(self._load(model)))
            yield model.routes
        finally:
            model.requests -= 1

    def _named(self, name: str | None) -> Model:
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            there = ", ".join(map(repr, self.models))
            raise ApiError(
                404, f"the model {name[:80]!r} is not here; this server has {there}", "model_not_found", param="model"
            )
        return self.models[name]

    async def _load(self, model: Model) -> None:
        async with self._loading:
            if model.routes is not None:
                return
            await self._make_room(model)
            LOG.info("loading %s", model.name)
            while model.routes is None:
                try:
                    self.start(model, await asyncio.to_thread(model.load))
                except MemoryShortageError:
                    if not await self._unload_one():
                        raise self._does_not_fit(model) from None
                except EdgekitError as error:
                    LOG.error("%s cannot be loaded: %s", model.name, error)
                    failed = f"the model {model.name!r} cannot be loaded; the server's log says why"
                    raise ApiError(503, failed, "model_not_loaded") from error

    async def _make_room(self, model: Model) -> None:
        if self.settings.memory is None:
            return
        while model.nbytes + sum(m.nbytes for m in self.models.values() if m.routes) > self.settings.memory:
            if not await self._unload_one():
                raise self._does_not_fit(model)

    async def _unload_one(self) -> bool:
        """Release the model that was not asked for for longest; False if all answer requests."""
        idle = [model for model in self.models.values() if model.routes is not None and not model.requests]
        if not idle:
            return False
        model = min(idle, key=lambda model: model.used)
        routes, model.routes = model.routes, None
        assert routes is not None
        LOG.info("unloading %s", model.name)
        await asyncio.to_thread(routes.close)
        return True

    def _does_not_fit(self, model: Model) -> ApiError:
        full = f"the model {model.name!r} is not loaded and does not fit in memory beside those in use; try again later"
        return ApiError(503, full, "model_does_not_fit", headers=_SOON)

    def table(self) -> list[Route]:
        """Return the routes of all models: those that take a body go to the model that it names."""
        return [
            Route("/health", self.health),
            Route("/metrics", self.show_metrics),
            Route("/v1/models", self.list),
            Route("/v1/models/{name}", self.show),
            *(Route(path, _ByModel(self, path), methods=["POST"]) for path in POSTS),
        ]

    async def health(self, request: Request) -> Response:
        """Return 200 if the loaded models compute, else 503."""
        return JSONResponse({"status": "ok" if self.well else "failed"}, 200 if self.well else 503, HEADERS)

    async def show_metrics(self, request: Request) -> Response:
        """Return the metrics in Prometheus's text format."""
        return Response(self._metrics.text(), headers={**HEADERS, "content-type": CONTENT_TYPE})

    async def list(self, request: Request) -> Response:
        """List the models, loaded or not."""
        cards = [self._card(model) for model in self.models.values()]
        return JSONResponse({"object": "list", "data": cards}, headers=HEADERS)

    async def show(self, request: Request) -> Response:
        """Return a model by name."""
        return JSONResponse(self._card(self._named(request.path_params["name"])), headers=HEADERS)

    def _card(self, model: Model) -> Json:
        if model.routes is not None:
            return {**model.routes.card(), "loaded": True}
        return {"id": model.name, "object": "model", "created": 0, "owned_by": "edgekit", "loaded": False}


@attrs.frozen
class _ByModel:
    """Answers the requests of one path with the model that their body names."""

    models: Models
    path: str

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        data = await body.read(Request(scope, receive), self.models.settings)
        given = await fields.aside(data, lambda: fields.parse(data))
        scope[PARSED], name = (data, given), given.get("model")
        # A name that is no text is refused by the routes, as without several models.
        async with self.models.loaded(name if isinstance(name, str) else None) as routes:
            response = await routes.handlers()[self.path](Request(scope, receive))
            await response(scope, receive, send)


__all__ = ["Model", "Models"]
