"""Generation and classification from checkpoint folders."""

import dataclasses
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from model.generation.generate import generate
from model.generation.sample_config import SampleConfig
from model.hf.tokenizer_import import import_tokenizer
from model.network.decoder import new_decoder
from model.network.heads import new_classifier
from model.network.registry import describe, save_model
from model.network.shape import DecoderConfig
from model.training import placement
from model.training.memory import OutOfMemory
from pipeline.serving.generate import generate_text, predictor_in, stream_text
from pipeline.store.records import TokenizerFile
from pipeline.tasks.classification import Classifier
from tests.model.hf.tokenizers_of_others import save

CONTEXT = 16
CFG = DecoderConfig(
    vocab_size=257, n_layers=2, n_heads=2, n_kv_heads=1, d_model=16, d_head=8, d_ff=32, max_seq_len=CONTEXT
)


@torch.no_grad()
def write_decoder(tokenizer: TokenizerFile, folder: Path, seed: int = 0, cfg: DecoderConfig = CFG) -> Path:
    """Weights so large that what it writes depends on all that it reads; it writes lower-case letters only."""
    shutil.copytree(tokenizer.directory, folder / "tokenizer")
    model = new_decoder(cfg, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        if weight.ndim == 2:
            weight.normal_(std=0.5, generator=generator)
    weight_VD = model.lm_head.weight
    letters = weight_VD[97:123].clone()
    weight_VD.zero_()
    weight_VD[97:123] = 4 * letters
    save_model(folder, model, describe(cfg))
    return folder


@torch.no_grad()
def write_classifier(tokenizer: TokenizerFile, folder: Path, seed: int = 0) -> Path:
    shutil.copytree(tokenizer.directory, folder / "tokenizer")
    model = new_classifier(CFG, 3, seed=seed)
    model.score.weight.normal_(generator=torch.Generator().manual_seed(seed))
    save_model(folder, model, describe(CFG, ("x", "y", "z")) | {"max_tokens": 8})
    return folder


@pytest.fixture
def decoder(tmp_path, byte_tokenizer) -> Path:
    return write_decoder(byte_tokenizer, tmp_path / "decoder")


@pytest.fixture
def classifier(tmp_path, byte_tokenizer) -> Path:
    return write_classifier(byte_tokenizer, tmp_path / "classifier")


def classify_text(folder: Path, texts: list[str]) -> list[tuple[str, float]]:
    answers = predictor_in(Classifier, folder).answer([{"text": text} for text in texts])
    return [(answer["label"], answer["probability"]) for answer in answers]


def label_probabilities(folder: Path, texts: list[str]) -> tuple[tuple[str, ...], np.ndarray]:
    model = predictor_in(Classifier, folder)
    return model.labels, model.probabilities(texts)


def one_text(folder: Path, prompt: str, n_tokens: int, **settings) -> str:
    (text,) = generate_text(folder, prompt, SampleConfig(max_new_tokens=n_tokens, **settings))
    return text


def test_generate_is_a_function_of_its_seed(decoder):
    one, again, other = (one_text(decoder, "abc", 20, temperature=9.0, seed=seed) for seed in (0, 0, 1))
    assert one == again != other
    assert len(one) == 20 and "abc" not in one[:3]


def test_generate_samples_differ_and_each_is_the_same_however_many_there_are(decoder):
    cfg = SampleConfig(max_new_tokens=10, temperature=9.0)
    texts = generate_text(decoder, "abc", cfg, n_samples=3)
    assert len(set(texts)) == 3
    assert generate_text(decoder, "abc", cfg, n_samples=2) == texts[:2]


def test_generate_empty_prompt_starts_a_document(decoder):
    assert len(one_text(decoder, "", 10)) == 10


def test_generate_of_a_long_prompt_is_refused_or_reads_the_end(decoder):
    end = "qrstuvwxyzabcdef"
    assert len(end) == CONTEXT
    with pytest.raises(ValueError, match=r"47 tokens, the model reads at most 16 .*keep_prompt_end"):
        one_text(decoder, "a" * 30 + end, 12)
    keep = {"temperature": 0, "keep_prompt_end": True}
    one, other = (one_text(decoder, before * 30 + end, 12, **keep) for before in "ak")
    assert one == other
    assert one_text(decoder, end[:-1] + "m", 12, **keep) != one


def test_generate_zero_temperature_needs_no_seed(decoder):
    texts = {one_text(decoder, "hello", 10, temperature=0, seed=seed) for seed in range(3)}
    assert len(texts) == 1


def test_generate_top_k_of_one_is_the_likeliest(decoder):
    assert one_text(decoder, "hello", 10, top_k=1) == one_text(decoder, "hello", 10, temperature=0)


def test_generate_ends_before_a_stop_string(decoder):
    free = one_text(decoder, "hello", 10, temperature=0)
    stop = free[4:6]
    assert one_text(decoder, "hello", 10, temperature=0, stop=("#", stop)) == free[: free.index(stop)]


def test_stream_text_comes_in_pieces_that_together_are_the_text(decoder):
    cfg = SampleConfig(max_new_tokens=10, temperature=9.0)
    pieces = list(stream_text(decoder, "abc", cfg, n_samples=2))
    assert len(pieces) == 20
    for sample, text in enumerate(generate_text(decoder, "abc", cfg, n_samples=2)):
        assert "".join(piece for number, piece in pieces if number == sample) == text


def test_generate_stops_where_the_model_ends_the_document(tmp_path, byte_tokenizer):
    folder = tmp_path / "model"
    shutil.copytree(byte_tokenizer.directory, folder / "tokenizer")
    model = new_decoder(CFG, seed=0)
    with torch.no_grad():
        torch.nn.init.ones_(model.get_parameter("model.norm.weight"))
        model.lm_head.weight[256] = 100 * model.trunk(torch.tensor([[256, 97]]))[0, -1]
    save_model(folder, model, describe(CFG))
    assert one_text(folder, "a", 10, temperature=0) == ""


@pytest.mark.parametrize("end", ["<|endoftext|>", "<|im_end|>"])
def test_generate_of_an_imported_model_stops_at_the_end_of_a_document_and_of_a_turn(tmp_path, end):
    tokenizer = import_tokenizer(save("smollm", tmp_path / "source"), tmp_path / "model" / "tokenizer", 600)
    model = new_decoder(dataclasses.replace(CFG, vocab_size=600), seed=0)
    prompt = torch.tensor([[*tokenizer.opening, *tokenizer.encode("a")]])
    (token,) = [i for i in range(600) if tokenizer.tokens[i] == end.encode()]
    with torch.no_grad():
        torch.nn.init.ones_(model.get_parameter("model.norm.weight"))
        model.lm_head.weight[token] = 100 * model.trunk(prompt)[0, -1]
    save_model(tmp_path / "model", model, describe(model.cfg))
    assert one_text(tmp_path / "model", "a", 10, temperature=0) == ""
    unstopped = generate(model, prompt.tolist(), SampleConfig(max_new_tokens=1, temperature=0))
    assert unstopped == [[token]]


def test_generate_no_sample_is_refused(decoder):
    with pytest.raises(ValueError, match="n_samples=0"):
        generate_text(decoder, "a", SampleConfig(), n_samples=0)


def test_generate_more_samples_than_memory_holds_is_refused_in_one_line(tmp_path, byte_tokenizer):
    long = dataclasses.replace(CFG, max_seq_len=2048)  # a cache of 4,000 rows takes 1 GB
    folder = write_decoder(byte_tokenizer, tmp_path / "long", cfg=long)
    one_text(folder, "a", 1)  # loads the model
    now = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + 300_000_000, before[1]))
    try:
        with pytest.raises(
            OutOfMemory, match=r"^out of memory .*: 4,000 samples are written at once; ask for fewer$"
        ):
            generate_text(folder, "a", SampleConfig(max_new_tokens=2047), n_samples=4000)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_generate_and_classify_refuse_each_others_models(decoder, classifier, tmp_path):
    with pytest.raises(ValueError, match=r"expected a language model \(decoder\)"):
        one_text(classifier, "a", 1)
    with pytest.raises(ValueError, match="expected a classifier"):
        classify_text(decoder, ["a"])
    with pytest.raises(ValueError, match=r"has no config\.json"):
        classify_text(tmp_path, ["a"])


