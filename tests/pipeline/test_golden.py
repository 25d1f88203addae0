"""Golden digests of all data stages: whoever changes an output raises the version of its stage.

A stage whose output is another for the same input, under the same version, would leave old outputs in every store.
The digests are those of values, so neither pyarrow nor compression matters. Trainings and evaluations are not here,
because their roundings differ between processors.
"""

import json

import pytest

from pipeline.store.store import Store
from tests.pipeline.toy_chain import GOLDEN, InThisProcess, chain, facts, write_inputs

EXPECTED = json.loads(GOLDEN.read_text())
UPDATE = "then run `python -m tests.pipeline.toy_chain` and commit golden_digests.json"


@pytest.fixture(scope="module")
def golden_chain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden")
    write_inputs(folder)
    return chain(Store(root=folder / "store", engine=InThisProcess()), folder)


@pytest.mark.parametrize("stage", EXPECTED)
def test_golden_digest_changes_only_with_the_version_of_the_stage(golden_chain, stage):
    """Only collect, clean, signals and filter had such a test: other stages could change under one version."""
    found, expected = facts(golden_chain[stage]), EXPECTED[stage]
    if found["libraries"] != expected["libraries"]:
        pytest.skip("other versions of the libraries, which are part of the fingerprint")
    if found["digest"] == expected["digest"] and found["version"] == expected["version"]:
        return
    if found["version"] == expected["version"] and found["inputs"] == expected["inputs"]:
        raise AssertionError(f"the output of `{stage}` has changed: raise the version of the stage, {UPDATE}")
    raise AssertionError(f"`{stage}` has another version or another input than when this was recorded: {UPDATE}")


def test_golden_digests_cover_every_data_stage():
    from pipeline.store.chain import CHAIN

    data = {
        link.name
        for link in CHAIN
        if link.asset in ("pages/<source>", "documents", "corpus", "tokenizer", "token_shards")
    }
    assert data | {"examples", "deny_list"} == EXPECTED.keys()
