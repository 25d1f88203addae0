"""What does not fit together: one clear line each, exit code 1, no traceback, and nothing overwritten."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from model.cli import main
from model.data.token_shards import read_token_shard, write_token_shard
from model.generation.generate import generate
from model.generation.sample_config import SampleConfig
from model.network.registry import load_decoder
from model.training.pretraining import Pretraining, validation
from pipeline.cli import main as gristmill


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folders(corpus, trained, tmp_path) -> Path:
    """Copies of shards/, tokenizer/ and model/, to spoil."""
    for name, source in (("shards", corpus / "shards"), ("tokenizer", corpus / "tokenizer"), ("model", trained)):
        shutil.copytree(source, tmp_path / name)
    return tmp_path


def refusal(capsys, *arguments: object) -> str:
    """The one line that a call ends with."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("model.cli: ")
    return line


def write_shard(path: Path, documents: list[list[int]]) -> None:
    names, n_bytes = [f"d{i}" for i in range(len(documents))], [9] * len(documents)
    write_token_shard(path, names, n_bytes, [np.array(document) for document in documents], 60_000)


def edit_json(path: Path, change: Callable[[dict], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def truncate(path: Path, n_bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:n_bytes])


@pytest.mark.parametrize(
    ("settings", "message"),
    [  # the rules themselves: tests/model/training/test_settings.py and test_config.py
        (["d_model=30", "n_heads=4"], "d_model=30 is not a multiple of n_heads=4"),
        (["d_model=1000000000000"], "parameters; choose a smaller one"),  # it was a traceback of torch's allocator
        (["n_step=3"], "--set n_step=3: no such setting; did you mean n_steps? there are"),
    ],
)
def test_train_config_that_cannot_be_is_refused_with_its_rule(
    corpus, tmp_path, tiny_settings, capsys, settings, message
):
    more = [part for setting in settings for part in ("--set", setting)]
    assert message in refusal(capsys, "train", corpus / "shards", tmp_path / "new", *tiny_settings, *more)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: shutil.rmtree(f / "shards"), "is not a folder of token shards: it has no tokens.json"),
        (lambda f: (f / "shards" / "tokens.json").write_text("{"), "not a description of token shards"),
        (lambda f: (f / "shards" / "tokens.json").write_text("[]"), "not a description of token shards"),
        (lambda f: (f / "shards" / "tokens.json").write_text('{"vocab_size": 300}'), "'tokenizer'"),
        (lambda f: truncate(f / "shards/train/00000.arrow", 900), "not a readable token shard"),
        (lambda f: truncate(f / "shards/train/00000.arrow", 0), "not a readable token shard"),
        (lambda f: shutil.rmtree(f / "shards" / "train"), "0 tokens in 0 shards are too few"),
        (lambda f: write_shard(f / "shards/train/00000.arrow", []), "0 tokens in 1 shards are too few"),
        (lambda f: write_shard(f / "shards/train/00000.arrow", [[299, 1]]), "2 tokens in 1 shards are too few"),
        (
            lambda f: write_shard(f / "shards/train/00000.arrow", [[299] * 30, [299, 7, 300, *[5] * 40]]),
            "document d1 holds the token id 300 (in global batch",
        ),
        (
            lambda f: write_shard(f / "shards/validation/00000.arrow", [[299, *[301] * 40]]),
            "document d0 holds the token id 301",
        ),
    ],
)
def test_train_on_shards_that_are_none_is_refused(folders, tiny_settings, capsys, spoil, message):
    spoil(folders)
    assert message in refusal(capsys, "train", folders / "shards", folders / "new", *tiny_settings)
    assert not (folders / "new" / "model.safetensors").exists()


def test_train_with_another_tokenizer_is_refused(folders, other_corpus, tiny_settings, capsys):
    call = ("train", folders / "shards", folders / "new", *tiny_settings, "--tokenizer", other_corpus / "tokenizer")
    assert "document train-0 was not written by this tokenizer of 300 tokens" in refusal(capsys, *call)
    assert not (folders / "new").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["n_steps=11"], "was made with n_steps=12, now it is 11"),
        (["d_ff=48"], "has shape (32, 16), expected (48, 16)"),
        (["n_layers=2"], "layers.1"),
    ],
)
def test_train_on_from_a_checkpoint_of_another_training_changes_nothing(
    folders, tiny_settings, capsys, settings, message
):
    before = bytes_of(folders / "model")
    more = [part for setting in settings for part in ("--set", setting)]
    assert message in refusal(capsys, "train", folders / "shards", folders / "model", *tiny_settings, *more)
    assert bytes_of(folders / "model") == before