def test_generate_model_trained_anew_in_the_same_folder_is_read_anew(tmp_path, byte_tokenizer):
    before = one_text(write_decoder(byte_tokenizer, tmp_path / "model"), "abc", 20)
    shutil.rmtree(tmp_path / "model")
    assert one_text(write_decoder(byte_tokenizer, tmp_path / "model", seed=5), "abc", 20) != before


def test_classify_labels_are_the_likeliest_in_the_order_of_the_texts(classifier):
    texts = ["a longer text than the others", "b", "", "middling"]
    labels, probabilities = label_probabilities(classifier, texts)
    assert labels == ("x", "y", "z")
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    for text, row, (label, probability) in zip(texts, probabilities, classify_text(classifier, texts), strict=True):
        assert (label, probability) == (labels[row.argmax()], row.max())
        np.testing.assert_allclose(label_probabilities(classifier, [text])[1][0], row, atol=1e-6)


def test_classify_reads_as_much_as_in_training_and_repairs_alike(classifier):
    one, cut, spaced = label_probabilities(classifier, ["abcdefg", "abcdefghijk", "  abcdefg\n"])[1]
    np.testing.assert_array_equal(one, cut)
    np.testing.assert_array_equal(one, spaced)


def test_classify_no_texts_gives_no_answers(classifier):
    assert classify_text(classifier, []) == []


def test_generate_and_classify_compute_on_the_device_of_the_machine(decoder, classifier, monkeypatch):
    """Both stayed on the CPU beside an idle GPU. "meta" is a device without numbers: reading a result fails."""
    monkeypatch.setattr(placement, "training_device", lambda: torch.device("meta"))
    with pytest.raises(RuntimeError, match="meta tensor"):
        one_text(decoder, "abc", 5)
    with pytest.raises(RuntimeError, match="meta tensor"):
        classify_text(classifier, ["abc"])
