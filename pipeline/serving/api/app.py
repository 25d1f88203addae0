"""The HTTP application: routes, and what surrounds them.

In: served models, limits, the names under which they are served, perhaps a token. Out: an ASGI application:

    Observed (errors as JSON, log, metrics) > Guard (Host, Origin, token) > Routed (routes) > Endpoint (one request)
"""

import contextlib
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from starlette.routing import Route, Router

from pipeline.serving.api.calls import Endpoint
from pipeline.serving.api.chat import chat
from pipeline.serving.api.completions import completions
from pipeline.serving.api.embeddings import embeddings
from pipeline.serving.api.errors import ApiError, shown
from pipeline.serving.api.guard import Guard
from pipeline.serving.api.limits import Limits
from pipeline.serving.api.loaded import ANSWER, CHAT, CLASSIFY, COMPLETIONS, EMBEDDINGS, EXTRACT
from pipeline.serving.api.metrics import Metrics
from pipeline.serving.api.models import ModelRoutes
from pipeline.serving.api.observed import Observed, WriteLine
from pipeline.serving.api.pages import page_routes
from pipeline.serving.api.served import ServedModels
from pipeline.serving.api.tasks import answer, classify, extract
from pipeline.serving.same_origin import Message, Receive, Send

ENDPOINTS = {
    CHAT: chat,
    COMPLETIONS: completions,
    EMBEDDINGS: embeddings,
    CLASSIFY: classify,
    EXTRACT: extract,
    ANSWER: answer,
}
Lifespan = Callable[[Any], contextlib.AbstractAsyncContextManager[None]]


def create_app(
    served: ServedModels,
    limits: Limits | None = None,
    *,
    hosts: Collection[str] = (),
    token: str | None = None,
    write_line: WriteLine | None = None,
    logs_texts: bool = False,
    lifespan: Lifespan | None = None,
) -> Observed:
    """`hosts`: names that requests may be for, besides those of this machine. `token`: None = none is needed.

    `write_line` gets a line of JSON for every request. `lifespan`: what surrounds the life of the application.
    """
    limits, metrics, models = limits or Limits(), Metrics(served), ModelRoutes(served)
    routes = [
        Route("/v1/models", models.all),
        Route("/v1/models/{name:path}", models.one),
        Route("/healthz", models.health),
        Route("/readyz", models.readiness),
        Route("/metrics", metrics.page),
        *(Route(path, Endpoint(one, served, limits), methods=["POST"]) for path, one in ENDPOINTS.items()),
        *page_routes(),
    ]
    router = Router(routes, redirect_slashes=False, lifespan=lifespan or _nothing)
    guarded = Guard(app=Routed(router), hosts=hosts, token=token)
    return Observed(app=guarded, metrics=metrics, write_line=write_line, logs_texts=logs_texts)


@contextlib.asynccontextmanager
async def _nothing(app: Any) -> AsyncIterator[None]:
    del app
    yield


@dataclass(frozen=True, slots=True)
class Routed:
    """The routes; an unknown one or a wrong method is an ApiError. Starlette's application would answer errors by
    itself, in text."""

    router: Router

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        try:
            await self.router({**scope, "app": self}, receive, send)  # with an `app`, the router raises
        except HTTPException as error:
            path, headers = shown(scope["path"]), dict(error.headers or {})
            told = f"there is nothing at {path}; the routes are {', '.join(ENDPOINTS)} and /v1/models"
            if error.status_code == 405:
                told = f"{path} answers {headers.get('Allow', 'another method')}, not {scope['method']}"
            code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code)
            raise ApiError(error.status_code, told, code=code, headers=headers) from error
