"""Packages a registered model with its code, so that it can be loaded without this repository.

In: the folder of a fine-tuned model and its kind of task. Out: a LoggedModel: one file of code ("models from code"),
the package `model` in the model's own code folder, weights, config and tokenizer as files, a signature, an input
example, and requirements that are on the package index.
"""

import ast
import inspect
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import model
from pipeline.corpus.examples.stage import read_examples
from pipeline.serving import predictor
from pipeline.store.shards import link_or_copy
from pipeline.tasks.kind import Kind

SERVED = ("model.safetensors", "config.json", "tokenizer")  # of a Checkpoint, without the optimiser state
LIBRARIES = ("mlflow", "numpy", "pandas", "pyarrow", "regex", "safetensors", "tiktoken", "torch")
N_EXAMPLE_ROWS = 2
CODE = "model_code.py"
PYFUNC = Path(predictor.__file__).with_name("pyfunc.py")  # not imported, because it loads mlflow and pandas


def log_model(
    mlflow: Any, name: str, kind: Kind, directory: Path, examples: Path, model_id: str | None = None
) -> Any:
    """Log the model in `directory` to the active run, into an earlier LoggedModel if any; `examples` gives the input
    example."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    columns = [kind.predictor.inputs, kind.predictor.outputs]
    inputs, outputs = (Schema([ColSpec(dtype, column) for column, dtype in one.items()]) for one in columns)
    rows = read_examples(examples, "test").slice(0, N_EXAMPLE_ROWS)
    with tempfile.TemporaryDirectory() as folder:
        code, weights = Path(folder) / CODE, Path(folder) / "model"
        code.write_text(served_code(kind.predictor), "utf-8")
        link_served(directory, weights)
        return mlflow.pyfunc.log_model(
            name=name,
            model_id=model_id,
            python_model=str(code),
            artifacts={"model": str(weights)},
            code_paths=[str(Path(model.__path__[0]))],
            signature=ModelSignature(inputs=inputs, outputs=outputs),
            input_example=rows.select(list(kind.predictor.inputs)).to_pandas(),
            pip_requirements=requirements(),  # otherwise MLflow loads the model to find them
        )


def served_code(kind_of_predictor: type[predictor.Predictor]) -> str:
    """Source of a self-contained file for MLflow: Predictor, the subclass of a kind, TaskModel and its instance."""
    end = f"from mlflow.models import set_model\n\nset_model(TaskModel({kind_of_predictor.__name__}))\n"
    own = inspect.getsource(kind_of_predictor)
    return "\n\n".join([inspect.getsource(predictor), own, PYFUNC.read_text("utf-8"), end])


def requirements() -> list[str]:
    """The required packages at the installed versions, without local parts (+cpu), which no index has."""
    return [f"{library}=={version(library).partition('+')[0]}" for library in LIBRARIES]


def link_served(directory: Path, folder: Path) -> None:
    for name in SERVED:
        for path in sorted((directory / name).iterdir()) if (directory / name).is_dir() else [directory / name]:
            link_or_copy(path, folder / path.relative_to(directory))


def artifacts_of(mlflow: Any, name: str, number: str, folder: str) -> tuple[Path, Mapping[str, Any]]:
    """Download a registered version to `folder`. Returns its path and the python_function flavour of its MLmodel."""
    from mlflow.models import Model

    there = Path(mlflow.artifacts.download_artifacts(f"models:/{name}/{number}", dst_path=folder))
    return there, Model.load(str(there)).flavors["python_function"]


def imports_repository(code: str) -> bool:
    """Whether the code of a registered model imports `pipeline`, so that it breaks when a module moves."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        names |= {node.module} if isinstance(node, ast.ImportFrom) else set()
        names |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
    return any(str(name).partition(".")[0] == "pipeline" for name in names)
