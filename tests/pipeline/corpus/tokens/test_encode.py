"""encode: tokens of each shard, cached, and what happens to bad shards, tokenizers and disks."""

import itertools
import random
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data.token_shards import read_description, read_token_shards
from model.data.tokenizer import check_made_by, load_tokenizer
from model.hf.tokenizer_import import import_tokenizer
from pipeline.corpus.laws import HARD_TEXTS
from pipeline.corpus.tokens.encode import encoded_schema, offsets_of, read_encoded
from pipeline.corpus.tokens.tokenize import TOKENIZE, TokenizeConfig, TokenizeRecipe
from pipeline.store.engine import LocalProcesses
from pipeline.store.errors import CorruptShard, DiskFull
from pipeline.store.records import TokenizerFile
from pipeline.store.shards import text_digest
from pipeline.store.store import Store
from tests.children import python
from tests.model.hf.tokenizers_of_others import mixed_texts, save

DEFAULT = TokenizeRecipe(config=TokenizeConfig())


def row(page_id, text, *, source="s"):
    own = {"page_id": page_id, "id": text_digest(text), "url": f"file:///{page_id}", "text": text}
    return own | {"source": source, "split": "train", "cluster_size": 1}


def rows_of(n, seed=1):
    rng = random.Random(seed)
    return [row(f"p{i:03d}", "word " * rng.randrange(1, 400), source=f"s{i % 4}") for i in range(n)]


def token_files(handle):
    paths = [*handle.directory.glob("*/[0-9]*.arrow"), handle.directory / "tokens.json"]
    return {str(path.relative_to(handle.directory)): path.read_bytes() for path in paths}


@settings(deadline=None, max_examples=200)
@given(st.text() | st.text("a \n<|endoftext|>", max_size=200))
def test_encode_array_has_the_ids_of_encode(byte_tokenizer, text):
    tokenizer = load_tokenizer(byte_tokenizer.directory)
    assert tokenizer.encode_array(text).tolist() == tokenizer.encode(text)


def test_encoded_shard_holds_the_rows_of_its_shard_in_their_order(store, split_corpus, byte_tokenizer):
    rows = [*rows_of(30), row("long", "x" * 3_000_000, source="s0")]  # longer than a batch
    built = store.build(TOKENIZE, DEFAULT, split_corpus(rows), byte_tokenizer)
    for source in {one["source"] for one in rows}:
        batches = list(read_encoded(built.handle.directory / "encoded" / f"{source}.arrow"))
        assert all(batch.schema == encoded_schema(257) for batch in batches)
        own = [one for one in rows if one["source"] == source]
        assert [one for batch in batches for one in batch.column("page_id").to_pylist()] == [
            one["page_id"] for one in own
        ]
        texts = []
        for batch in batches:
            flat, offsets = offsets_of(batch.column("tokens"))
            texts += [bytes(flat[a + 1 : b].astype(np.uint8)) for a, b in itertools.pairwise(offsets)]
        assert texts == [one["text"].encode() for one in own]


def test_tokenize_equal_documents_all_stay(store, split_corpus, byte_tokenizer):
    rows = [row(f"p{i}", "the same") for i in range(50)]
    built = store.build(TOKENIZE, DEFAULT, split_corpus(rows, 3), byte_tokenizer)
    assert read_description(built.handle.directory)["splits"]["train"]["documents"] == 50 == built.counts.kept


@pytest.mark.parametrize("kept", [0.5, -4])
def test_tokenize_shard_that_lost_its_tail_is_named(store, split_corpus, byte_tokenizer, kept):
    corpus = split_corpus(rows_of(40))
    path = corpus.directory / "s1.parquet"
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * kept) if kept > 0 else kept])
    with pytest.raises(CorruptShard, match=r"s1\.parquet"):
        store.build(TOKENIZE, DEFAULT, corpus, byte_tokenizer)


def test_tokenize_shard_whose_pages_are_damaged_is_named(store, split_corpus, byte_tokenizer):
    corpus = split_corpus(rows_of(40))
    path = corpus.directory / "s1.parquet"
    raw = bytearray(path.read_bytes())
    raw[4:400] = bytes(396)  # the footer stays whole
    path.write_bytes(raw)
    real = replace(store, engine=LocalProcesses(n_workers=1))
    with pytest.raises(CorruptShard, match=r"s1\.parquet contains other bytes"):
        real.build(TOKENIZE, DEFAULT, corpus, byte_tokenizer)