def test_train_on_other_shards_than_before_changes_nothing(folders, other_corpus, tiny_settings, capsys):
    before = bytes_of(folders / "model")
    line = refusal(capsys, "train", other_corpus / "shards", folders / "model", *tiny_settings)
    assert "was trained on" in line and "train in another folder" in line
    assert bytes_of(folders / "model") == before


def test_train_on_shards_of_equal_size_and_other_tokens_changes_nothing(folders, tiny_settings, capsys):
    """Shards were told apart by their sizes: one that was tokenised again resumed without a word."""
    path = folders / "shards/train/00000.arrow"
    tokens, raw = read_token_shard(path).tokens, bytearray(path.read_bytes())
    place = raw.index(tokens[:8].tobytes())
    raw[place + 2 : place + 4] = bytes(tokens[2:3].view(np.uint8))
    path.write_bytes(raw)
    assert read_token_shard(path).tokens[1] == tokens[2] and path.stat().st_size == len(raw)
    before = bytes_of(folders / "model")
    line = refusal(capsys, "train", folders / "shards", folders / "model", *tiny_settings)
    assert "was trained on" in line and "train in another folder" in line
    assert bytes_of(folders / "model") == before


def test_train_into_a_model_from_elsewhere_is_refused(folders, tiny_settings, capsys):
    shutil.rmtree(folders / "model" / "checkpoints")
    before = bytes_of(folders / "model")
    line = refusal(capsys, "train", folders / "shards", folders / "model", *tiny_settings)
    assert "no checkpoint to go on from" in line
    assert bytes_of(folders / "model") == before


SPOILT_MODELS = [
    (lambda f: shutil.rmtree(f / "model"), "is not the folder of a model: it has no config.json"),
    (lambda f: truncate(f / "model" / "model.safetensors", 3000), "not a whole safetensors file"),
    (lambda f: truncate(f / "model" / "model.safetensors", 4), "not a whole safetensors file"),
    (lambda f: (f / "model" / "model.safetensors").unlink(), "not a whole safetensors file"),
    (lambda f: truncate(f / "model" / "config.json", 9), "not readable as JSON"),
    (lambda f: (f / "model" / "config.json").write_text("[]"), "config.json"),
    (lambda f: (f / "model" / "config.json").write_text('{"kind": "decoder"}'), "config.json"),
    (
        lambda f: edit_json(f / "model/config.json", lambda c: c["model"].update(d_ff=64)),
        "has shape (32, 16), expected",
    ),
    (lambda f: edit_json(f / "model/config.json", lambda c: c["model"].update(d_ff="64")), "config.json"),
    (lambda f: edit_json(f / "model/config.json", lambda c: c["model"].update(n_heads=3)), "n_heads=3"),
    (lambda f: edit_json(f / "model/config.json", lambda c: c["model"].update(n_layers=2)), "layers.1"),
    (lambda f: edit_json(f / "model/config.json", lambda c: c["model"].update(colour=1)), "unknown fields colour"),
]


@pytest.mark.parametrize(("spoil", "message"), SPOILT_MODELS)
def test_sample_of_a_spoilt_model_is_refused(folders, capsys, spoil, message):
    spoil(folders)
    assert message in refusal(capsys, "sample", folders / "model", "kalo")


