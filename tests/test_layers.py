"""Who may import what, what loading the code location may cost, and how long files and functions may grow."""

import ast
import functools
import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted([*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "model").rglob("*.py")])
ALL = sorted([*SOURCES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "bench").rglob("*.py")])
MODEL = [path for path in SOURCES if path.is_relative_to(ROOT / "model") and path.stem != "__init__"]
ROOMS = (  # imports run downwards only: a module may import its own room, and those of the rows above
    {"store"},
    {"corpus"},
    {"training"},
    {"serving", "provenance"},
    {"evaluation"},
    {"tasks"},
    {"tracking"},
    {"defs"},
    {"definitions"},
    {"commands"},
    {"cli"},
    {"__main__"},
)
PYFUNC = ROOT / "pipeline" / "serving" / "pyfunc.py"  # loaded by MLflow, so it may import it
LEVELS = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
PIPELINE = [path for path in SOURCES if path.is_relative_to(ROOT / "pipeline") and path.stem != "__init__"]
ASSETS = [
    ROOT / "pipeline" / "defs" / f"{name}.py"
    for name in (
        "pages",
        "documents",
        "corpus",
        "corpus_report",
        "collections",
        "tokens",
        "models",
        "tasks",
        "evaluations",
    )
]
MODEL_MAY_IMPORT = {"torch", "numpy", "pyarrow", "safetensors", "model"}
MODEL_MAY_IMPORT_IN = {
    "model/data/tokenizer_tiktoken.py": {"tiktoken", "regex"},
    "model/data/words.py": {"regex"},  # which comes with tiktoken
    "model/data/tokenizer_library.py": {"tokenizers"},
    "model/data/tokenizer_imported.py": {"tokenizers"},
    "model/data/chat_sandbox.py": {"jinja2"},
    "model/retrieval/bm25.py": {"bm25s"},  # ranks passages by their words
    "model/retrieval/terms.py": {"regex"},  # classes of scripts
    "model/retrieval/vectors.py": {"usearch"},  # an index of vectors
    "model/hf/gguf.py": {"gguf"},
    "model/hf/gguf_read.py": {"gguf"},
}
FOLDERS_OF_MODEL = {  # what a folder may import of the others
    "network": (),
    "data": ("model.training.config", "model.training.draws", "model.training.machine", "model.training.schedule"),
    "training": ("model.network", "model.data", "model.evaluate"),
    "generation": (
        "model.network",
        "model.data.chat",
        "model.data.examples",
        "model.data.questions",
        "model.data.spans",
        "model.data.tagged_texts",
        "model.data.tokenizer",
        "model.evaluate",
        "model.training.machine",
        "model.training.memory",
        "model.training.step",
    ),
    "retrieval": (
        "model.network",
        "model.data.chat",
        "model.data.chat_fitting",
        "model.data.tokenizer",
        "model.data.words",
        "model.generation",
        "model.training.files",
    ),
    "hf": (
        "model.network",
        "model.data.chat_check",
        "model.data.questions",
        "model.data.tokenizer",
        "model.data.byte_alphabet",
        "model.training.files",
        "model.training.weights",
        "model.generation.sample_config",
    ),
}
REGISTRY = "model/network/registry.py"  # reads and writes the files of a model of any kind
LIGHT_PARTS_OF_MODEL = {  # import no torch
    "model.data.batch_layout",
    "model.data.batches",
    "model.data.byte_alphabet",
    "model.data.chat",
    "model.data.examples",
    "model.data.merges",
    "model.data.pairs",
    "model.training.config",
    "model.training.machine",
    "model.training.launch",
    "model.training.presets",
    "model.training.settings",
    "model.data.token_shards",
    "model.data.tokenizer",
    "model.data.vocabularies",
    "model.retrieval.passages",
}
MAY_IMPORT_MLFLOW = {"pipeline/tracking/delivery.py", "pipeline/tracking/registry.py", "pipeline/serving/pyfunc.py"}
HEAVY = ("torch", "mlflow", "trafilatura", "sklearn", "scipy", "matplotlib", "transformers", "duckdb", "pandas")
VAGUE_NAMES = ("util", "utils", "helper", "helpers", "common", "misc", "legacy", "v2")


@pytest.fixture(scope="module", autouse=True)
def _nothing_left_to_collect():
    """Python 3.11 fails to parse while the collector runs code that parses, as the log of a lost connection does."""
    gc.collect()


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imports_of(path: Path) -> frozenset[str]:
    """Every module that a file imports anywhere in it, with dots."""
    return frozenset(_imports(path))


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def top(module: str) -> str:
    return module.partition(".")[0]


