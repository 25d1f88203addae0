"""The documents of a task as tasks.toml names them, and the assets that follow from them."""

import dagster as dg
import pytest

from pipeline.definitions import definitions
from pipeline.defs.names import asset_name
from pipeline.tasks.declared import (
    declared_assets,
    declared_downloads,
    idle_assets,
    missing_inputs,
    showcase_assets,
    watched_paths,
)
from pipeline.tasks.tasks_toml import read_tasks

MODELS = """
[foundation_model]
kind = "pretrain"

[reader]
kind = "pretrain"
family = "bert"

[writer]
kind = "open"
folder = "weights"

[eyes]
kind = "open"
folder = "weights"
"""
TABLE = """
[handbook]
kind = "documents"
base = "{base}"
embedder = "{embedder}"
documents = {documents}
"""
PINNED = '{ package = "x", version = "1", file = "sdist", sha256 = "' + "a" * 64 + '", members = "docs/*.md" }'


@pytest.fixture
def project(toy_layout):
    (toy_layout.data / "manuals").mkdir()
    (toy_layout.data / "weights").mkdir()
    toy_layout.models_toml.write_text(MODELS)
    tasks = toy_layout.tasks_toml.read_text()

    def written(documents, base="writer", embedder="eyes", more=""):
        table = TABLE.format(documents=documents, base=base, embedder=embedder)
        toy_layout.tasks_toml.write_text(f"{tasks}{table}{more}")
        return toy_layout

    return written


def upstream(layout, asset):
    graph = definitions(layout).resolve_asset_graph()
    keys = dg.AssetSelection.assets(dg.AssetKey(asset.split("/"))).upstream().resolve(graph)
    return {asset_name(key) for key in keys}


def test_source_of_a_task_alone_is_collected_and_cleaned_and_no_part_of_the_corpus(project):
    layout = project('{ path = "manuals", members = "**/*.md" }')
    task = read_tasks(layout.tasks_toml)["handbook"]
    parts = ("pages", "documents", "passages", "examples", "model", "evaluation")
    assert task.assets == [f"handbook_{part}" for part in parts]
    assert task.collection.inline.path == str(layout.data / "manuals")
    assert not task.reads_corpus and task.data is None
    needed = upstream(layout, "handbook_evaluation")
    assert needed == {*task.assets, "base/writer", "base/eyes"}
    assert set(task.assets) <= declared_assets(layout) and not set(task.needs) & set(idle_assets(layout))
    assert not upstream(layout, "corpus") & set(task.assets)
    assert str(layout.data / "manuals") in watched_paths(layout)
    names = [sensor.name for sensor in definitions(layout).sensors]
    assert {"watch_handbook_pages", "watch_web"} <= set(names)


def test_sources_of_sources_toml_are_cleaned_for_the_task_and_the_corpus_is_not_needed(project):
    layout = project('["web", "local-texts"]')
    assert upstream(layout, "handbook_passages") == {
        "pages/web", "pages/local-texts", "handbook_documents", "handbook_passages", "base/eyes",
    }  # fmt: skip
    shown = showcase_assets(read_tasks(layout.tasks_toml).values())
    assert {"pages/web", "base/writer", "handbook_evaluation"} <= set(shown)


def test_corpus_as_documents_does_not_make_the_graph_a_ring(project):
    """Questions may be made from the corpus, so that it cannot wait for them to be kept out of it."""
    layout = project('"corpus"')
    task = read_tasks(layout.tasks_toml)["handbook"]
    assert task.reads_corpus and not task.hides_examples
    assert "corpus" in upstream(layout, "handbook_examples")
    assert "handbook_examples" not in upstream(layout, "corpus")
    assert "handbook_documents" not in declared_assets(layout)


def test_downloads_and_missing_folders_of_a_task_are_known(project):
    assert "a" * 64 in declared_downloads(project(PINNED))
    (fault,) = missing_inputs(project('{ path = "elsewhere" }'))
    assert "[handbook]: documents: path" in fault and "elsewhere does not exist" in fault


@pytest.mark.parametrize(
    ("documents", "told"),
    [
        ("7", "documents is 7, expected"),
        ("[]", r"documents is \[\], expected"),
        ('["web", "web"]', "names a source twice"),
        ('{ folder = "manuals" }', "expected one of the keys path, package, url, urls"),
        ('{ path = "manuals", url = "https://x.example/a" }', "expected one of the keys"),
        ('{ path = "manuals", rules = ["c4"] }', "rules is a setting of the training corpus"),
        ('{ path = "manuals", membres = "*.md" }', r"unknown key `membres`; did you mean `members`\?"),
    ],
)
def test_wrong_documents_are_refused_with_file_table_and_key(project, documents, told):
    layout = project(documents)
    with pytest.raises(ValueError, match=rf"tasks.toml: \[handbook\].*{told}"):
        read_tasks(layout.tasks_toml)


def test_unknown_source_is_refused_with_the_nearest_name(project):
    with pytest.raises(ValueError, match=r"names 'local_texts', which is no table.*did you mean `local-texts`\?"):
        definitions(project('["local_texts"]'))


def test_models_that_do_not_fit_are_refused_before_anything_is_built(project):
    with pytest.raises(ValueError, match="embedder is 'foundation_model', a decoder"):
        read_tasks(project('"corpus"', embedder="foundation_model").tasks_toml)
    with pytest.raises(ValueError, match="base is 'reader', an encoder"):
        read_tasks(project('"corpus"', base="reader").tasks_toml)
    with pytest.raises(ValueError, match=r"embedder is 'eys', expected one of .* did you mean `eyes`"):
        read_tasks(project('"corpus"', embedder="eys").tasks_toml)
    layout = project('"corpus"')
    layout.tasks_toml.write_text(layout.tasks_toml.read_text().replace('embedder = "eyes"\n', ""))
    with pytest.raises(ValueError, match=r"embedder is missing, expected an encoder of models.toml"):
        read_tasks(layout.tasks_toml)


def test_task_of_the_showcase_cannot_answer_from_the_corpus(project):
    layout = project('"corpus"')
    layout.tasks_toml.write_text(layout.tasks_toml.read_text() + "showcase = true\n")
    with pytest.raises(ValueError, match="builds it without the corpus"):
        read_tasks(layout.tasks_toml)


def test_other_kinds_have_no_documents(project):
    layout = project('"corpus"')
    text = layout.tasks_toml.read_text()
    layout.tasks_toml.write_text(text.replace('label = "mood"', 'label = "mood"\ndocuments = "corpus"'))
    with pytest.raises(ValueError, match=r"\[moods\]: unknown key `documents`"):
        read_tasks(layout.tasks_toml)


def test_settings_of_passages_belong_to_their_table(project):
    layout = project('"corpus"', more="[handbook.passages]\npassage_tokens = 64\n")
    assert read_tasks(layout.tasks_toml)["handbook"].passages.passage_tokens == 64
    layout = project('"corpus"', more="[handbook.passages]\npassage_tokens = 3\n")
    with pytest.raises(ValueError, match=r"\[handbook.passages\]: passage_tokens is 3, expected"):
        read_tasks(layout.tasks_toml)
