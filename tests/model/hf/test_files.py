"""Folders of Hugging Face's: what is written, what is refused, and that nothing is overwritten half."""

import dataclasses
import json
import os
import random
import signal

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig

from model.generation.sample_config import SampleConfig
from model.hf import replacing
from model.hf.files import read_classifier, read_folder, write_folder
from model.hf.replacing import exchange, replacing_export
from model.hf.weights import weights_from_hf
from model.network.decoder import Decoder
from model.training.weights import named_weights

IDS_BT = torch.tensor([[5, 6, 7, 8, 90, 2, 3]])


@pytest.fixture
def decoder(decoders, large_weights) -> Decoder:
    return large_weights(Decoder(decoders["qwen3"]), seed=3)


def test_folder_written_and_read_holds_the_same_config_and_weights(cfg, large_weights, tmp_path):
    ours = large_weights(Decoder(cfg), seed=3)
    write_folder(tmp_path / "out", ours)
    back = read_folder(tmp_path / "out")
    assert back.cfg == ours.cfg
    weights, weights_back = named_weights(ours), named_weights(back)
    assert weights.keys() == weights_back.keys()
    for name, weight in weights.items():
        assert torch.equal(weight, weights_back[name]), name


def test_folder_in_shards_reads_like_a_whole_one_here_and_in_transformers(decoder, tmp_path):
    files = write_folder(tmp_path / "out", decoder, max_shard_bytes=8000)
    assert sum(path.suffix == ".safetensors" for path in files) > 3
    assert (tmp_path / "out" / "model.safetensors.index.json").exists()
    assert torch.equal(read_folder(tmp_path / "out")(IDS_BT), decoder(IDS_BT))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="8KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    assert torch.equal(read_folder(tmp_path / "theirs")(IDS_BT), decoder(IDS_BT))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_folder_of_narrow_weights_is_read_into_float32(dtype, tolerance, decoder, tmp_path):
    write_folder(tmp_path / "out", decoder, dtype=dtype)
    assert {str(w.dtype) for w in load_file(tmp_path / "out" / "model.safetensors").values()} == {f"torch.{dtype}"}
    back = read_folder(tmp_path / "out")
    assert next(back.parameters()).dtype == torch.float32
    expected = named_weights(decoder)
    for name, weight in named_weights(back).items():
        torch.testing.assert_close(weight, expected[name], atol=0, rtol=tolerance)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert str(theirs.dtype) == f"torch.{dtype}"


def test_weight_too_large_for_float16_is_named(decoder, tmp_path):
    with torch.no_grad():
        decoder.model.layers[1].mlp.up_proj.weight[0, 0] = 70_000.0
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj\.weight contains 70000, which float16 cannot"):
        write_folder(tmp_path / "out", decoder, dtype="float16")
    assert not list(tmp_path.iterdir())
    with torch.no_grad():
        decoder.model.layers[1].mlp.up_proj.weight[0, 0] = 3.4e38  # rounded up, it becomes infinite
    with pytest.raises(ValueError, match=r"contains 3\.4e\+38, which bfloat16 cannot represent"):
        write_folder(tmp_path / "out", decoder, dtype="bfloat16")


def test_unknown_dtype_is_refused(decoder, tmp_path):
    with pytest.raises(ValueError, match="dtype='int8' must be one of float32"):
        write_folder(tmp_path / "out", decoder, dtype="int8")


def test_defaults_of_generation_are_ours(decoder, tmp_path):
    write_folder(tmp_path / "out", decoder)
    theirs = GenerationConfig.from_pretrained(tmp_path / "out")
    ours = SampleConfig()
    assert (theirs.do_sample, theirs.temperature) == (True, ours.temperature)
    assert (theirs.top_k, theirs.top_p) == (ours.top_k or 0, 1.0 if ours.top_p is None else ours.top_p)


def test_model_card_tells_what_the_model_is(decoder, tmp_path):
    write_folder(tmp_path / "out", decoder, notes={"source": "a | b\nc"})
    card = (tmp_path / "out" / "README.md").read_text()
    n_weights = sum(weight.numel() for weight in decoder.parameters())
    assert "| architecture | Qwen3ForCausalLM |" in card
    assert f"| parameters | {n_weights:,} |" in card
    assert "| source | a \\| b c |" in card


# What is replaced.


def test_earlier_export_is_replaced_whole(decoder, tmp_path):
    write_folder(tmp_path / "out", decoder, max_shard_bytes=8000)
    files = write_folder(tmp_path / "out", decoder)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "out"]
    assert sorted((tmp_path / "out").iterdir()) == sorted(files)


def test_empty_folder_is_filled_and_leftovers_of_a_killed_export_go(decoder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / ".out.part").mkdir()
    (tmp_path / ".out.part" / "half").write_text("x")
    write_folder(tmp_path / "out", decoder)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "out"]


