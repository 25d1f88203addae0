import ast
import re
from pathlib import Path

import pytest

from pipeline.cli import build_parser
from pipeline.store.chain import (
    CHAIN,
    document_stages,
    link_of,
    links_of,
    output_of,
    removing_stages,
    schema,
    traced_stages,
)
from pipeline.store.records import Shards
from pipeline.store.store import Stage

ROOT = Path(__file__).resolve().parents[3]
NAMES = {link.name for link in CHAIN if link.name != link.asset}  # of stages that no asset is named after


@pytest.mark.parametrize("link", [link for link in CHAIN if link.stage], ids=lambda link: link.name)
def test_every_dotted_name_of_a_row_leads_to_what_the_row_says(link):
    stage, config = link.load()
    assert isinstance(stage, Stage) and stage.name == link.name
    assert not link.recipe or link.settings(config()).config == config()
    assert not link.evidence or {"page_id", "kept_page_id"} & set(schema(link.evidence).names)
    assert bool(link.evidence) == bool(link.view)


def test_stages_read_what_earlier_ones_write():
    for place, link in enumerate(CHAIN):
        for read in link.reads:
            names = read.stages(link.name)
            before = {one.name for one in CHAIN[:place]}  # of several stages that fit, some may come later
            assert read.least == 0 or before & set(names), f"{link.name}: nothing before it writes {read.what}"
    assert link_of("split").reads[0].stages("split") == ("dedup", "dedup_lines", "decontaminate")
    assert link_of("dedup_lines").reads[0].stages("dedup_lines") == ("dedup",)


def test_questions_about_the_chain():
    assert [link.name for link in links_of("documents")] == ["clean", "signals", "filter"]
    assert output_of("corpus") == document_stages()[-1] == "split"
    assert traced_stages() == (*document_stages(), "tokenize")
    assert "signals" not in document_stages()
    assert removing_stages() == ("dedup", "dedup_lines", "decontaminate")
    with pytest.raises(ValueError, match="there is no stage 'dedupe'; there are: collect, clean"):
        link_of("dedupe")


def test_inputs_are_the_newest_output_of_each_kind_and_all_where_any_number_is_read(tmp_path):
    def handle(stage, fingerprint):
        return Shards(stage=stage, directory=tmp_path, fingerprint=fingerprint, digest="", rows=0)

    given = [handle("examples", "a"), handle("dedup", "b"), handle("dedup_lines", "c"), handle("examples", "d")]
    chosen = link_of("decontaminate").inputs(given)
    assert [one.fingerprint for one in chosen] == ["c", "a", "d"]


@pytest.mark.parametrize(
    "path",
    sorted({*(ROOT / "pipeline").rglob("*.py")} - {ROOT / "pipeline/store/chain.py"}),
    ids=lambda path: path.stem,
)
def test_the_chain_is_written_down_in_one_place(path):
    """Three names of stages side by side are a copy of the chain, which the next new stage would have to find."""
    for node in ast.walk(ast.parse(path.read_text())):
        parts = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", ())
        named = {part.value for part in parts if isinstance(part, ast.Constant)} & NAMES
        assert len(named) < 3, f"{path}:{getattr(node, 'lineno', 0)} lists the stages {sorted(named)}"


def test_command_line_offers_the_stages_that_run_alone():
    (commands,) = [action.choices for action in build_parser()._actions if action.choices]
    (names,) = [action.choices for action in commands["stage"]._actions if action.dest == "name"]
    assert tuple(names) == tuple(link.name for link in CHAIN if link.command == "stage")


def test_pages_about_the_chain_name_every_stage_as_the_table_does():
    flows = dict(re.findall(r"^\| `(\w+)/` \|(.*)$", (ROOT / "docs" / "data.md").read_text(), re.MULTILINE))
    for link in CHAIN:
        if link.command == "stage":
            assert not link.writes or f"`{link.writes}`" in flows[link.name], link.name
            assert ("`dropped/`" in flows[link.name]) == link.drops, link.name
            evidence = re.findall(r"`evidence/` \(`(\w+)`\)", flows[link.name])
            assert evidence == ([link.evidence] if link.evidence else []), link.name
    text = (ROOT / "docs" / "pipeline.md").read_text()
    for asset in ("documents", "corpus"):
        (paragraph,) = re.findall(rf"^`{asset}` (?:is|runs)\b.*?\n\n", text, re.MULTILINE | re.DOTALL)
        assert [name for name in re.findall(r"`(\w+)`", paragraph) if name in NAMES] == [
            link.name for link in links_of(asset)
        ]
