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
from pipeline.serving.api.errors import shown, wrong
from pipeline.serving.api.fields import Fields, checked_text
from pipeline.serving.api.limits import Limits
from pipeline.serving.api.loaded import ANSWER, CLASSIFY, EXTRACT, TaskModel, TextModel, faults_told
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
    async with call.serving(fields, route) as serving:
        model, name = serving.model, serving.name
        about = model.about()
        fields.refuse_unsupported({"stream": (False,)}, {})
        rows = rows_of(fields, about["inputs"], about.get("optional_inputs", {}), call.limits)
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
    with model.worker.place(), faults_told("input"):
        while len(answers) < len(rows):
            answers += await model.worker.run(model.answer, rows[len(answers) : len(answers) + model.at_once])
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


def rows_of(fields: Fields, inputs: Mapping[str, str], optional: Mapping[str, Any], limits: Limits) -> list[Row]:
    """The rows of a request. Raises ApiError with the place of the one that is wrong."""
    given = fields.get("input")
    if given is None:
        given = {name: fields.get(name) for name in (*inputs, *optional) if fields.get(name) is not None}
        if not given:
            fields.required("input", f"a row with {' and '.join(inputs)}, or a list of rows")
    is_list = isinstance(given, list)
    rows = given if is_list else [given]
    if not rows:
        fields.refuse("input", "at least one row")
    if len(rows) > limits.max_texts:
        raise wrong(f"input has {len(rows):,} rows, at most {limits.max_texts:,} are allowed", "input")
    places = [f"input[{place}]" if is_list else "input" for place in range(len(rows))]
    return [_row(one, inputs, optional, place) for one, place in zip(rows, places, strict=True)]


def _row(given: Any, inputs: Mapping[str, str], optional: Mapping[str, Any], place: str) -> Row:
    if isinstance(given, str) and len(inputs) == 1:
        given = {next(iter(inputs)): given}
    if not isinstance(given, dict):
        expected = " and ".join(inputs)
        raise wrong(f"{place} is no {'text or ' if len(inputs) == 1 else ''}object with {expected}", place)
    for name, kind in inputs.items():
        Fields(given, place).required(name, TYPES[kind][1] if isinstance(kind, str) else "a value")
    kinds = {**inputs, **{name: kind for name, kind in optional.items() if given.get(name) is not None}}
    return {name: _value(given[name], kind, f"{place}.{name}") for name, kind in kinds.items()}


def _value(given: Any, kind: Any, place: str) -> Any:
    """A value of a type in MLflow's words; [type] is a list, {name: type} an object."""
    if isinstance(kind, list):
        if not isinstance(given, list):
            raise wrong(f"{place} is {shown(given)}, expected a list", place)
        return [_value(one, kind[0], f"{place}[{number}]") for number, one in enumerate(given)]
    if isinstance(kind, Mapping):
        if not isinstance(given, dict):
            raise wrong(f"{place} is {shown(given)}, expected an object with {' and '.join(kind)}", place)
        return {name: _value(given.get(name), one, f"{place}.{name}") for name, one in kind.items()}
    expected, words = TYPES[kind]
    if not isinstance(given, expected) or (kind != "boolean" and isinstance(given, bool)):
        raise wrong(f"{place} is {shown(given)}, expected {words}", place)
    return checked_text(given, place) if isinstance(given, str) else given
