"""What a served model is in memory: a decoder that writes, an encoder that embeds, or the predictor of a task.

In: what was found for a name (a folder with what it contains). Out: a TextModel, an EmbeddingModel or a TaskModel,
loaded and able to answer; `close` ends its threads. A decoder has an Engine, which many requests share. Encoders and
predictors compute in one thread of their own, piece by piece, so that requests take turns.

torch is imported where it is used, so that a mistake on the command line is reported at once.
"""

import asyncio
import contextlib
import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from model.data.tokenizer import TOKENIZER, load_model_tokenizer
from pipeline.serving.api.errors import busy, unavailable, wrong
from pipeline.serving.api.limits import Limits
from pipeline.serving.predictor import Predictor
from pipeline.store.store import verify

if TYPE_CHECKING:
    from model.generation.constraints import Constraint

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
CLASSIFY, EXTRACT, ANSWER = "/v1/classify", "/v1/extract", "/v1/answer"
ROUTES = {"classify": CLASSIFY, "tag": EXTRACT, "answer": ANSWER}  # by the command of a kind of task
SCHEMAS_KEPT = 16
TURN_SECONDS = 0.1  # how long a request computes before another one has its turn, where its rows are that quick
MOST_AT_ONCE = 64  # rows
RETRY_SECONDS = 2.0  # to a client that finds the queue of a model without an engine full
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What a name stands for at the moment."""

    key: str  # another one means another model
    folder: Path
    version: str  # for people
    kind: str = ""  # of task; empty for a model that is of no task
    command: str = ""  # of ROUTES
    predictor: type[Predictor] | None = None
    writes_text: bool = False  # whether a task's model is a language model, which also chats
    cleanup: Callable[[], None] = lambda: None  # once the model is not needed any more


class Model:
    """What every loaded model tells of itself."""

    kind: str
    routes: tuple[str, ...]

    def about(self) -> dict[str, Any]:
        """For programs that make a form for the model."""
        return {"kind": self.kind, "routes": list(self.routes)}

    def state(self) -> dict[str, float]:
        """Numbers for the metrics: slots, slots_busy, waiting."""
        return {}

    @property
    def is_running(self) -> bool:
        """False once its thread has ended by a fault, so that it can't answer any more."""
        return True

    def close(self) -> None:
        """Ends the threads; what is still running is given up."""


def load(found: Found, limits: Limits) -> Model:
    """Raises ValueError when the folder contains no model that can be served, or a damaged one."""
    from model.network.registry import read_config

    verify(found.folder, whole=True)
    description, _ = read_config(found.folder)
    if found.predictor is not None and not found.writes_text:
        return TaskModel(found, limits)
    if description["kind"] == "decoder":
        return TextModel(found, limits)
    if description["kind"] in ("encoder", "masked_lm"):
        return EmbeddingModel(found, limits)
    raise ValueError(f"{found.folder} contains a {description['kind']}, and it is not known for which task")


class TextModel(Model):
    """A decoder with its chat template."""

    def __init__(self, found: Found, limits: Limits) -> None:
        from model.data.chat import load_chat_template
        from model.generation.decode import pack
        from model.network.registry import load_decoder
        from model.training.placement import for_generation
        from pipeline.serving.engine import Engine
        from pipeline.serving.generate import own_system_message

        decoder = for_generation(load_decoder(found.folder))
        self.cfg = decoder.cfg
        self.tokenizer = load_model_tokenizer(found.folder, decoder.cfg.vocab_size)
        self.template = load_chat_template(self.tokenizer, found.folder / TOKENIZER)
        self.has_own_template = (found.folder / TOKENIZER / "chat_template.jinja").is_file()
        self.system = own_system_message(found.folder)
        self.kind = found.kind or "decoder"
        self.answers = found.predictor if found.command == "answer" else None
        self.routes = (CHAT, COMPLETIONS, *([ANSWER] if self.answers else []))
        self.engine = Engine(
            pack(decoder, limits.n_slots),
            self.tokenizer.decode_bytes,
            n_slots=limits.n_slots,
            max_waiting=limits.max_waiting,
        )
        self._schema_constraint = functools.lru_cache(maxsize=SCHEMAS_KEPT)(self._made_constraint)

    @property
    def context(self) -> int:
        return self.cfg.max_seq_len

    @functools.cached_property
    def _text_tokens(self) -> Any:
        from model.generation.text_tokens import TextTokens

        return TextTokens(self.tokenizer)

    def json_constraint(self, schema: Any = None) -> "Constraint":
        """A value of JSON, or of a schema. Raises ValueError for a schema that is not supported."""
        return self._schema_constraint(json.dumps(schema))

    def _made_constraint(self, schema: str) -> "Constraint":
        from model.generation.constraints import json_value

        return json_value(self._text_tokens, json.loads(schema))

    def about(self) -> dict[str, Any]:
        inputs = {"inputs": dict(self.answers.inputs), "outputs": dict(self.answers.outputs)} if self.answers else {}
        template = "own" if self.has_own_template else "alpaca"
        about = {"context": self.context, "chat_template": template, "system": self.system}
        return {**super().about(), **about, **inputs}

    def state(self) -> dict[str, float]:
        now = self.engine.state
        return {"slots": now.n_slots, "slots_busy": now.n_rows, "waiting": now.n_waiting}

    @property
    def is_running(self) -> bool:
        return self.engine.state.is_running

    def close(self) -> None:
        self.engine.close()


