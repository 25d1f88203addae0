"""gristmill forget on the whole toy graph: what it tells, what the next run builds, and what is left of the text."""

import contextlib
import gzip
import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from model.data.token_shards import SPLITS, read_token_shards
from model.training.config import TrainConfig
from pipeline.cli import main
from pipeline.commands.ui import prepare_dagster_home
from pipeline.corpus.collect.sources import FilesSource
from pipeline.corpus.collect.stage import CollectConfig, collect
from pipeline.corpus.deny_list import read_denials
from pipeline.corpus.examples.stage import document_id
from pipeline.corpus.tokens.tokenizer import load_tokenizer
from pipeline.definitions import definitions
from pipeline.defs import tokens as tokenize
from pipeline.defs.resources import Mill
from pipeline.defs.run_config import read_config_file
from pipeline.store.layout import Layout, all_current, load_current, save_current
from pipeline.store.lineage import lineage
from pipeline.store.records import Checkpoint, Handle
from pipeline.store.shards import read_table, shard_paths
from pipeline.store.store import Outcome, Stage, Store, read_record
from pipeline.store.verdict import conservation
from pipeline.tracking.journal import FINISHED, Journal
from pipeline.tracking.server import new_client, run_id_of
from pipeline.tracking.tracker import Tracker
from tests.pipeline.training.steps import documents_of_step

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
DATA_ASSETS = ("pages/web", "pages/local-texts", "documents", "corpus", "token_shards", "corpus_report")
FORGOTTEN = ("tale-00.txt", "tale-copy.txt", "tale-nearly.txt")


@dataclass(frozen=True, kw_only=True)
class Forgotten:
    """The toy project before and after `tale-00.txt` and a page that the model was trained on were forgotten."""

    layout: Layout
    before: dict[str, Handle]
    after: dict[str, Handle]
    inodes: frozenset[int]  # of all files before
    seen: str  # name of the page that the model saw
    steps: list[int]  # in which it saw this one or the tale
    told: str


@pytest.fixture(scope="module")
def forgotten(toy_graph, tmp_path_factory) -> Iterator[Forgotten]:
    layout = copied(toy_graph.layout, tmp_path_factory.mktemp("forget") / "data")
    before = all_current(layout)
    seen, steps = page_of_training(layout)
    inodes = frozenset(path.stat().st_ino for path in layout.store.rglob("*") if path.is_file())
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("GRISTMILL_DATA", str(layout.data))
        environment.delenv("MLFLOW_TRACKING_URI", raising=False)
        told = output_of(["forget", "tale-00.txt", seen, "--yes", "--by", "Ann"])
        (layout.data / "copies").mkdir()
        text = (toy_graph.layout.data / "pages" / "tale-00.txt").read_text()
        (layout.data / "copies" / "tale-again.txt").write_text(text.upper())
        with layout.sources_toml.open("a") as file:
            file.write('\n[copies]\nkind = "files"\npath = "copies"\n')
        materialise(layout)
        after = all_current(layout)
        yield Forgotten(layout=layout, before=before, after=after, inodes=inodes, seen=seen, steps=steps, told=told)


def copied(layout: Layout, data: Path) -> Layout:
    """A project with outputs of its own on the same pages, whose addresses stay."""
    shutil.copytree(layout.data, data, ignore=shutil.ignore_patterns("pages", "dagster"))
    text = layout.sources_toml.read_text().replace('path = "pages"', f'path = "{layout.data / "pages"}"')
    (data / "sources.toml").write_text(text)
    return Layout(data)


def materialise(layout: Layout, job: str = "build_corpus") -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        definitions(layout).resolve_job_def(job).execute_in_process(instance=instance, run_config=QUIET)


