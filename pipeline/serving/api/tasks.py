"""POST /v1/classify, /v1/extract and /v1/answer: what the model of a task says of texts.

In: {"model": ..., "input": ...}; the input is a row or a list of rows; a row is an object with the inputs of the kind
of task (GET /v1/models lists them), or a text if there is one input. The inputs of a single row may also stand beside
"model". Out: {"object": "list", "model": ..., "data": [answers in the order of the rows], "usage": ...}. An answer
has the outputs of the kind, and its index; a classification also has the probability of every label. Offsets are
characters of the text as it was sent. `usage.cut` counts the rows of which the model could not read everything.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from model.data.chat import Message, with_system
from model.generation.sample_config import SampleConfig
from pipeline.serving.api.calls import Call
from pipeline.serving.api.errors import wrong
from pipeline.serving.api.fields import Fields, checked_text
from pipeline.serving.api.limits import Limits
from pipeline.serving.api.loaded import ANSWER, CLASSIFY, EXTRACT, TaskModel, TextModel, routed
from pipeline.serving.api.writing import Written
from pipeline.serving.engine import Job

Row = dict[str, Any]
TYPES = {"string": (str, "a text"), "double": (int | float, "a number"), "long": (int, "a whole number")}
TYPES |= {"boolean": (bool, "true or false")}  # of an input, in MLflow's words


async def classify(call: Call, fields: Fields) -> None:
    await _task(call, fields, CLASSIFY)


async def extract(call: Call, fields: Fields) -> None:
    await _task(call, fields, EXTRACT)


async def answer(call: Call, fields: Fields) -> None:
    await _task(call, fields, ANSWER)


async def _task(call: Call, fields: Fields, route: str) -> None:
    name = call.served.name_for(fields.get("model"), route)
    async with call.served.use(name) as serving:
        model, call.noted.model = serving.model, name
        routed(model, route, name)
        about = model.about()
        rows = rows_of(fields, about["inputs"], call.limits)
        call.noted.texts["rows"] = rows
        if isinstance(model, TextModel):
            answers, n_cut = await _written(call, model, rows)
        else:
            assert isinstance(model, TaskModel)
            answers, n_cut = await _examined(call, model, rows)
        call.noted.texts["answers"] = answers
        data = [{"index": place, **one} for place, one in enumerate(answers)]
        usage = {"rows": len(rows), "cut": n_cut}
        await call.reply({"object": "list", "model": name, "data": data, "usage": usage})


async def _examined(call: Call, model: TaskModel, rows: Sequence[Row]) -> tuple[list[Row], int]:
    answers: list[Row] = []
    with model.worker.place():
        for first in range(0, len(rows), model.AT_ONCE):
            answers += await model.worker.run(model.answer, rows[first : first + model.AT_ONCE])
            call.check_time()
        return answers, await model.worker.run(model.predictor.n_cut, rows)


async def _written(call: Call, model: TextModel, rows: Sequence[Row]) -> tuple[list[Row], int]:
    """The likeliest answer of a language model to each prompt, as its predictor gives it, by the engine."""
    most = model.answers.MOST_NEW_TOKENS  # type: ignore[union-attr]
    jobs, n_cut = await asyncio.to_thread(_jobs, model, rows, most)
    answers: list[Row] = []
    for first in range(0, len(jobs), call.limits.max_choices):
        part = jobs[first : first + call.limits.max_choices]
        written = Written(model, part, call.noted, call.limits.request_seconds)
        answers += [{"answer": one.text} for one in await written.choices()]
        call.check_time()
    return answers, n_cut


def _jobs(model: TextModel, rows: Sequence[Row], n_new: int) -> tuple[list[Job], int]:
    most = max(model.context - n_new, (model.context + 1) // 2)
    asked = [with_system([Message("user", row["prompt"])], model.system) for row in rows]
    prompts = [model.template.prompt(one) for one in asked]
    jobs = []
    for prompt in prompts:
        kept = prompt[-most:]
        cfg = SampleConfig(
            max_new_tokens=min(n_new, model.context - len(kept)),
            temperature=0,
            stop_ids=tuple(sorted(model.template.stops)),
        )
        jobs.append(Job(prompt=kept, cfg=cfg))
    return jobs, sum(len(prompt) > most for prompt in prompts)


def rows_of(fields: Fields, inputs: Mapping[str, str], limits: Limits) -> list[Row]:
    """The rows of a request. Raises ApiError with the place of the one that is wrong."""
    given = fields.get("input")
    if given is None:
        given = {name: fields.get(name) for name in inputs if fields.get(name) is not None}
        if not given:
            fields.required("input", f"a row with {' and '.join(inputs)}, or a list of rows")
    is_list = isinstance(given, list)
    rows = given if is_list else [given]
    if not rows:
        fields.refuse("input", "at least one row")
    if len(rows) > limits.max_texts:
        raise wrong(f"input has {len(rows):,} rows, at most {limits.max_texts:,} are allowed", "input")
    return [_row(one, inputs, f"input[{place}]" if is_list else "input") for place, one in enumerate(rows)]


def _row(given: Any, inputs: Mapping[str, str], place: str) -> Row:
    if isinstance(given, str) and len(inputs) == 1:
        given = {next(iter(inputs)): given}
    if not isinstance(given, dict):
        expected = " and ".join(inputs)
        raise wrong(f"{place} is no {'text or ' if len(inputs) == 1 else ''}object with {expected}", place)
    row = {}
    for name, kind in inputs.items():
        expected, words = TYPES[kind]
        value, param = Fields(given, place).required(name, words), f"{place}.{name}"
        if not isinstance(value, expected) or (kind != "boolean" and isinstance(value, bool)):
            Fields(given, place).refuse(name, words)
        row[name] = checked_text(value, param) if isinstance(value, str) else value
    return row