def test_tokenize_file_that_is_no_tokenizer_is_refused_before_the_work(store, split_corpus, byte_tokenizer, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no tokenizer"):
        store.build(
            TOKENIZE, DEFAULT, split_corpus(rows_of(4)), replace(byte_tokenizer, directory=tmp_path / "empty")
        )
    assert not (store.root / "tokenize" / "parts").exists()


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-50], lambda raw: raw[:400] + b"\xff" * 64 + raw[464:], bytes.lower]
)
def test_tokenize_encoded_part_that_was_damaged_is_made_again(store, split_corpus, byte_tokenizer, damage):
    corpus = split_corpus(rows_of(40))
    first = token_files(store.build(TOKENIZE, DEFAULT, corpus, byte_tokenizer).handle)
    part = sorted((store.root / "tokenize" / "parts").glob("*/kept.arrow"))[2]
    part.write_bytes(damage(part.read_bytes()))
    other = TokenizeRecipe(config=TokenizeConfig(shard_tokens=49_999_999))  # another output of the same parts
    assert token_files(store.build(TOKENIZE, other, corpus, byte_tokenizer).handle) == first


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts a disk of some kilobytes, or changes the size of the one that is mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def sized(kilobytes, remount=False):
        options = f"{'remount,' if remount else ''}size={kilobytes}k"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting a small disk is not permitted here")
        return disk

    yield sized
    subprocess.run(["umount", str(disk)], capture_output=True, check=False)


# disk, as times the encoded tokens: full while encoding, while scattering, while writing what memory holds
@pytest.mark.parametrize(("times", "memory_mb"), [(0.6, 1), (3, 1), (4, 1000)])
def test_tokenize_full_disk_stops_with_one_line_and_the_next_run_goes_on(
    small_disk, store, split_corpus, byte_tokenizer, times, memory_mb
):
    rows = rows_of(400)
    weights = {one["source"]: 7.0 for one in rows}
    recipe = TokenizeRecipe(config=TokenizeConfig(shuffle_memory_mb=memory_mb), weights=weights)
    corpus = split_corpus(rows)
    encoded = 2 * sum(len(one["text"]) for one in rows) / 1000
    own = Store(root=small_disk(int(times * encoded)) / "store", engine=LocalProcesses(n_workers=1))
    with pytest.raises(DiskFull, match="no space left to write `tokenize`"):
        own.build(TOKENIZE, recipe, corpus, byte_tokenizer)
    small_disk(int(30 * encoded), remount=True)
    again = own.build(TOKENIZE, recipe, corpus, byte_tokenizer).handle
    assert token_files(again) == token_files(store.build(TOKENIZE, recipe, corpus, byte_tokenizer).handle)
    usual = (".leases", ".verified.json")
    assert not [path for path in own.root.rglob(".*") if not path.name.endswith(".lock") and path.name not in usual]