def output_of(arguments: list[str]) -> str:
    """What a command prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(arguments) == 0, out.getvalue()
    return out.getvalue()


def page_of_training(layout: Layout) -> tuple[str, list[int]]:
    """A page of the train split that has no copy, and the steps that read it, by asking every step."""
    model, tokens = load_current(layout, "foundation_model"), load_current(layout, "token_shards")
    record = read_record(model.directory)
    assert record is not None
    train = TrainConfig(**record["config"]["train"])
    urls = {row["id"]: row["url"] for row in rows_of(load_current(layout, "corpus"))}
    steps: dict[str, list[int]] = {}
    for step in range(1, train.n_steps + 1):
        for document in documents_of_step(tokens.directory, train, step):
            steps.setdefault(urls[document].rpartition("/")[2], []).append(step)
    name = min(name for name in steps if name.startswith("story"))
    return name, sorted({step for one in (name, *FORGOTTEN) for step in steps.get(one, ())})


def rows_of(handle: Handle, folder: str = "") -> list[dict[str, Any]]:
    return [row for path in shard_paths(handle.directory, folder) for row in read_table(path).to_pylist()]


def words_of(layout: Layout, name: str) -> list[str]:
    """Runs of the text of a page that stand nowhere else."""
    sources = (Path(line.split('"')[1]) for line in layout.sources_toml.read_text().splitlines() if "path" in line)
    raw = (next(sources) / name).read_text()
    sentences = [sentence.split(">")[-1].strip() for sentence in raw.split(".")]
    return [sentence for sentence in sentences if sentence.startswith("The ") and len(sentence) > 60]


def holders(layout: Layout, folders: list[Path], phrases: list[str]) -> list[str]:
    """Files below `folders` in which one of the phrases stands, as text or as tokens."""
    tokenizer = load_tokenizer(load_current(layout, "tokenizer").directory)
    found = []
    for path in (path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()):
        if path.suffix == ".parquet":
            text = "\n".join(str(value) for row in read_table(path).to_pylist() for value in row.values())
        elif path.suffix == ".arrow" and path.parent.name in SPLITS:
            shards = read_token_shards(path.parents[1], path.parent.name)
            text = "".join(tokenizer.decode(shard.tokens.tolist()) for shard in shards)
        elif path.suffix == ".gz":
            text = gzip.decompress(path.read_bytes()).decode("utf-8", "replace")
        else:
            text = path.read_bytes().decode("utf-8", "replace")
        found += [str(path) for phrase in phrases if phrase in text]
    return found


def test_forget_tells_pages_copies_models_and_what_is_rebuilt(forgotten):
    pages = [line for line in forgotten.told.splitlines() if "file:///" in line]
    assert {line.split()[0].rpartition("/")[2] for line in pages} == {*FORGOTTEN, forgotten.seen}
    named = "foundation_model, gristmill-foundation_model 1 "
    (model,) = [line for line in forgotten.told.splitlines() if line.startswith(named) and " of 30" in line]
    told_steps = {int(step) for step in model.partition(": ")[2].replace("...", "").replace(",", " ").split()}
    assert told_steps and told_steps <= set(forgotten.steps)
    assert int(model.split(" of 30")[0].split()[-1]) == len(forgotten.steps)
    assert "moods_model" in forgotten.told and "gristmill-moods 1 (champion)" in forgotten.told
    assert "pages/web" in forgotten.told and "tokenizer" in forgotten.told


def test_forgotten_texts_are_in_no_rebuilt_output(forgotten):
    folders = [folder.directory for folder in lineage([forgotten.after[asset] for asset in DATA_ASSETS])]
    old = [folder.directory for folder in lineage([forgotten.before[asset] for asset in DATA_ASSETS])]
    for name in ("tale-00.txt", forgotten.seen):
        phrases = words_of(forgotten.layout, name)
        assert len(phrases) > 10
        assert holders(forgotten.layout, old, phrases[:3])  # else the test would see nothing
        kept_tokenizer = forgotten.after["tokenizer"]
        behind = {folder.directory for folder in lineage([kept_tokenizer])}
        assert not holders(forgotten.layout, [one for one in folders if one not in behind], phrases)


def test_forgotten_pages_and_their_copies_are_counted_as_denied(forgotten):
    denied = [
        row for source in ("web", "local-texts") for row in rows_of(forgotten.after[f"pages/{source}"], "dropped")
    ]
    assert {row["url"].rpartition("/")[2] for row in denied if row["reason"] == "denied"} == {
        *FORGOTTEN,
        forgotten.seen,
    }
    for asset in ("pages/web", "pages/local-texts", "documents", "token_shards"):
        assert conservation(forgotten.after[asset]).passed
    assert not {row["url"].rpartition("/")[2] for row in rows_of(forgotten.after["corpus"])} & {
        *FORGOTTEN,
        forgotten.seen,
    }


def test_forget_leaves_the_other_shards_as_they_were(forgotten):
    """The same files, not equal ones: they were cached and not made again."""
    for asset in ("documents",):
        before, after = forgotten.before[asset].directory, forgotten.after[asset].directory
        same = [path for path in shard_paths(after) if path.stat().st_ino in forgotten.inodes]
        changed = [path.name for path in shard_paths(after) if path not in same and "copies" not in path.name]
        gone = {row["url"] for row in rows_of(forgotten.before[asset])} - {
            row["url"] for row in rows_of(forgotten.after[asset])
        }
        held = {path.name for path in shard_paths(before) if gone & set(read_table(path)["url"].to_pylist())}
        assert set(changed) <= held and len(gone) == 4
        assert len(same) == len(shard_paths(before)) - len(changed) and same


def test_forgotten_text_at_a_new_address_is_denied_too(forgotten):
    (row,) = [
        row for row in rows_of(forgotten.after["documents"], "dropped") if row["url"].endswith("tale-again.txt")
    ]
    assert (row["reason"], row["preview"]) == ("denied", "")
    assert "tale-again.txt" not in str([row["url"] for row in rows_of(forgotten.after["documents"])])


def test_forget_keeps_the_tokenizer_unless_told_otherwise(forgotten):
    assert forgotten.after["tokenizer"] == forgotten.before["tokenizer"]
    assert forgotten.after["token_shards"].digest != forgotten.before["token_shards"].digest
    asset = tokenize.tokenizer(read_config_file(forgotten.layout.config_toml))

    def tokenizer() -> Handle:
        mill = Mill(layout=forgotten.layout)
        return asset(dg.build_asset_context(), mill=mill, corpus=forgotten.after["corpus"]).value

    assert tokenizer() == forgotten.before["tokenizer"]
    assert "new tokenizer" in output_of(["forget", "--new-tokenizer"])
    assert tokenizer().digest != forgotten.before["tokenizer"].digest


def test_forget_rows_say_who_when_and_because_of_what(forgotten):
    rows = [json.loads(line) for line in forgotten.layout.denied.read_text().splitlines()]
    by_name = {row["url"].rpartition("/")[2]: row for row in rows}
    assert set(by_name) == {*FORGOTTEN, forgotten.seen}
    assert {row["asked_by"] for row in rows} == {"Ann"}
    asked = by_name["tale-00.txt"]
    assert asked["reason"] == "asked for" and "duplicate_of" not in asked
    assert all(by_name[name]["duplicate_of"] == asked["page_id"] for name in FORGOTTEN[1:])
    assert "Story" not in forgotten.layout.denied.read_text()


def test_forget_again_adds_only_the_copies_that_were_collected_since(forgotten):
    before = forgotten.layout.denied.read_text()
    assert "denied already" in output_of(["forget", forgotten.seen, "--yes"])
    assert forgotten.layout.denied.read_text() == before
    output_of(["forget", "tale-00.txt", "--yes"])
    new = forgotten.layout.denied.read_text().removeprefix(before).splitlines()
    assert [json.loads(row)["url"].rpartition("/")[2] for row in new] == ["tale-again.txt"]


def test_forget_does_not_depend_on_the_server_of_mlflow(forgotten, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:correct-horse-9@127.0.0.1:9")
    assert main(["forget", forgotten.seen, "--dry-run", "--yes"]) == 0
    told = capsys.readouterr().out
    assert "could not be asked which models are registered" in told and "correct-horse" not in told


def quote_everywhere(layout: Layout, phrase: str) -> None:
    """Store a phrase in MLflow and in Dagster, as earlier versions of gristmill did."""
    report = layout.tracking / ("f" * 32) / "samples.md"
    report.parent.mkdir()
    report.write_text(f"# Samples\n\nPrompt:\n\n    {phrase}\n")
    tracker = Tracker(layout=layout, asset="moods_evaluation", group="evaluation", tags={"sample": phrase})
    tracker.started("f" * 32, {"first": phrase, "rows": 3}, [])
    tracker.artifact(report)
    tracker.describe(f"The report says: {phrase}")
    tracker.close(FINISHED)
    tracker.journal = Journal(layout, "f" * 32)
    tracker.describe(f"It waits: {phrase}")

    @dg.asset
    def quoting() -> dg.MaterializeResult:
        return dg.MaterializeResult(metadata={"sample": dg.MetadataValue.md(f"| {phrase} |"), "rows": 3})

    prepare_dagster_home(layout)
    with dg.DagsterInstance.from_config(str(layout.dagster_home)) as instance:
        dg.materialize([quoting], instance=instance)


def test_purge_leaves_the_text_in_no_data(forgotten, capsys):
    """Also not in those of the registered model, which `gc` would keep, and not in what MLflow and Dagster stored:
    their artifacts, descriptions, parameters and event logs quoted texts, and kept them for ever."""
    layout, (phrase, *_) = forgotten.layout, words_of(forgotten.layout, "tale-00.txt")
    quote_everywhere(layout, phrase)
    assert len(holders(layout, [layout.mlflow, layout.dagster_home, layout.tracking], [phrase])) >= 5
    assert main(["forget", "--purge", "--dry-run"]) == 0
    dry = capsys.readouterr().out
    assert "remove store/filter/" in dry and f"remove tracking/{'f' * 32}/samples.md" in dry
    assert "quotations in mlflow/mlflow.db" in dry and "in dagster/history/runs/" in dry
    old = forgotten.before["token_shards"].directory
    assert old.exists()
    assert main(["forget", "--purge", "--yes"]) == 1  # a copy was collected since, and the evaluations are older
    assert "until that is materialised again" in capsys.readouterr().out
    assert not old.exists() and forgotten.after["token_shards"].directory.exists()
    folders = [folder for folder in layout.data.iterdir() if folder.is_dir() and folder.name != "copies"]
    for name in ("tale-00.txt", forgotten.seen):
        assert not holders(layout, folders, words_of(layout, name))
    run = new_client(layout).get_run(run_id_of(layout, "f" * 32))
    assert (run.data.params, run.data.tags["sample"]) == ({"first": "[removed]", "rows": "3"}, "[removed]")
    assert [event["text"] for _, event in Journal(layout, "f" * 32).pending()] == ["[removed]"]
    with dg.DagsterInstance.from_config(str(layout.dagster_home)) as instance:
        (event,) = instance.fetch_materializations(dg.AssetKey("quoting"), limit=1).records
    metadata = event.asset_materialization.metadata
    assert (metadata["sample"].value, metadata["rows"].value) == ("[removed]", 3)
    assert main(["forget", "--purge", "--yes"]) == 1
    assert "Nothing to remove" in capsys.readouterr().out
    assert main(["trace", forgotten.seen]) == 0
    assert "denied" in capsys.readouterr().out


@pytest.fixture
def collected(tmp_path, monkeypatch) -> Layout:
    """A project of which one source was collected, and nothing else."""
    layout = Layout(tmp_path / "data")
    monkeypatch.setenv("GRISTMILL_DATA", str(layout.data))
    for name in ("one.txt", "two.txt", "folder/one.txt"):
        (tmp_path / "pages" / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / "pages" / name).write_text(f"The words of the page {name}.")
    source = FilesSource(name="pages", path=str(tmp_path / "pages"))
    built = collect(Store(root=layout.store), source, layout.cache, CollectConfig(n_shards=1))
    save_current(layout, "pages/pages", built.handle)
    return layout


def test_forget_asks_and_changes_nothing_where_nobody_agrees(collected, capsys):
    assert main(["forget", "two.txt"]) == 1
    assert "Nothing was changed; --yes denies without asking." in capsys.readouterr().out
    assert main(["forget", "two.txt", "--dry-run"]) == 0
    assert "1 page would be denied" in capsys.readouterr().out
    assert not collected.denied.exists()


def test_forget_names_a_model_of_which_nobody_knows_what_it_saw(collected, capsys):
    stage = Stage(name="finetune", version=1, function=write_nothing, handle=Checkpoint)
    built = Store(root=collected.store).build(stage, {})
    assert main(["forget", "two.txt", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert f"It is unknown whether finetune/{built.handle.fingerprint[:8]} was trained on them" in told


def write_nothing(cfg, inputs, work) -> Outcome:
    (work.directory / "model.safetensors").write_bytes(b"")
    return Outcome(rows=0, content=("model.safetensors",))


def test_forget_end_of_many_addresses_wants_all(collected, capsys):
    assert main(["forget", "one.txt", "--yes"]) == 2
    assert "is the end of 2 addresses" in capsys.readouterr().err
    assert main(["forget", "one.txt", "--yes", "--all"]) == 0
    assert {row.url and row.url.partition("/pages/")[2] for row in read_denials(collected.denied)} == {
        "one.txt",
        "folder/one.txt",
    }


def test_forget_list_and_undo_give_back_what_was_denied(collected, capsys):
    assert main(["forget", "two.txt", "--yes", "--reason", "a letter of 3 May", "--by", "Ann"]) == 0
    capsys.readouterr()
    assert main(["forget", "--list"]) == 0
    shown = capsys.readouterr().out
    assert "two.txt" in shown and "a letter of 3 May" in shown
    (row,) = read_denials(collected.denied)
    assert row.url is not None
    assert main(["forget", "--undo", row.url]) == 1 and read_denials(collected.denied) == [row]
    assert main(["forget", "--undo", row.url, "--yes"]) == 0 and read_denials(collected.denied) == []
    capsys.readouterr()
    assert main(["forget", "--list"]) == 0
    assert "Nothing is denied" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["nowhere.html", "--yes"], "'nowhere.html' is not a URL, the end of one"),
        (["", "--yes", "--all"], "is not a URL"),
        ([], "nothing to forget: give a URL"),
        (["two.txt", "--containing", "2"], "--containing is 2, expected a share above 0 to 1"),
        (["--undo", "two.txt"], "has the address or id 'two.txt'"),
        (["two.txt", "--purge"], "without URL_OR_ID"),
    ],
)
def test_forget_mistake_is_one_line(collected, capsys, arguments, part):
    assert main(["forget", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert part in line and not collected.denied.exists()


def test_forget_with_a_broken_list_names_its_line(collected, capsys):
    collected.denied.write_text('{"url": "https://a.example/", "date": "2026-01-31", "reason": "x"}\nnot a row\n')
    assert main(["forget", "two.txt", "--yes"]) == 2
    assert f"{collected.denied}, line 2" in capsys.readouterr().err
    assert collected.denied.read_text().endswith("not a row\n")


def test_stages_from_a_shell_keep_to_the_deny_list_too(collected, tmp_path, monkeypatch):
    assert main(["forget", "two.txt", "--yes"]) == 0
    raw, out = str(tmp_path / "pages"), {name: str(tmp_path / name) for name in ("clean", "signals", "filter")}
    (tmp_path / "pages" / "third.txt").write_text((tmp_path / "pages" / "two.txt").read_text())
    text = {"date": "2026-01-31", "reason": "by hand", "document_id": document_id("The words of the page two.txt.")}
    with collected.denied.open("a") as file:
        file.write(json.dumps(text) + "\n")
    options = ["--set", "rules=", "--set", "languages="]
    assert main(["stage", "clean", raw, "--out", out["clean"]]) == 0
    assert main(["stage", "signals", out["clean"], "--out", out["signals"]]) == 0
    assert main(["stage", "filter", out["clean"], out["signals"], "--out", out["filter"], *options]) == 0
    dropped = [row for p in shard_paths(Path(out["filter"]), "dropped") for row in read_table(p).to_pylist()]
    assert [(row["url"].rpartition("/")[2], row["reason"]) for row in dropped] == [("third.txt", "denied")]
    cleaned = [row for p in shard_paths(Path(out["clean"])) for row in read_table(p).to_pylist()]
    assert "two.txt" not in {row["url"].rpartition("/")[2] for row in cleaned} and len(cleaned) == 3