@pytest.mark.parametrize(("spoil", "message"), [SPOILT_MODELS[0], SPOILT_MODELS[-1]])
def test_gristmill_generate_of_a_spoilt_model_tells_the_same_in_one_line(folders, capsys, spoil, message):
    spoil(folders)
    assert gristmill(["generate", "kalo", "--model", str(folders / "model")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line or "is neither a folder nor an asset" in line


def test_sample_with_a_tokenizer_of_another_size_is_refused(folders, corpus, capsys):
    edit_json(folders / "model/tokenizer/gristmill_tokenizer.json", lambda t: t.update(vocab_size=299))
    assert "vocab_size differ" in refusal(capsys, "sample", folders / "model", "kalo")
    shutil.rmtree(folders / "model" / "tokenizer")
    assert "holds no tokenizer" in refusal(capsys, "sample", folders / "model", "kalo")


def test_sample_prompt_longer_than_the_context_is_refused(folders, capsys):
    line = refusal(capsys, "sample", folders / "model", "kalo " * 50)
    assert "tokens, the model reads at most 16" in line
    assert main(["sample", str(folders / "model"), "kalo " * 50, "--tokens", "1", "--keep-prompt-end"]) == 0


def test_sample_prompt_without_a_utf8_form_is_refused(folders, capsys):
    assert "lone surrogate" in refusal(capsys, "sample", folders / "model", "ab\ud800")


def test_generate_token_id_outside_the_vocabulary_is_refused(trained):
    with pytest.raises(ValueError, match="300"):
        generate(load_decoder(trained), [[299, 300]], SampleConfig(max_new_tokens=1))


def test_evaluate_on_shards_of_another_tokenizer_is_refused(folders, other_corpus, capsys):
    line = refusal(capsys, "evaluate", folders / "model", other_corpus / "shards")
    assert "was not written by this tokenizer" in line
    edit_json(folders / "shards" / "tokens.json", lambda t: t.update(vocab_size=4096))
    line = refusal(capsys, "evaluate", folders / "model", folders / "shards")
    assert "a vocabulary of 4096 tokens" in line and "vocab_size=300" in line


def test_evaluate_token_id_outside_the_vocabulary_is_refused(folders, capsys):
    shutil.rmtree(folders / "model" / "tokenizer")
    write_shard(folders / "shards/validation/00000.arrow", [[299, 1, 2, 300]])
    line = refusal(capsys, "evaluate", folders / "model", folders / "shards")
    assert "00000.arrow holds the token id 300, outside 0 to 299" in line


def test_evaluate_empty_split_is_refused(folders, capsys):
    shutil.rmtree(folders / "shards" / "test")
    line = refusal(capsys, "evaluate", folders / "model", folders / "shards", "--split", "test")
    assert "holds no document" in line


def test_evaluate_documents_of_one_token_are_refused(folders, capsys):
    """Perplexity nan was printed, with a warning of numpy."""
    shutil.rmtree(folders / "model" / "tokenizer")
    write_shard(folders / "shards/validation/00000.arrow", [[299], [299]])
    line = refusal(capsys, "evaluate", folders / "model", folders / "shards")
    assert "documents of one token only" in line


def test_validation_of_a_split_below_one_row_is_left_out(folders, trained):
    from model.training.config import TrainConfig

    train, network = TrainConfig(n_steps=1, rows=1, seq_len=8, micro_batch=1), load_decoder(trained).cfg
    plan = Pretraining(shards=folders / "shards", out=folders / "new", network=network, train=train, made_from={})
    assert validation(plan) is not None
    write_shard(folders / "shards/validation/00000.arrow", [[299, 1]])
    assert validation(plan) is None


def test_pretraining_description_of_another_vocabulary_is_refused(folders, trained):
    decoder = load_decoder(trained).cfg
    edit_json(folders / "shards" / "tokens.json", lambda t: t.update(vocab_size=301))
    from model.training.config import TrainConfig

    train = TrainConfig(n_steps=1, rows=1, seq_len=8, micro_batch=1)
    with pytest.raises(ValueError, match="a vocabulary of 301 tokens, the decoder has vocab_size=300"):
        Pretraining(shards=folders / "shards", out=folders / "new", network=decoder, train=train, made_from={})


def test_token_shard_that_was_tampered_with_still_reads_and_is_found_out(folders):
    path = folders / "shards/train/00000.arrow"
    raw = bytearray(path.read_bytes())
    place = raw.index(read_token_shard(path).tokens[:8].tobytes())
    raw[place + 2 : place + 4] = b"\xff\xff"
    path.write_bytes(raw)
    assert int(read_token_shard(path).tokens.max()) == 65535
