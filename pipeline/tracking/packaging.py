"""Packages a registered model with its code, so that it can be loaded without this repository.

In: the folder of a fine-tuned model and its kind of task. Out: a LoggedModel with one file of code ("models from
code"), the package `model` in the model's own code folder, weights, config and tokenizer as files, a signature, an
input example, requirements that are on the package index, and the ids of the examples that the model has seen. The
input example is invented, because texts of the user's data could not be removed from MLflow again.
"""

import ast
import inspect
import tempfile
from collections.abc import Collection, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import model
from pipeline.serving import predictor
from pipeline.store.layout import Layout
from pipeline.store.shards import link_or_copy
from pipeline.tracking.server import tracking_uri

# of a Checkpoint, without the optimiser state; of one that answers from documents also its encoder and its passages
SERVED = ("model.safetensors", "config.json", "tokenizer", "embedder", "passages")
LIBRARIES = (
    "jinja2",
    "mlflow",
    "numpy",
    "pandas",
    "pyarrow",
    "regex",
    "safetensors",
    "tiktoken",
    "tokenizers",
    "torch",
)
SAMPLES = {"string": ("A first text.", "A second, longer text."), "double": (0.5, 1.5), "long": (1, 2)}
SAMPLES |= {"boolean": (True, False)}  # type of an input in MLflow -> values of the input example
CODE = "model_code.py"
SEEN_IDS = "seen_examples.txt"  # one id per line
PYFUNC = Path(predictor.__file__).with_name("pyfunc.py")  # not imported, because it loads mlflow and pandas


class Packaged(Protocol):
    """A kind of task, or anything else that has a predictor."""

    @property
    def predictor(self) -> type[predictor.Predictor]: ...


def log_model(
    client: Any, run_id: str, name: str, kind: Packaged, directory: Path, seen: Iterable[str], model_id: str
) -> Any:
    """Add the package to the LoggedModel `model_id`, or to a new one of the run if that is empty. Returns the model.

    `seen`: ids of the examples that the model was trained or selected on. Files that the LoggedModel has are not
    stored twice.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    if model_id:
        logged = client.get_logged_model(model_id)
    else:
        logged = client.create_logged_model(client.get_run(run_id).info.experiment_id, name, run_id)
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, 0)])
    stored = {file.path for file in client.list_logged_model_artifacts(logged.model_id)}
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "package"
        write_package(package, kind, logged.model_id, logged.source_run_id)
        if ids := sorted(seen):
            (package / SEEN_IDS).write_text("".join(f"{one}\n" for one in ids), "utf-8")
        link_served(directory, package, besides=stored)
        client.log_model_artifacts(logged.model_id, str(package))
    client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    return logged


def write_package(package: Path, kind: Packaged, model_id: str, run_id: str | None) -> None:
    """Write everything but the weights. The code finds them beside itself, wherever the folder is moved to."""
    import mlflow
    import pandas as pd
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, Schema

    columns = [kind.predictor.inputs, kind.predictor.outputs]
    inputs, outputs = (Schema([ColSpec(column_type(of), name) for name, of in one.items()]) for one in columns)
    described = Model(model_uuid=model_id, model_id=model_id, run_id=run_id)
    with tempfile.TemporaryDirectory() as folder:
        code = Path(folder) / CODE
        code.write_text(served_code(kind.predictor), "utf-8")
        mlflow.pyfunc.save_model(
            str(package),
            mlflow_model=described,
            python_model=str(code),
            code_paths=[str(Path(model.__path__[0]))],
            signature=ModelSignature(inputs=inputs, outputs=outputs),
            input_example=pd.DataFrame({column: SAMPLES[dtype] for column, dtype in kind.predictor.inputs.items()}),
            pip_requirements=requirements(kind.predictor.libraries),  # otherwise MLflow loads the model to find them
        )
    described.flavors["python_function"]["artifacts"] = {"model": {"path": ".", "uri": "."}}
    described.save(str(package / "MLmodel"))


def column_type(of: Any) -> Any:
    """MLflow's type of a column of a Predictor: its name as it is, [type] as an array, {name: type} as an object."""
    from mlflow.types import DataType
    from mlflow.types.schema import Array, Object, Property

    if isinstance(of, list):
        return Array(column_type(of[0]))
    if isinstance(of, Mapping):
        return Object([Property(name, column_type(one)) for name, one in of.items()])
    return DataType[of]


def served_code(kind_of_predictor: type[predictor.Predictor]) -> str:
    """Source of a self-contained file for MLflow: Predictor, the subclass of a kind, TaskModel and its instance."""
    end = f"from mlflow.models import set_model\n\nset_model(TaskModel({kind_of_predictor.__name__}))\n"
    own = inspect.getsource(kind_of_predictor)
    return "\n\n".join([inspect.getsource(predictor), own, PYFUNC.read_text("utf-8"), end])


def requirements(more: Collection[str] = ()) -> list[str]:
    """The required packages at the installed versions, without local parts (+cpu), which no index has. `more`: those
    of one kind of task."""
    return [f"{library}=={version(library).partition('+')[0]}" for library in sorted({*LIBRARIES, *more})]


def link_served(directory: Path, folder: Path, besides: Collection[str] = ()) -> None:
    for name in (name for name in SERVED if name not in besides and (directory / name).exists()):
        for path in sorted((directory / name).rglob("*")) if (directory / name).is_dir() else [directory / name]:
            if path.is_file():
                link_or_copy(path, folder / path.relative_to(directory))


def artifacts_of(client: Any, layout: Layout, name: str, number: str, folder: str) -> tuple[Path, Mapping[str, Any]]:
    """Download a registered version to `folder`. Returns its path and the python_function flavour of its MLmodel."""
    from mlflow.artifacts import download_artifacts
    from mlflow.models import Model

    place = client.get_model_version_download_uri(name, number)
    there = Path(download_artifacts(place, dst_path=folder, tracking_uri=tracking_uri(layout)))
    return there, Model.load(str(there)).flavors["python_function"]


def imports_repository(code: str) -> bool:
    """Whether the code of a registered model imports `pipeline`, so that it breaks when a module moves."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        names |= {node.module} if isinstance(node, ast.ImportFrom) else set()
        names |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
    return any(str(name).partition(".")[0] == "pipeline" for name in names)