@pytest.mark.parametrize("is_export", [False, True])
def test_folder_with_files_of_others_is_left_alone(is_export, decoder, tmp_path):
    if is_export:
        write_folder(tmp_path, decoder)
    (tmp_path / "thesis.txt").write_text("years of work")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"contains thesis\.txt, which no export wrote"):
        write_folder(tmp_path, decoder)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("content", ["{}", "[]", "null", '{"files": 3}', '{"files": [["a"]]}'])
def test_export_whose_list_of_files_is_damaged_is_left_alone(content, decoder, tmp_path):
    files = write_folder(tmp_path / "out", decoder)
    (tmp_path / "out" / "gristmill_export.json").write_text(content)
    with pytest.raises(ValueError, match=r"gristmill_export\.json does not list the files of an export"):
        write_folder(tmp_path / "out", decoder)
    assert all(path.exists() for path in files)


def test_link_to_itself_is_refused(decoder, tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "out")
    with pytest.raises(ValueError, match="leads back to itself"):
        write_folder(tmp_path / "out", decoder)


def test_target_that_is_a_file_is_refused(decoder, tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(ValueError, match="is a file"):
        write_folder(tmp_path / "out", decoder)


def test_export_that_fails_leaves_the_earlier_one(decoder, decoders, tmp_path):
    write_folder(tmp_path / "out", decoder)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with torch.no_grad():
        decoder.model.norm.weight[0] = 1e9
    with pytest.raises(ValueError, match="float16"):
        write_folder(tmp_path / "out", decoder, dtype="float16")
    other = Decoder(dataclasses.replace(decoders["qwen3"], mlp="relu2"))
    with pytest.raises(ValueError, match="mlp='relu2'"):
        write_folder(tmp_path / "out", other)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_export_that_fails_while_it_writes_leaves_nothing_beside_the_earlier_one(decoder, tmp_path):
    write_folder(tmp_path / "out", decoder)
    before = sorted((tmp_path / "out").iterdir())
    with pytest.raises(OSError, match="disk is full"), replacing_export(tmp_path / "out") as part:
        (part / "half").write_text("x")
        raise OSError("disk is full")
    assert list(tmp_path.iterdir()) == [tmp_path / "out"] and sorted((tmp_path / "out").iterdir()) == before


def end_of_export_killed(folder, kill_at: int, with_exchange: bool) -> str:
    """Exports in a child process that is killed at event `kill_at`: before or after a rename or an exchange."""
    events: list[str] = []

    def killed_around(function):
        def moved(*paths):
            event()
            result = function(*paths)
            event()
            return result

        return moved

    def event() -> None:
        events.append("")
        if len(events) > kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:  # only files from here to its end
        os.replace = killed_around(os.replace)
        replacing.exchange = killed_around(exchange) if with_exchange else lambda one, other: False
        try:
            with replacing_export(folder / "out") as part:
                (part / "new").write_text("x")
                (part / "gristmill_export.json").write_text('{"files": ["new"]}')
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return "killed" if os.WIFSIGNALED(status) else "finished" if status == 0 else "failed"


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize(("with_exchange", "n_kills"), [(True, 2), (False, 4)])
def test_export_killed_around_any_rename_leaves_a_whole_export_to_the_next_one(with_exchange, n_kills, tmp_path):
    """A kill between two renames left no folder at all, and the next export deleted the earlier one as a leftover."""
    if with_exchange and not can_exchange(tmp_path):
        pytest.skip("this file system cannot exchange two folders")
    for kill_at in range(n_kills + 1):
        folder = tmp_path / str(kill_at)
        (folder / "out").mkdir(parents=True)
        (folder / "out" / "earlier").write_text("y")
        (folder / "out" / "gristmill_export.json").write_text('{"files": ["earlier"]}')
        end = end_of_export_killed(folder, kill_at, with_exchange)
        assert end == ("killed" if kill_at < n_kills else "finished")
        assert (folder / "out" / "gristmill_export.json").exists() or not with_exchange
        with pytest.raises(OSError, match="disk is full"), replacing_export(folder / "out"):
            raise OSError("disk is full")
        assert [path.name for path in folder.iterdir()] == ["out"]
        names = {path.name for path in (folder / "out").iterdir()} - {"gristmill_export.json"}
        assert names == ({"new"} if kill_at >= n_kills - 1 else {"earlier"}), kill_at


def can_exchange(folder) -> bool:
    for name in ("one", "other"):
        (folder / name).mkdir()
    return exchange(folder / "one", folder / "other")


def test_export_through_a_link_replaces_the_folder_that_it_points_to(decoder, tmp_path):
    write_folder(tmp_path / "there", decoder, max_shard_bytes=8000)
    (tmp_path / "link").symlink_to(tmp_path / "there")
    write_folder(tmp_path / "link", decoder)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there" / "model.safetensors").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "there"]


# What is refused.


def rewrite(folder, **changes) -> None:
    """Write model.safetensors again with tensors added, replaced or (None) taken away."""
    weights = load_file(folder / "model.safetensors") | changes
    save_file({name: w for name, w in weights.items() if w is not None}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("qwen3", {"model.layers.0.self_attn.q_proj.bias": torch.zeros(40)}, r"unknown.*q_proj\.bias"),
        ("qwen3", {"model.layers.2.mlp.up_proj.weight": None}, r"missing.*layers\.2\.mlp\.up_proj"),
        ("qwen3", {"model.layers.9.mlp.up_proj.weight": torch.zeros(40, 24)}, r"unknown.*layers\.9\.mlp"),
        ("qwen3", {"model.norm.weight": torch.zeros(25)}, r"model\.norm\.weight has shape \(25,\), expected \(24,\)"),
        ("qwen3", {"model.norm.weight": torch.zeros(24, dtype=torch.int8)}, r"norm\.weight has the type torch\.int8"),
        ("gpt2", {"transformer.h.1.attn.c_attn.bias": None}, r"missing.*h\.1\.attn\.c_attn\.bias"),
        ("gpt2", {"transformer.h.1.attn.extra": torch.zeros(3)}, r"unknown.*h\.1\.attn\.extra"),
        ("gpt2", {"transformer.h.0.mlp.c_fc.weight": torch.zeros(40, 24)}, r"c_fc\.weight has shape \(40, 24\), exp"),
        ("gpt2-untied", {"lm_head.weight": None}, r"missing.*lm_head\.weight"),
    ],
)
def test_weight_that_is_unknown_missing_or_misshapen_is_named(
    name, changes, named, decoders, large_weights, tmp_path
):
    write_folder(tmp_path, large_weights(Decoder(decoders[name]), seed=3))
    rewrite(tmp_path, **changes)
    with pytest.raises(ValueError, match=named):
        read_folder(tmp_path)