def test_model_imports_five_packages_and_the_standard_library_only():
    for path in MODEL:
        allowed = MODEL_MAY_IMPORT | MODEL_MAY_IMPORT_IN.get(str(path.relative_to(ROOT)), set())
        foreign = {top(name) for name in imports_of(path)} - allowed - set(sys.stdlib_module_names)
        assert not foreign, f"{path} imports {sorted(foreign)}"


@pytest.mark.parametrize("folder", FOLDERS_OF_MODEL)
def test_folders_of_model_import_downwards(folder):
    allowed = (f"model.{folder}", *FOLDERS_OF_MODEL[folder])
    for path in (ROOT / "model" / folder).rglob("*.py"):
        ours = {name for name in imports_of(path) if top(name) == "model"}
        if path != ROOT / REGISTRY:
            assert not {name for name in ours if not name.startswith(allowed)}, path


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "pipeline").with_suffix("").parts[0]


def test_imports_run_downwards_from_room_to_room():
    wrong = {path: upward for path in PIPELINE if (upward := sorted(_not_allowed(path)))}
    assert not wrong, "\n".join(f"{path.relative_to(ROOT)}: {', '.join(names)}" for path, names in wrong.items())


def _not_allowed(path: Path) -> Iterator[str]:
    """Imports of this file that run upwards, or that belong elsewhere."""
    own = room_of(path)
    for name in imports_of(path):
        room = name.split(".")[1] if name.startswith("pipeline.") else own
        if room != own and LEVELS[room] >= LEVELS[own]:
            yield name
        if top(name) == "dagster" and own not in ("defs", "definitions", "commands"):
            yield name
        if top(name) == "mlflow" and own != "tracking" and path != PYFUNC:
            yield name
        if own in ("store", "corpus") and top(name) == "model" and not name.startswith(tuple(LIGHT_PARTS_OF_MODEL)):
            yield name


@pytest.mark.parametrize("path", ASSETS, ids=lambda path: path.name)
def test_assets_hold_bodies_of_ten_lines_and_no_work_of_their_own(path):
    assert not {top(name) for name in imports_of(path)} & {*HEAVY, "model", "requests", "os", "pathlib"}
    for function in functions_of(path):
        if any("asset" in ast.unparse(decorator) for decorator in function.decorator_list):
            body = function.body[1:] if ast.get_docstring(function) else function.body
            assert body[-1].end_lineno - body[0].lineno + 1 <= 10, f"{path.name}: {function.name}"
            assert not [node for node in ast.walk(function) if isinstance(node, ast.For | ast.While)]


def test_dagster_pipes_is_imported_in_one_file_only():
    users = [path for path in SOURCES if "dagster_pipes" in {top(name) for name in imports_of(path)}]
    assert users == [ROOT / "pipeline" / "training" / "process.py"]


def child(program: str, *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=600, check=True
    ).stdout


def test_what_works_without_dagster_and_mlflow_imports_without_them():
    modules = [
        str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")
        for path in [*MODEL, *PIPELINE]
        if path.stem != "__init__"
        and (path in MODEL or (LEVELS[room_of(path)] < LEVELS["tracking"] and path != PYFUNC))
    ]
    child(
        "import sys, importlib\n"
        "sys.modules['dagster'] = sys.modules['mlflow'] = None\n"  # importing either raises now
        "for name in sys.argv[1:]: importlib.import_module(name)",
        *modules,
    )


def test_code_location_loads_without_heavy_modules(toy_layout):
    loaded = child(
        "import sys\nfrom pathlib import Path\nfrom pipeline.store.layout import Layout\n"
        "from pipeline.definitions import definitions\n"
        "import dagster as dg\n"
        "dg.Definitions.validate_loadable(definitions(Layout(Path(sys.argv[1]))))\n"
        "print(' '.join(sys.modules))",
        str(toy_layout.data),
    ).split()
    assert not set(HEAVY) & set(loaded)


def functions_of(path: Path) -> Iterator[ast.FunctionDef]:
    nodes = ast.walk(tree_of(path))
    yield from (node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_files_have_500_lines_and_functions_50_at_most():
    n_lines = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in ALL}
    assert not {name: n for name, n in n_lines.items() if n > 500}
    n_lines = {
        f"{path.relative_to(ROOT)}: {function.name}": function.end_lineno - function.lineno + 1
        for path in ALL
        for function in functions_of(path)
    }
    assert not {name: n for name, n in n_lines.items() if n > 50}


def test_modules_say_in_their_name_and_first_lines_what_they_are():
    for path in SOURCES:
        assert not set(path.stem.split("_")) & set(VAGUE_NAMES), path
        if path.stem != "__init__":
            assert ast.get_docstring(tree_of(path)), path
        else:
            assert not path.read_text(), f"{path} is not empty"
