"""Numbers for Prometheus: requests, their times, tokens, and how busy the models are.

In: what was noted of each request, and the state of the models when they are read. Out: the text that GET /metrics
answers. The values of labels are routes of the application, served models and HTTP statuses, never anything
that a client made up.
"""

from collections.abc import Iterator
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from starlette.requests import Request
from starlette.responses import Response

from pipeline.serving.api.calls import Noted
from pipeline.serving.api.served import ServedModels

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
TEXT = "text/plain; version=0.0.4; charset=utf-8"
STATES = {
    "slots": "Places of a model: texts, or requests, that it works on at a time.",
    "slots_busy": "Places of a model that are taken.",
    "waiting": "Requests that wait for a place.",
}


class Metrics:
    def __init__(self, served: ServedModels) -> None:
        disable_created_metrics()  # when each counter began, once more for each of its labels
        self.registry = CollectorRegistry()
        registry = self.registry
        labels = ["route", "model"]
        self.requests = Counter(
            "gristmill_requests", "Requests by their status.", [*labels, "status"], registry=registry
        )
        self.seconds = Histogram(
            "gristmill_request_seconds", "Time of a request, whole.", labels, buckets=SECONDS, registry=registry
        )
        self.first = Histogram(
            "gristmill_first_token_seconds",
            "Time to the first piece of a text.",
            labels,
            buckets=SECONDS,
            registry=registry,
        )
        self.tokens = Counter(
            "gristmill_tokens", "Tokens: prompt, cached (of those) and written.", ["model", "what"], registry=registry
        )
        self.open = Gauge("gristmill_open_requests", "Requests that are being answered.", registry=registry)
        self.exchanges = Counter(
            "gristmill_exchanges", "Models that were loaded.", ["model", "result"], registry=registry
        )
        registry.register(States(served))  # type: ignore[arg-type]
        ProcessCollector(registry=registry)
        served.on_exchange = lambda name, succeeded: self.exchanges.labels(
            name, "ok" if succeeded else "failed"
        ).inc()

    def note(self, noted: Noted) -> None:
        """Called once, when a request is over."""
        self.requests.labels(noted.route, noted.model, str(noted.status)).inc()
        self.seconds.labels(noted.route, noted.model).observe(noted.seconds)
        if noted.first_token_seconds is not None:
            self.first.labels(noted.route, noted.model).observe(noted.first_token_seconds)
        for what in ("prompt", "cached", "completion"):
            if count := getattr(noted, f"{what}_tokens"):
                self.tokens.labels(noted.model, what).inc(count)

    async def page(self, request: Request) -> Response:
        request.scope["noted"].route = "/metrics"
        return Response(generate_latest(self.registry), media_type=TEXT)


class States:
    """A collector, which asks the models when the metrics are read."""

    def __init__(self, served: ServedModels) -> None:
        self.served = served

    def collect(self) -> Iterator[Any]:
        for name, about in STATES.items():
            family = GaugeMetricFamily(f"gristmill_{name}", about, labels=["model"])
            for model, serving in self.served.serving.items():
                if name in (state := serving.model.state()):
                    family.add_metric([model], state[name])
            yield family
        loaded = GaugeMetricFamily(
            "gristmill_model_loaded_timestamp_seconds", "When the model was loaded.", labels=["model"]
        )
        for model, serving in self.served.serving.items():
            loaded.add_metric([model], serving.loaded_at)
        yield loaded
        retired = GaugeMetricFamily("gristmill_retired_models", "Replaced models that requests still use.")
        retired.add_metric([], len(self.served.retired))
        yield retired
