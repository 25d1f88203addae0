"""The models that a server has, by name, and their exchange while requests are answered.

In: for each name a source, which says what the name stands for now. Out: a loaded model for each request. A request
holds the model that it began with until its answer is complete; a new version is loaded beside the old one, takes its
place for new requests at once, and the old one is closed when its last request is over. A version that cannot be
loaded leaves the old one where it is.

Everything here runs in the event loop, but for what a source does and for the loading: these run in threads, because
they wait for disks and servers.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipeline.serving.api.errors import ApiError, shown, unavailable
from pipeline.serving.api.loaded import Found, Model

LOADING_SECONDS = 5.0  # after which a client may ask again for a model that is being loaded
DRAINING_SECONDS = 10.0
log = logging.getLogger(__name__)


class Source(Protocol):
    """Where the model of a name comes from."""

    def key(self) -> str:
        """What the name stands for now; quick. Raises ValueError when there is no model, OSError when the server
        that knows does not answer."""
        ...

    def found(self) -> Found:
        """The same with its folder, which may take a download."""
        ...


@dataclass(slots=True)
class Serving:
    """A loaded model and how many requests hold it."""

    name: str
    found: Found
    model: Model
    loaded_at: float = field(default_factory=time.time)
    n_users: int = 0


class ServedModels:
    def __init__(self, sources: Mapping[str, Source], load: Callable[[Found], Model]) -> None:
        self.sources, self._load = dict(sources), load
        self.serving: dict[str, Serving] = {}
        self.retired: list[Serving] = []  # that requests still hold
        self.is_draining = False
        self.on_exchange: Callable[[str, bool], None] = lambda name, succeeded: None
        self._failed: dict[str, str] = {}  # name -> key of a version that could not be loaded

    @property
    def names(self) -> list[str]:
        return list(self.sources)

    @property
    def is_ready(self) -> bool:
        return not self.is_draining and self.serving.keys() == self.sources.keys()

    async def load_all(self) -> None:
        """Raises what a source or the loading raises, with the name of the model."""
        for name in self.sources:
            await self._exchange(name)

    async def watch(self, seconds: float) -> None:
        """Looks for new versions for ever."""
        while True:
            await asyncio.sleep(seconds)
            for name in self.sources:
                await self.look(name)

    async def look(self, name: str) -> bool:
        """Exchanges a model if its name stands for another one now. Returns whether it did; what fails is logged."""
        current, key = self.serving.get(name), ""
        try:
            key = await asyncio.to_thread(self.sources[name].key)
            if (current is not None and key == current.found.key) or self._failed.get(name) == key:
                return False
            await self._exchange(name)
        except Exception as error:
            kept = f"; {current.found.version} stays" if current else ""
            log.error("%s: the model was not exchanged: %s%s", name, " ".join(str(error).split()), kept)
            if key:
                self._failed[name] = key
                self.on_exchange(name, False)
            return False
        log.warning("%s: %s is served from now on", name, self.serving[name].found.version)
        return True

    async def _exchange(self, name: str) -> None:
        found = await asyncio.to_thread(self.sources[name].found)
        try:
            model = await asyncio.to_thread(self._load, found)
        except BaseException:
            found.cleanup()
            raise
        old, self.serving[name] = self.serving.get(name), Serving(name, found, model)
        self._failed.pop(name, None)
        self.on_exchange(name, True)
        if old is not None:
            self.retired.append(old)
            await self._close_if_unused(old)

    async def _close_if_unused(self, serving: Serving) -> None:
        if not serving.n_users and serving in self.retired:
            self.retired.remove(serving)
            await asyncio.shield(asyncio.to_thread(_closed, serving))

    @contextlib.asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[Serving]:
        """The model of a request. Raises ApiError for a name that is not served, and while it is not ready."""
        serving = self._serving(name)
        serving.n_users += 1
        try:
            yield serving
        finally:
            serving.n_users -= 1
            await self._close_if_unused(serving)

    def _serving(self, name: str) -> Serving:
        if name not in self.sources:
            raise ApiError(
                404,
                f"the model {shown(name)!r} is not served here; served are {', '.join(self.names)}",
                param="model",
                code="model_not_found",
            )
        if self.is_draining:
            raise unavailable("the server is being stopped", "draining", DRAINING_SECONDS)
        if (serving := self.serving.get(name)) is None:
            raise unavailable(f"the model {name} is being loaded", "model_loading", LOADING_SECONDS)
        return serving

    def name_for(self, given: Any, route: str) -> str:
        """The model that a request names; without a name the only one that answers at this route."""
        if isinstance(given, str):
            return given
        if given is not None:
            raise ApiError(400, f"model is {shown(given)}, expected the name of a model", param="model")
        able = [name for name, one in self.serving.items() if route in one.model.routes]
        if len(able) == 1:
            return able[0]
        told = ", ".join(able or self.names)
        raise ApiError(400, f"the field 'model' is missing; expected one of {told}", param="model")

    async def close(self) -> None:
        everything, self.serving, self.retired = [*self.serving.values(), *self.retired], {}, []
        for serving in everything:
            await asyncio.to_thread(_closed, serving)


def _closed(serving: Serving) -> None:
    serving.model.close()
    serving.found.cleanup()