class Worker:
    """One thread that computes for a model. Requests take turns piece by piece; too many at once are refused."""

    def __init__(self, max_waiting: int) -> None:
        self.max_waiting, self.n_inside = max_waiting, 0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="gristmill-model")

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A place in the queue for a request. Raises ApiError when there is none."""
        if self.n_inside > self.max_waiting:
            raise busy(f"{self.n_inside} requests of this model are waiting; try again later", RETRY_SECONDS)
        self.n_inside += 1
        try:
            yield
        finally:
            self.n_inside -= 1

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)

    def state(self) -> dict[str, float]:
        busy_now = min(1, self.n_inside)
        return {"slots": 1, "slots_busy": busy_now, "waiting": self.n_inside - busy_now}

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


class EmbeddingModel(Model):
    """An encoder, whose mean over the tokens of a text is its embedding."""

    AT_ONCE = 32  # texts, after which another request has its turn

    def __init__(self, found: Found, limits: Limits) -> None:
        from model.network.registry import load_encoder
        from model.training.placement import for_evaluation

        self.model = for_evaluation(load_encoder(found.folder))
        self.tokenizer = load_model_tokenizer(found.folder, self.model.cfg.vocab_size)
        self.kind, self.routes = "encoder", (EMBEDDINGS,)
        self.worker = Worker(limits.max_waiting)

    @property
    def context(self) -> int:
        return self.model.cfg.max_seq_len

    @property
    def width(self) -> int:
        return self.model.cfg.d_model

    def about(self) -> dict[str, Any]:
        return {**super().about(), "context": self.context, "dimensions": self.width}

    def state(self) -> dict[str, float]:
        return self.worker.state()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, with those that the model expects around it."""
        opening, closing = self.tokenizer.opening, self.tokenizer.closing
        return [[*opening, *ids, *closing] for ids in self.tokenizer.encode_batch(list(texts))]

    def cut(self, ids: Sequence[int]) -> list[int]:
        """The ids of a text, without its end where it is longer than the model reads."""
        closing = list(self.tokenizer.closing)
        return list(ids) if len(ids) <= self.context else [*ids[: self.context - len(closing)], *closing]

    def embed(self, ids: Sequence[Sequence[int]]) -> np.ndarray:
        """(N, D) float32, each of length 1."""
        from model.generation.embed import embed_tokens

        return embed_tokens(self.model, [np.asarray(one, np.int64) for one in ids])

    def close(self) -> None:
        self.worker.close()


class TaskModel(Model):
    """The predictor of a task."""

    def __init__(self, found: Found, limits: Limits) -> None:
        if found.predictor is None or found.command not in ROUTES:
            raise ValueError(f"{found.folder} contains a model of a task of which nothing is known")
        self.predictor = found.predictor(found.folder)
        self.kind, self.routes = found.kind, (ROUTES[found.command],)
        self.worker = Worker(limits.max_waiting)
        self.at_once = 1  # rows, after which another request has its turn; by how long the last ones took

    @property
    def labels(self) -> list[str] | None:
        prompted = getattr(self.predictor, "prompted", None)
        labels = getattr(self.predictor, "labels", None) if prompted is None else prompted.prompt.labels
        return None if labels is None else [str(one) for one in labels]

    def about(self) -> dict[str, Any]:
        columns: dict[str, Any] = {
            "inputs": dict(self.predictor.inputs),
            "outputs": dict(self.predictor.outputs),
            "optional_inputs": dict(getattr(self.predictor, "optional_inputs", {})),
        }
        return {**super().about(), **columns, **({} if self.labels is None else {"labels": self.labels})}

    def state(self) -> dict[str, float]:
        return self.worker.state()

    def answer(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The answer to each row, with the probability of every label where the task has labels for a whole text."""
        started = time.perf_counter()
        found = self.predictor.examine(rows)
        self._adapt(len(rows), time.perf_counter() - started)
        answers = [{name: one[name] for name in self.predictor.outputs} for one in found]
        for answer, one in zip(answers, found, strict=True):
            of_labels = one.get("of_labels", None if "probabilities" in answer else one.get("probabilities"))
            if of_labels is not None and self.labels:
                answer["label_probabilities"] = dict(zip(self.labels, map(float, of_labels), strict=True))
        return answers

    def _adapt(self, n_rows: int, seconds: float) -> None:
        if n_rows == self.at_once:
            longer = 2 * self.at_once if seconds < TURN_SECONDS else self.at_once // 2
            self.at_once = max(1, min(MOST_AT_ONCE, longer))

    def close(self) -> None:
        self.worker.close()


@contextlib.contextmanager
def faults_told(param: str) -> Iterator[None]:
    """What a model says of its input becomes an ApiError, and so does memory that ran out."""
    from model.training.memory import OutOfMemory

    try:
        yield
    except OutOfMemory as error:
        raise unavailable(str(error), "out_of_memory", RETRY_SECONDS) from error
    except ValueError as error:
        raise wrong(f"{param}: {error}", param) from error


def routed(model: Model, route: str, name: str) -> None:
    """Raises ApiError unless the model answers at this route."""
    if route not in model.routes:
        raise wrong(
            f"the model {name!r} ({model.kind}) does not answer at {route}; use {' or '.join(model.routes)}",
            "model",
            "wrong_endpoint",
        )
