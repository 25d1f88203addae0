"""Indexes of outputs: made once, and made again when the output was built again with rows that were lost before."""

import json

from pipeline.provenance.trace_index import KEYS, open_index
from pipeline.store.lineage import folder_of


def test_index_of_an_output_that_was_replaced_is_made_again(store, written_documents):
    """An output whose lost rows were recovered keeps its folder, and positions of rows in it change."""
    handle = written_documents([("a", "s", "one", "some text"), ("a", "s", "two", "other text")])
    folder, said = folder_of(handle), []
    for _ in range(2):
        open_index(store.root, folder, KEYS, said.append)
    assert len(said) == 1
    path = handle.directory / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"digest": "of more rows"}))
    open_index(store.root, folder, KEYS, said.append)
    assert len(said) == 2
