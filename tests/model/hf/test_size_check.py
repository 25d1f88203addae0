"""Model folders that ask for more than their weights hold are refused before memory is taken."""

import json
import resource
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from model.hf.files import read_classifier, read_folder, write_folder
from model.network.decoder import Decoder
from model.network.heads import SequenceClassifier
from model.network.registry import describe, load_classifier, load_decoder, save_model
from model.network.size_check import shapes_in

ROOM = 2_000_000_000  # bytes of address space that a refusal may use beyond what the tests hold


@pytest.fixture
def limited_memory():
    """Takes the process's right to much more memory, so that an allocation fails instead of filling the machine."""
    now = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + ROOM, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def edited(path: Path, *keys: str, **changes: object) -> None:
    content = json.loads(path.read_text("utf-8"))
    table = content
    for key in keys:
        table = table[key]
    table.update(changes)
    path.write_text(json.dumps(content), "utf-8")


HUGE = [
    ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000 layers, but the weight files hold"),
    ("gpt2", {"n_layer": 10**9}, "n_layer=1000000000 layers"),
    ("qwen3", {"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000 layers"),
    ("qwen3", {"vocab_size": 10**12}, r"vocab_size=1000000000000 has .* the weight files beside it hold"),
    ("qwen3", {"intermediate_size": 10**13}, r"d_ff=10000000000000, vocab_size=97 has .* weights"),
    ("qwen3", {"hidden_size": 2**40}, r"d_model=1099511627776"),
    ("qwen3", {"max_position_embeddings": 10**13}, r"max_seq_len=10000000000000 takes at least .* GB of memory"),
    ("gpt2", {"n_positions": 10**12}, r"has .* weights in"),
    ("qwen3", {"num_hidden_layers": 10**400}, "num_hidden_layers=10000.* must be a number of at most 1e"),
    ("qwen3", {"vocab_size": -5}, "vocab_size=-5 must be at least 1"),
    ("qwen3", {"vocab_size": "many"}, "vocab_size='many' must be a number"),
    ("qwen3", {"hidden_size": float("nan")}, "hidden_size=nan must be a number"),
    ("qwen3", {"hidden_size": [24]}, r"hidden_size=\[24\] must be a number"),
]


@pytest.mark.parametrize(("family", "changes", "message"), HUGE)
def test_config_that_asks_for_absurd_sizes_is_refused_before_memory_is_taken(
    family, changes, message, decoders, tmp_path, limited_memory
):
    """A config.json is a few bytes; num_hidden_layers=1e9 built layers until the process was killed
    (antirez/ds4#545: a file of 24 bytes asks for 137 GB)."""
    write_folder(tmp_path, Decoder(decoders[family]))
    edited(tmp_path / "config.json", **changes)
    with pytest.raises(ValueError, match=message):
        read_folder(tmp_path)


@pytest.mark.parametrize("reader", [read_folder, read_classifier])
def test_config_nested_without_end_is_refused_by_its_file(reader, decoders, tmp_path):
    """A deeply nested config.json ended in an unexpected RecursionError that named no file."""
    write_folder(tmp_path, Decoder(decoders["qwen3"]))
    (tmp_path / "config.json").write_text("[" * 200_000, "utf-8")
    with pytest.raises(ValueError, match=r"config\.json: not readable as JSON"):
        reader(tmp_path)


@pytest.mark.parametrize("names", [None, [], {"0": "a"}, {"0": "a", "2": "b"}, "ab", 5])
def test_id2label_that_is_no_table_of_classes_is_refused(names, decoders, tmp_path):
    write_folder(tmp_path, SequenceClassifier(decoders["qwen3"], 2), labels=("a", "b"))
    edited(tmp_path / "config.json", id2label=names)
    with pytest.raises(ValueError, match=r"id2label=.* must name the classes"):
        read_classifier(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layers": 10**9}, "the weight files beside it hold"),
        ({"vocab_size": 10**12}, "the weight files beside it hold"),
        ({"n_layers": "4"}, "n_layers='4' must be a whole number"),
        ({"n_layers": 2.5}, "n_layers=2.5 must be a whole number"),
        ({"d_model": True}, "d_model=True must be a whole number"),
        ({"d_ff": -1}, "d_ff=-1 must be at least 1"),
        ({"rope_theta": "x"}, "not a config of this version"),
        ({"rope_scaling": 3}, "rope_scaling=3 must be an object"),
        ({"rope_scaling": {"kind": "linear", "factor": float("nan")}}, "factor=nan must be"),
        ({"qk_norm": "no"}, "qk_norm='no' must be true or false"),
        ({"sliding_layers": 5}, "not a config of this version"),
    ],
)
def test_own_model_folder_with_absurd_sizes_is_refused_alike(changes, message, decoders, tmp_path, limited_memory):
    save_model(tmp_path, Decoder(decoders["qwen3"]), describe(decoders["qwen3"]))
    edited(tmp_path / "config.json", "model", **changes)
    with pytest.raises(ValueError, match=message):
        load_decoder(tmp_path)


@pytest.mark.parametrize("labels", [None, "ab", ["a"], ["a", 5]])
def test_own_classifier_without_a_list_of_labels_is_refused(labels, decoders, tmp_path):
    cfg = decoders["qwen3"]
    save_model(tmp_path, SequenceClassifier(cfg, 2), describe(cfg, ("a", "b")))
    edited(tmp_path / "config.json", labels=labels)
    with pytest.raises(ValueError, match=r"labels=.* must be a list of two or more names"):
        load_classifier(tmp_path)


def header_of(path: Path) -> dict:
    raw = path.read_bytes()
    (n_bytes,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + n_bytes])


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 16]}}, "not a whole safetensors file"),
        ({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 10**12]}}, "not a whole safetensors file"),
        ({"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}, "not a whole safetensors file"),
        (10**9, "its header says that it has 1000000000 bytes"),
        (2**63, "its header says that it has 9223372036854775808 bytes"),
    ],
)
def test_safetensors_header_that_lies_about_sizes_is_refused(header, message, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(4)}, path)
    text = json.dumps(header if isinstance(header, dict) else header_of(path)).encode()
    length = len(text) if isinstance(header, dict) else header
    path.write_bytes(struct.pack("<Q", length) + text + bytes(16))
    with pytest.raises(ValueError, match=message):
        shapes_in(path)


def test_folder_with_absurdly_many_empty_tensors_is_refused(decoders, tmp_path):
    """Tensors without numbers cost a file nothing, and a reader memory each."""
    write_folder(tmp_path, Decoder(decoders["qwen3"]))
    path = tmp_path / "model.safetensors"
    one = '":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    text = ("{" + ",".join(f'"w{i}{one}' for i in range(300_000)) + "}").encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(ValueError, match="and a header at most 16000000"):
        read_folder(tmp_path)


def test_shapes_of_a_whole_file_are_those_of_its_tensors(tmp_path):
    save_file({"a": torch.zeros(4, 3), "b": torch.zeros(())}, tmp_path / "w.safetensors")
    assert shapes_in(tmp_path / "w.safetensors") == {"a": (4, 3), "b": ()}