BUILD_AND_DIE = """
import faulthandler, os, signal, sys
from pathlib import Path
from pipeline.store.engine import LocalProcesses
from pipeline.store.store import Store
from pipeline.store.records import Shards, TokenizerFile
from pipeline.corpus.tokens.tokenize import TOKENIZE, TokenizeConfig, TokenizeRecipe

corpus, tokenizer, root, last = *map(Path, sys.argv[1:4]), int(sys.argv[4])
count = 0

def on_event(event, args):  # what the process does to files, which kills it at the last one that it may do
    global count
    if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.link", "os.rmdir"):
        count += 1
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)

weights = {f"s{i}": 7.0 for i in range(4)}
recipe = TokenizeRecipe(config=TokenizeConfig(shuffle_memory_mb=1, shard_tokens=200_000), weights=weights)
from pipeline.store.store import read_handle
inputs = read_handle(corpus), read_handle(tokenizer)
sys.addaudithook(on_event)
faulthandler.dump_traceback_later(150, exit=True)  # tells where a build hangs
Store(root=root, engine=LocalProcesses(n_workers=2)).build(TOKENIZE, recipe, *inputs)
print(count)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_tokenize_killed_at_20_points_and_run_again_gives_the_same_bytes(store, split_corpus, byte_tokenizer):
    inputs = split_corpus(rows_of(400)), byte_tokenizer
    recipe = TokenizeRecipe(
        config=TokenizeConfig(shuffle_memory_mb=1, shard_tokens=200_000), weights={f"s{i}": 7.0 for i in range(4)}
    )

    def run(root, last):
        folders = [str(one) for one in (*(one.directory for one in inputs), root)]
        return python("-c", BUILD_AND_DIE, *folders, str(last))

    whole = run(store.root.parent / "whole", 0)
    assert whole.returncode == 0, whole.stderr
    n_events = int(whole.stdout)
    expected = token_files(store.build(TOKENIZE, recipe, *inputs).handle)
    for point in sorted(random.Random(1).sample(range(1, n_events - 20), 20)):
        root = store.root.parent / f"killed-{point}"
        assert run(root, point).returncode == -9
        again = replace(store, root=root).build(TOKENIZE, recipe, *inputs).handle
        assert token_files(again) == expected
        assert not list(again.directory.glob(".*"))


LONG_DOCUMENT = """
import resource, sys, time
from pathlib import Path
from pipeline.corpus.laws import HARD_TEXTS
from pipeline.corpus.tokens.encode import EncodeItem, encode_shard
path, tokenizer, target = map(Path, sys.argv[1:])
start = time.perf_counter()
assert encode_shard(EncodeItem(path, tokenizer, "x", target)) == 1
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000, time.perf_counter() - start)
"""


@pytest.mark.slow
def test_tokenize_a_document_of_100_mb_takes_what_a_worker_may_have(store, split_corpus, byte_tokenizer, tmp_path):
    words = ["".join(random.Random(i).choices("abcdefghij", k=i % 9 + 1)) for i in range(1000)]
    text = " ".join(random.Random(1).choices(words, k=17_000_000))[:100_000_000]
    corpus = split_corpus([row("long", text)])
    command = [
        sys.executable,
        "-c",
        LONG_DOCUMENT,
        str(corpus.directory / "s.parquet"),
        str(byte_tokenizer.directory),
    ]
    answer = subprocess.run([*command, str(tmp_path / "x.arrow")], capture_output=True, text=True, check=True)
    assert float(answer.stdout.split()[0]) < 3000  # MB; a token a byte is the worst there is
    built = replace(store, engine=LocalProcesses()).build(TOKENIZE, DEFAULT, corpus, byte_tokenizer)
    (shard,) = read_token_shards(built.handle.directory, "train")
    assert shard.offsets.tolist() == [0, 100_000_001]
    assert bytes(shard.tokens[1:].astype(np.uint8)) == text.encode()


@pytest.fixture(params=["smollm", "bert", "t5"])
def imported_tokenizer(request, tmp_path) -> TokenizerFile:
    """A tokenizer that was made elsewhere, as a model brings it along."""
    vocab_size = 1000
    import_tokenizer(save(request.param, tmp_path / "source"), tmp_path / "base" / "tokenizer", vocab_size)
    directory = tmp_path / "base" / "tokenizer"
    return TokenizerFile(directory=directory, rows=vocab_size, stage="base", fingerprint="b", digest=request.param)


def test_tokenize_in_the_vocabulary_of_others_in_any_number_of_processes(
    tmp_path, store, split_corpus, imported_tokenizer, byte_tokenizer
):
    texts = [*HARD_TEXTS, *mixed_texts(30, 8), "The MILL \u00c9t\u00e9 12  34"]
    corpus = split_corpus([row(f"p{i}", text) for i, text in enumerate(texts)])
    tokenizer = load_tokenizer(imported_tokenizer.directory)
    parallel = Store(root=tmp_path / "other", engine=LocalProcesses(n_workers=2))
    built = [one.build(TOKENIZE, DEFAULT, corpus, imported_tokenizer) for one in (store, parallel)]
    assert token_files(built[0].handle) == token_files(built[1].handle)
    shards = list(read_token_shards(built[0].handle.directory, "train"))
    found = {
        (int(shard.n_bytes[i]), tuple(shard.tokens[shard.offsets[i] : shard.offsets[i + 1]].tolist()))
        for shard in shards
        for i in range(len(shard.n_bytes))
    }
    # the bytes are those of the text, also where its ids stand for a shorter one
    assert found == {(len(text.encode()), (tokenizer.end_of_text, *tokenizer.encode(text))) for text in texts}
    check_made_by(tokenizer, shards)
    with pytest.raises(ValueError, match="was not written by this tokenizer of 257 tokens"):
        check_made_by(load_tokenizer(byte_tokenizer.directory), shards)
    assert read_description(built[0].handle.directory)["end_of_text"] == tokenizer.end_of_text
