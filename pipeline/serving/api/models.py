"""GET /v1/models, /v1/models/{name}, /healthz and /readyz: what is served, and whether the server can answer.

A model object has OpenAI's fields and an object `gristmill` with what a program needs to make a form for it: the kind
of model, the routes that it answers at, its inputs, outputs and labels, its context, and which version it is.
"""

import math
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pipeline.serving.api.errors import ApiError, shown, unavailable
from pipeline.serving.api.served import DRAINING_SECONDS, LOADING_SECONDS, ServedModels

OWNER = "gristmill"


def model_object(served: ServedModels, name: str) -> dict[str, Any]:
    serving = served.serving.get(name)
    about: dict[str, Any] = {"ready": False, "routes": []}
    if serving is not None:
        about = {"ready": True, "version": serving.found.version, **serving.model.about()}
    created = 0 if serving is None else math.floor(serving.loaded_at)
    return {"id": name, "object": "model", "created": created, "owned_by": OWNER, "gristmill": about}


class ModelRoutes:
    def __init__(self, served: ServedModels) -> None:
        self.served = served

    async def all(self, request: Request) -> Response:
        request.scope["noted"].route = "/v1/models"
        return JSONResponse({"object": "list", "data": [model_object(self.served, one) for one in self.served.names]})

    async def one(self, request: Request) -> Response:
        request.scope["noted"].route = "/v1/models/{name}"
        name = request.path_params["name"]
        if name not in self.served.sources:
            told = f"the model {shown(name)!r} is not served here; served are {', '.join(self.served.names)}"
            raise ApiError(404, told, param="model", code="model_not_found")
        return JSONResponse(model_object(self.served, name))

    async def health(self, request: Request) -> Response:
        """The process answers, and no model has stopped."""
        request.scope["noted"].route = "/healthz"
        if stopped := [name for name, one in self.served.serving.items() if not one.model.is_running]:
            raise unavailable(f"{', '.join(stopped)} stopped by a fault; start the server again", "stopped", 60)
        return JSONResponse({"status": "ok"})

    async def readiness(self, request: Request) -> Response:
        """Every model is loaded, and the server is not being stopped."""
        request.scope["noted"].route = "/readyz"
        if self.served.is_draining:
            raise unavailable("the server is being stopped", "draining", DRAINING_SECONDS)
        if not self.served.is_ready:
            missing = [name for name in self.served.names if name not in self.served.serving]
            raise unavailable(f"loading {', '.join(missing)}", "model_loading", LOADING_SECONDS)
        return JSONResponse({"status": "ready", "models": self.served.names})
