"""Models made elsewhere in the format of this project: the same weights, whole or not at all."""

import dataclasses
import json
import math
import random
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from model.cli import main
from model.data.tokenizer import load_tokenizer
from model.hf.files import write_folder
from model.hf.gguf import write_gguf
from model.hf.gguf_read import read_gguf
from model.hf.importing import import_model
from model.hf.tokenizer import ExportedTokenizer, read_exported_tokenizer
from model.network.decoder import Decoder
from model.network.encoder import Encoder, MaskedLM
from model.network.heads import SequenceClassifier
from model.network.registry import load_classifier, load_decoder, load_model
from model.network.shape import DecoderConfig, RopeScaling
from pipeline.corpus.tokens.tokenizer_files import write_tokenizer
from tests.model.hf.encoders import BERT

IDS_BT = torch.tensor([[1, 5, 90, 3, 3, 61, 0, 17, 42, 8, 8, 2]])
# Decoders whose GGUF transformers reads whole: it takes the defaults of a config for these sizes.
THEIR_GGUF: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"d_model": 40},
    "qwen3": {"d_head": 128},
    "qwen3-tied": {"d_head": 128},
    "gpt2": {"d_ff": 96, "max_seq_len": 1024},
}
GGUF_DECODERS = (
    "qwen3",
    "qwen3-tied",
    "qwen3-linear",
    "llama",
    "llama-biases",
    "gpt2",
    "gpt2-untied",
    "qwen2",
    "arcee",
)
N_TOKENS = 257  # all bytes, and the end of a text
SIZES: dict[str, Any] = {"n_layers": 1, "n_heads": 2, "n_kv_heads": 2, "d_model": 32, "d_head": 16, "d_ff": 32}
WIDE = DecoderConfig(vocab_size=N_TOKENS, **SIZES, qk_norm=False, max_seq_len=64)  # rows of one block
N_MUTATIONS = 60


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> ExportedTokenizer:
    """A tokenizer whose tokens are the bytes."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, {bytes([i]): i for i in range(256)}, "qwen2")
    return read_exported_tokenizer(folder, N_TOKENS)


@pytest.fixture(scope="module")
def decoders(decoders) -> dict[str, DecoderConfig]:
    """Those of the other tests, with the vocabulary of the tokenizer."""
    return {name: dataclasses.replace(cfg, vocab_size=N_TOKENS) for name, cfg in decoders.items()}


def same_logits(one: torch.nn.Module, other: torch.nn.Module) -> None:
    with torch.no_grad():
        torch.testing.assert_close(one(IDS_BT), other(IDS_BT), rtol=0, atol=0)


def test_import_of_a_folder_keeps_every_weight(exported, cfg, large_weights, tmp_path):
    decoder = large_weights(Decoder(dataclasses.replace(cfg, vocab_size=N_TOKENS)), seed=1)
    write_folder(tmp_path / "theirs", decoder, tokenizer=exported)
    imported = import_model(tmp_path / "theirs", tmp_path / "ours")
    same_logits(load_decoder(tmp_path / "ours"), decoder)
    assert imported.kind == "decoder" and imported.stored == ("F32",)
    assert imported.n_parameters == sum(weight.numel() for weight in decoder.parameters())


def test_import_of_a_folder_in_shards_and_bfloat16(exported, decoders, large_weights, tmp_path):
    decoder = large_weights(Decoder(decoders["qwen3"]), seed=1)
    write_folder(tmp_path / "theirs", decoder, dtype="bfloat16", max_shard_bytes=9000, tokenizer=exported)
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 2
    assert import_model(tmp_path / "theirs", tmp_path / "ours").stored == ("BF16",)
    with torch.no_grad():
        for weight in decoder.parameters():
            weight.copy_(weight.bfloat16())
    same_logits(load_decoder(tmp_path / "ours"), decoder)


def test_import_of_a_classifier_keeps_its_labels(exported, decoders, large_weights, tmp_path):
    classifier = large_weights(SequenceClassifier(decoders["llama"], 3), seed=2)
    write_folder(tmp_path / "theirs", classifier, labels=("no", "perhaps", "yes"), tokenizer=exported)
    imported = import_model(tmp_path / "theirs", tmp_path / "ours")
    loaded, labels = load_classifier(tmp_path / "ours")
    assert imported.kind == "sequence_classifier" and labels == ("no", "perhaps", "yes")
    for (name, one), (_, other) in zip(loaded.named_parameters(), classifier.named_parameters(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("name", GGUF_DECODERS)
def test_import_of_our_gguf_export_is_the_exported_model(exported, decoders, large_weights, tmp_path, name):
    cfg = dataclasses.replace(decoders[name], d_model=40 if name == "qwen2" else decoders[name].d_model)
    decoder = large_weights(Decoder(cfg), seed=4)
    write_gguf(tmp_path / "a.gguf", decoder, exported, name="a name")
    imported = import_model(tmp_path / "a.gguf", tmp_path / "ours")
    assert (imported.family, imported.name) == (name.split("-")[0], "a name")
    loaded = load_decoder(tmp_path / "ours")
    assert loaded.cfg == decoder.cfg
    same_logits(loaded, decoder)


@pytest.mark.parametrize("name", THEIR_GGUF)
@torch.no_grad()
def test_imported_gguf_has_the_logits_of_transformers(exported, decoders, large_weights, tmp_path, name):
    """transformers reads the file with code of its own: names, order of rows, and config."""
    cfg = dataclasses.replace(decoders[name], **THEIR_GGUF[name])
    write_gguf(tmp_path / "a.gguf", large_weights(Decoder(cfg), seed=4), exported, name="a name")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="a.gguf", dtype=torch.float32).eval()
    import_model(tmp_path / "a.gguf", tmp_path / "ours")
    torch.testing.assert_close(load_decoder(tmp_path / "ours")(IDS_BT), theirs(IDS_BT).logits, atol=1e-4, rtol=0)


# GGUF files of others.


def changed_gguf(path: Path, fields: dict[str, Any], tensors: dict[str, Any] | None = None) -> Path:
    """Writes the file again with other fields and tensors; None leaves one out."""
    file = read_gguf(path)
    values = {**file.fields, **fields}
    writer = gguf.GGUFWriter(path, str(values.pop("general.architecture")))
    for name, value in values.items():
        if value is not None:
            writer.add_key_value(name, value, gguf.GGUFValueType.get_type(value))
    for name, tensor in ({name: file.read(name) for name in file.tensors} | (tensors or {})).items():
        if isinstance(tensor, tuple):
            writer.add_tensor(name, gguf.quants.quantize(*tensor), raw_dtype=tensor[1])
        elif tensor is not None:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def llama_file(exported, decoders, large_weights, tmp_path) -> Path:
    return write_gguf(tmp_path / "a.gguf", large_weights(Decoder(decoders["llama"]), seed=4), exported, name="a name")


def config_of(file: Path, out: Path) -> DecoderConfig:
    import_model(file, out)
    return load_decoder(out).cfg


def test_import_of_a_tied_matrix_in_two_formats_takes_that_of_the_head(exported, llama_file, tmp_path):
    """As published files of Qwen2.5: the embedding in 5 bits, the head, which is the same matrix, in 8."""
    matrix = np.random.default_rng(0).normal(size=(N_TOKENS, 32)).astype(np.float32)
    decoder = Decoder(dataclasses.replace(WIDE, tie_embeddings=False))
    write_gguf(llama_file, decoder, exported, name="a name")
    coarse, fine = (gguf.GGMLQuantizationType[name] for name in ("Q5_0", "Q8_0"))
    changed_gguf(llama_file, {}, {"token_embd.weight": (matrix, coarse), "output.weight": (matrix, fine)})
    imported = import_model(llama_file, tmp_path / "ours")
    loaded = load_decoder(tmp_path / "ours")
    assert loaded.cfg.tie_embeddings and imported.n_parameters == sum(w.numel() for w in loaded.parameters())
    expected = gguf.quants.dequantize(gguf.quants.quantize(matrix, fine), fine)
    np.testing.assert_array_equal(loaded.model.embed_tokens.weight.detach().numpy(), expected)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


@pytest.mark.parametrize("is_rounded", [False, True])
def test_import_of_two_matrices_that_differ_keeps_both(exported, llama_file, tmp_path, is_rounded):
    decoder = Decoder(dataclasses.replace(WIDE, tie_embeddings=False))
    torch.nn.init.normal_(decoder.lm_head.weight)
    with torch.no_grad():  # tuned a little, and stored exactly: no copy
        decoder.model.embed_tokens.weight.copy_(decoder.lm_head.weight * (-1 if is_rounded else 1.01))
    write_gguf(llama_file, decoder, exported, name="a name")
    if is_rounded:
        kind = gguf.GGMLQuantizationType.Q8_0
        matrices = {"token_embd.weight": decoder.model.embed_tokens.weight, "output.weight": decoder.lm_head.weight}
        changed_gguf(llama_file, {}, {name: (w.detach().numpy(), kind) for name, w in matrices.items()})
    assert not config_of(llama_file, tmp_path / "ours").tie_embeddings


def test_import_restores_the_scaling_of_llama_3(exported, decoders, large_weights, tmp_path):
    scaling = RopeScaling(kind="llama3", factor=32.0, original_max_seq_len=8192)
    cfg = dataclasses.replace(decoders["llama"], rope_theta=500_000.0, rope_scaling=scaling)
    decoder = large_weights(Decoder(cfg), seed=4)
    write_gguf(tmp_path / "a.gguf", decoder, exported, name="a name")
    assert config_of(tmp_path / "a.gguf", tmp_path / "ours") == cfg
    changed_gguf(tmp_path / "a.gguf", {}, {"rope_freqs.weight": np.array([1, 1, 1, 3, 9], np.float32)})
    with pytest.raises(ValueError, match="only the factors of Llama 3 are supported"):
        import_model(tmp_path / "a.gguf", tmp_path / "other")


def test_import_reads_a_window_of_all_layers_as_mistral_has_it(llama_file, tmp_path):
    cfg = config_of(changed_gguf(llama_file, {"llama.attention.sliding_window": 9}), tmp_path / "ours")
    assert cfg.sliding_window == 9 and cfg.sliding_layers == (0, 1, 2, 3)
    cfg = config_of(changed_gguf(llama_file, {"llama.attention.sliding_window": 64}), tmp_path / "whole")
    assert cfg.sliding_window is None  # no shorter than the context


CONTRADICTIONS = {
    "general.architecture": ("mamba", r"'mamba' is not supported, only llama, qwen2, qwen3, gpt2, arcee"),
    "llama.block_count": (3, r"tensors are unknown, first \['blk.3"),
    "llama.block_count ": (10**9, "1000000000 layers, but the file holds"),
    "llama.attention.head_count": (0, "n_heads=0 must be at least 1"),
    "llama.attention.head_count ": (8, "n_heads=8|has shape"),
    "llama.attention.head_count_kv": ([1, 2, 2, 2], "must be one whole number"),
    "llama.embedding_length": (28, "has shape"),
    "llama.embedding_length ": (None, "llama.embedding_length=None must be one whole number"),
    "llama.feed_forward_length": (41, "has shape"),
    "llama.feed_forward_length ": (2**30, "does not belong to these weights"),
    "llama.context_length": (2**31 - 1, "GB of memory; this machine has"),
    "llama.attention.layer_norm_rms_epsilon": ("x", "must be one number"),
    "llama.attention.layer_norm_rms_epsilon ": (float("nan"), "must be one number"),
    "llama.attention.value_length": (12, "value_length=12 is not supported, only 10"),
    "llama.rope.dimension_count": (4, "dimension_count=4 is not supported, only 10"),
    "llama.rope.scaling.type": ("yarn", "'yarn' is not supported, only 'linear'"),
    "llama.rope.freq_base": (-1.0, "rope_theta=-1.0 must be a finite number above 0"),
    "split.count": (3, "one of several files of a model; join them"),
    "llama.expert_count": (8, "expert_count=8 is not supported, only 0"),
}


@pytest.mark.parametrize("field", CONTRADICTIONS)
def test_import_refuses_metadata_that_contradict_the_tensors_or_us(llama_file, tmp_path, field):
    value, message = CONTRADICTIONS[field]
    changed_gguf(llama_file, {field.strip(): value})
    check_refused(llama_file, tmp_path / "ours", message)


TENSORS = {
    "output_norm.weight": (None, r"1 of \d+ tensors are missing, first \['output_norm.weight"),
    "token_embd.weight": (None, "token_embd.weight is missing"),
    "../../secret": (np.ones(3, np.float32), r"unknown, first \['../../secret'\]"),
    "output_norm.weight ": (np.ones(9, np.float32), r"output_norm.weight has shape \(9,\), expected \(24,\)"),
    "blk.2.ffn_norm.weight": (
        np.array([np.nan] * 24, np.float32),
        r"model\.layers\.2\.post_attention_layernorm\.weight has numbers that are infinite or nan",
    ),
}


@pytest.mark.parametrize("name", TENSORS)
def test_import_refuses_tensors_that_contradict_the_metadata(llama_file, tmp_path, name):
    tensor, message = TENSORS[name]
    changed_gguf(llama_file, {}, {name.strip(): tensor})
    check_refused(llama_file, tmp_path / "ours", message)


def test_import_of_mutated_files_is_one_error_or_a_whole_model(llama_file, tmp_path):
    content, draw = llama_file.read_bytes(), random.Random(1)
    n_bytes_of_header, n_refused = min(tensor.start for tensor in read_gguf(llama_file).tensors.values()), 0
    for i in range(N_MUTATIONS):
        mutated = bytearray(content)
        place = draw.randrange(n_bytes_of_header)
        mutated[place : place + 4] = draw.choice((bytes(4), b"\xff" * 4, draw.randbytes(4)))
        llama_file.write_bytes(mutated)
        out = tmp_path / str(i)
        try:
            import_model(llama_file, out)
        except ValueError as error:
            n_refused += 1
            assert "\n" not in str(error) and not out.exists()
        else:
            load_decoder(out)
    assert N_MUTATIONS / 3 < n_refused < N_MUTATIONS


# What is refused, whatever the source is.


def check_refused(source: Path, out: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        import_model(source, out)
    assert "\n" not in str(caught.value) and str(source) in str(caught.value)
    assert not out.exists()


@pytest.fixture
def folder(exported, decoders, large_weights, tmp_path) -> Path:
    write_folder(tmp_path / "theirs", large_weights(Decoder(decoders["llama"]), seed=1), tokenizer=exported)
    return tmp_path / "theirs"


def change_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt", "weights.pkl"])
def test_import_refuses_pickles(folder, tmp_path, name):
    (folder / "model.safetensors").rename(folder / name)
    check_refused(folder, tmp_path / "ours", f"{name} is pickled, may run code, and is not read")
    check_refused(folder / name, tmp_path / "ours", "is pickled, which may run code, and is not read")


def test_import_refuses_code_of_the_folder(folder, tmp_path):
    change_config(folder, auto_map={"AutoModelForCausalLM": "modeling.MyModel"})
    (folder / "modeling.py").write_text("raise SystemExit('this was run')\n")
    check_refused(folder, tmp_path / "ours", "code of its own folder, which is never run")


CONFIGS = {
    "model_type": ("mamba", "model_type='mamba': only qwen3, llama"),
    "num_hidden_layers": (5, "tensors are missing"),
    "num_hidden_layers ": (10**9, "layers, but the weight files hold"),
    "hidden_size": (48, "has shape"),
    "hidden_size ": (10**7, "does not belong to these weights"),
    "vocab_size": (258, "has shape"),
    "tie_word_embeddings": (True, "lm_head.weight differs from model.embed_tokens.weight"),
    "num_attention_heads": ("4", "must be a number"),
    "quantization_config": ({"bits": 4}, "quantised weights are not supported"),
    "max_position_embeddings": (
        10**12,
        r"GB of memory; this machine has [\d.,]+ GB, enough for [\d.]+ billion weights",
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_import_refuses_a_config_that_contradicts_its_weights(folder, tmp_path, name):
    value, message = CONFIGS[name]
    change_config(folder, **{name.strip(): value})
    check_refused(folder, tmp_path / "ours", message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problem_type": "regression"}, "problem_type='regression' is not supported"),
        ({"id2label": {"0": "a", "1": "b", "2": "a"}}, "id2label has the class 'a' twice"),
    ],
)
def test_import_refuses_a_classifier_whose_answers_are_no_classes(changes, message, large_weights, tmp_path):
    write_folder(tmp_path / "theirs", large_weights(SequenceClassifier(BERT, 3), seed=2), labels=("a", "b", "c"))
    (tmp_path / "theirs" / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\n##a\n")
    change_config(tmp_path / "theirs", problem_type="single_label_classification")
    import_model(tmp_path / "theirs", tmp_path / "sound")
    change_config(tmp_path / "theirs", **changes)
    check_refused(tmp_path / "theirs", tmp_path / "ours", message)


def test_import_refuses_truncated_weights(folder, tmp_path):
    content = (folder / "model.safetensors").read_bytes()
    for n_bytes in (0, 4, 100, len(content) - 1):
        (folder / "model.safetensors").write_bytes(content[:n_bytes])
        check_refused(folder, tmp_path / "ours", "model.safetensors")


def test_import_refuses_a_weight_that_is_in_two_files(exported, decoders, large_weights, tmp_path):
    folder = tmp_path / "theirs"
    write_folder(folder, large_weights(Decoder(decoders["qwen3"]), seed=1), max_shard_bytes=9000, tokenizer=exported)
    one, other, *_ = sorted(folder.glob("*.safetensors"))
    save_file(load_file(one) | load_file(other), other)
    check_refused(folder, tmp_path / "ours", f"{other.name}: .* is also in another file")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_import_names_a_weight_that_is_not_finite(folder, tmp_path, value):
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = value
    save_file(weights, folder / "model.safetensors")
    check_refused(folder, tmp_path / "ours", r"model\.layers\.1\.mlp\.up_proj\.weight has numbers that are infinite")


def test_import_refuses_quantised_weights(folder, tmp_path):
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"].to(torch.int8)
    save_file(weights, folder / "model.safetensors")
    check_refused(folder, tmp_path / "ours", "model.norm.weight has the type torch.int8")


def test_import_refuses_links_out_of_the_folder(folder, tmp_path):
    (folder / "model.safetensors").rename(tmp_path / "secret")
    (folder / "model.safetensors").symlink_to(tmp_path / "secret")
    check_refused(folder, tmp_path / "ours", "model.safetensors is a link that leads out of the folder")


def test_import_follows_the_links_of_a_hub_cache(folder, tmp_path):
    snapshot = tmp_path / "hub" / "snapshots" / "abc"
    (tmp_path / "hub" / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in folder.iterdir():
        path.rename(tmp_path / "hub" / "blobs" / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert import_model(snapshot, tmp_path / "ours").kind == "decoder"


@pytest.mark.parametrize(
    ("name", "message"), [("missing", "does not exist"), ("a.txt", "is neither a folder nor a GGUF file")]
)
def test_import_refuses_what_is_no_model(tmp_path, name, message):
    (tmp_path / "a.txt").write_text("text")
    check_refused(tmp_path / name, tmp_path / "ours", message)


def test_import_reads_the_licence_of_the_model_card(folder, tmp_path):
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n\nlicense: none\n")
    assert import_model(folder, tmp_path / "ours").licence == "apache-2.0"
    (folder / "README.md").write_text("# A model\n")
    assert import_model(folder, tmp_path / "other").licence is None


@pytest.mark.parametrize("kind", ["encoder", "masked_lm", "sequence_classifier"])
def test_import_of_an_encoder_keeps_its_kind_labels_and_weights(kind, large_weights, tmp_path):
    classes = {
        "encoder": Encoder,
        "masked_lm": MaskedLM,
        "sequence_classifier": lambda cfg: SequenceClassifier(cfg, 3),
    }
    labels = ("no", "perhaps", "yes") if kind == "sequence_classifier" else None
    model = large_weights(classes[kind](BERT), seed=2)
    write_folder(tmp_path / "theirs", model, labels=labels)
    (tmp_path / "theirs" / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\n##a\n")
    imported = import_model(tmp_path / "theirs", tmp_path / "ours")
    loaded, loaded_labels = load_model(tmp_path / "ours")
    assert (imported.family, imported.kind, loaded_labels) == ("bert", kind, labels)
    for (name, one), (_, other) in zip(loaded.named_parameters(), model.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    assert load_tokenizer(tmp_path / "ours" / "tokenizer").encode("aa b") == [5, 7, 6]


def test_command_import_converts_a_model_that_sample_continues(llama_file, tmp_path, capsys):
    assert main(["import", str(llama_file), str(tmp_path / "ours")]) == 0
    assert capsys.readouterr().out.startswith("a name: ")
    assert main(["sample", str(tmp_path / "ours"), "a text", "--tokens", "3"]) == 0
    assert capsys.readouterr().out.startswith("a text")
    assert main(["import", str(llama_file), str(tmp_path / "ours")]) == 1
    assert "exists and is no empty folder" in capsys.readouterr().err


# What is in the output folder.


def test_import_into_a_folder_in_use_replaces_the_model_and_keeps_other_files(
    exported, folder, llama_file, decoders, large_weights, tmp_path
):
    write_gguf(llama_file, large_weights(Decoder(decoders["gpt2"]), seed=4), exported, name="a name")
    import_model(folder, tmp_path / "ours")
    (tmp_path / "ours" / "started.json").write_text("{}")
    (tmp_path / "ours" / ".import").mkdir()
    (tmp_path / "ours" / ".import" / "half").write_text("of an import that was killed")
    import_model(llama_file, tmp_path / "ours")
    assert load_decoder(tmp_path / "ours").cfg.mlp_bias
    names = {path.name for path in (tmp_path / "ours").iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer", "started.json"}


def test_refused_import_leaves_an_earlier_model_as_it_was(folder, tmp_path):
    import_model(folder, tmp_path / "ours")
    before = {path.name: path.read_bytes() for path in (tmp_path / "ours").iterdir() if path.is_file()}
    change_config(folder, num_hidden_layers=5)
    with pytest.raises(ValueError, match="missing"):
        import_model(folder, tmp_path / "ours")
    assert {path.name: path.read_bytes() for path in (tmp_path / "ours").iterdir() if path.is_file()} == before


@pytest.mark.parametrize("moment", ["write_tensors_as_they_come", "replace_json", "flush"])
def test_import_that_fails_at_any_moment_leaves_nothing(folder, tmp_path, monkeypatch, moment):
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"model.hf.importing.{moment}", full)
    with pytest.raises(OSError, match="No space left"):
        import_model(folder, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
