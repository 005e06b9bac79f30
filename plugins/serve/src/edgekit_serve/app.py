"""The application that serves one model, or several."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import attrs
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from edgekit.runtime import Runtime
from edgekit_serve.guard import Guard
from edgekit_serve.metrics import Metrics
from edgekit_serve.models import Model, Models
from edgekit_serve.routes import Routes
from edgekit_serve.settings import Settings
from edgekit_serve.traces import Trace
from edgekit_serve.wire import ApiError


def create_app(
    runtime: Runtime,
    settings: Settings | None = None,
    *,
    failed: Callable[[], None] = lambda: None,
    models: Sequence[Model] = (),
    trace: Trace | None = None,
) -> Starlette:
    """Return an ASGI application around a runtime, which it closes at shutdown.

    Args:
        runtime: of any plugin; the protocols that it implements besides `edgekit.runtime.Runtime` determine the routes.
        settings: limits and names; None for the defaults.
        failed: called when the runtime no longer computes.
        models: where the server has several: all of them; the runtime is that of the first.
        trace: makes a span of each request; see `edgekit_serve.traces.trace_to`.

    Raises:
        UsageError: two models of one name, or one that is larger than `Settings.memory`.
    """
    limits, metrics = settings or Settings(), Metrics()

    def serve(name: str, runtime: Runtime) -> Routes:
        return Routes(runtime, attrs.evolve(limits, model=name), failed, metrics)

    served: Routes | Models
    if models:
        served = Models(models, limits, serve, metrics)
        served.start(models[0], runtime)
    else:
        served = serve(limits.model, runtime)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        served.close()

    app = Starlette(
        routes=served.table(),
        middleware=[Middleware(cast(Any, Guard), settings=limits, metrics=metrics, trace=trace)],
        exception_handlers={HTTPException: _unknown_route},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


def _unknown_route(request: Request, error: Exception) -> Response:
    raise _http(cast(HTTPException, error))


def _http(error: HTTPException) -> ApiError:
    code = {404: "unknown_route", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    return ApiError(error.status_code, str(error.detail), code, headers=error.headers)


__all__ = ["create_app"]