@pytest.mark.parametrize(("name", "embedding"), [("qwen3-tied", "model.embed_tokens"), ("gpt2", "transformer.wte")])
def test_tied_config_with_two_different_matrices_is_refused(name, embedding, decoders, tmp_path):
    decoder = Decoder(decoders[name])
    write_folder(tmp_path, decoder)
    weights = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in weights
    weights["lm_head.weight"] = weights[f"{embedding}.weight"].clone()
    weights_from_hf(decoder, decoder.cfg, weights)  # the same matrix twice is fine
    weights["lm_head.weight"] += 1
    with pytest.raises(ValueError, match=rf"lm_head\.weight differs from {embedding}"):
        weights_from_hf(decoder, decoder.cfg, weights)


@pytest.mark.parametrize("seed", range(5))
def test_truncated_weights_are_refused_by_file(seed, decoder, tmp_path):
    write_folder(tmp_path, decoder)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[: random.Random(seed).randrange(path.stat().st_size)])
    with pytest.raises(ValueError, match=r"model\.safetensors: not a whole safetensors file"):
        read_folder(tmp_path)


def test_folder_with_pickled_weights_only_is_refused(decoder, tmp_path):
    write_folder(tmp_path, decoder)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"neither.*pytorch_model\.bin is pickled, may run code, and is not read"):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    ("index", "named"),
    [
        ({"weight_map": {"a": "../secret.safetensors"}}, "outside"),
        ({"weight_map": ["a"]}, "weight_map must say"),
        ({}, "weight_map must say"),
        ({"weight_map": {"a": "missing.safetensors"}}, r"missing\.safetensors"),
        ({"weight_map": {"a": ".."}}, "points outside the folder"),
    ],
)
def test_broken_index_of_shards_is_refused(index, named, decoder, tmp_path):
    write_folder(tmp_path, decoder)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=named):
        read_folder(tmp_path)


def test_weight_that_its_shard_lacks_is_named(decoder, tmp_path):
    write_folder(tmp_path, decoder, max_shard_bytes=8000)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.extra"] = index["weight_map"]["model.norm.weight"]
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"model\.extra is not in model-0"):
        read_folder(tmp_path)


@pytest.mark.parametrize("content", ["{", "", "\xff"])
def test_config_that_is_no_json_is_refused_by_file(content, tmp_path):
    (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"config\.json: not readable as JSON"):
        read_folder(tmp_path)


def test_folder_without_config_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"not a Hugging Face folder: it has no config\.json"):
        read_folder(tmp_path)


def test_classifier_without_names_of_its_classes_is_refused(decoder, tmp_path):
    write_folder(tmp_path, decoder)
    with pytest.raises(ValueError, match=r"describes a language model .*, expected a classifier"):
        read_classifier(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["Qwen3ForSequenceClassification"]}))
    with pytest.raises(ValueError, match="id2label"):
        read_classifier(tmp_path)
