"""What an export takes along of a tokenizer, ours or somebody else's."""

import json

import pytest
from tokenizers import Tokenizer

from model.hf.tokenizer import read_exported_tokenizer

LETTERS = {"a": 0, "b": 1, "ab": 2, "Ġ": 3}
TOKENIZER = {
    "version": "1.0",
    "added_tokens": [
        {
            "id": 4,
            "content": "<end>",
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
    ],
    "normalizer": None,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "post_processor": None,
    "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "model": {"type": "BPE", "vocab": LETTERS, "merges": [["a", "b"]]},
}
CONFIG = {
    "bos_token": "<end>",
    "eos_token": {"content": "<end>"},
    "pad_token": "<none>",
    "split_special_tokens": True,
}


@pytest.fixture
def folder(tmp_path):
    write(tmp_path, "tokenizer.json", TOKENIZER)
    write(tmp_path, "tokenizer_config.json", CONFIG)
    write(tmp_path, "gristmill_tokenizer.json", {"pattern_name": "gpt-2"})
    return tmp_path


def write(folder, name: str, value) -> None:
    (folder / name).write_text(json.dumps(value))


def test_tokenizer_of_ours_opens_every_text_with_the_first_token(folder):
    exported = read_exported_tokenizer(folder, 5)
    assert exported.opens_with_bos and exported.pattern_name == "gpt-2"
    theirs = Tokenizer.from_str(exported.files["tokenizer.json"])
    assert theirs.encode("ab").ids == [4, 2]
    assert theirs.encode("ab", "a").ids == [4, 2, 0]
    assert theirs.encode("ab", add_special_tokens=False).ids == [2]


def test_tokens_control_tokens_merges_and_special_ids_are_read(folder):
    exported = read_exported_tokenizer(folder, 5)
    assert exported.tokens == {**LETTERS, "<end>": 4}
    assert exported.control == {4} and exported.merges == ("a b",)
    assert exported.special_ids == {"bos_token": 4, "eos_token": 4}  # <none> is no token


@pytest.mark.parametrize("opening", [[], [4]])
def test_imported_tokenizer_is_copied_as_it_is_and_its_pattern_has_a_name(folder, opening):
    write(folder, "gristmill_tokenizer.json", {"vocabulary": "imported", "opening": opening})
    exported = read_exported_tokenizer(folder, 64)  # more than it has tokens
    assert json.loads(exported.files["tokenizer.json"]) == TOKENIZER
    assert exported.pattern_name == "gpt-2" and exported.opens_with_bos == bool(opening)


def test_imported_tokenizer_of_an_encoder_has_no_merges(folder):
    model = {"type": "WordPiece", "vocab": LETTERS, "unk_token": "a"}
    write(folder, "tokenizer.json", {**TOKENIZER, "model": model, "pre_tokenizer": {"type": "BertPreTokenizer"}})
    write(folder, "gristmill_tokenizer.json", {"vocabulary": "imported", "opening": [4]})
    exported = read_exported_tokenizer(folder, 64)
    assert exported.merges == () and exported.tokens == {**LETTERS, "<end>": 4} and exported.pattern_name is None


def test_tokenizer_of_others_is_copied_as_it_is_and_may_have_fewer_tokens_than_the_model(folder):
    (folder / "gristmill_tokenizer.json").unlink()
    write(folder, "special_tokens_map.json", {"eos_token": "<end>"})
    exported = read_exported_tokenizer(folder, 64)
    assert not exported.opens_with_bos and exported.pattern_name is None
    assert {name: json.loads(text) for name, text in exported.files.items()} == {
        "tokenizer.json": TOKENIZER,
        "tokenizer_config.json": CONFIG,
        "special_tokens_map.json": {"eos_token": "<end>"},
    }


def test_chat_template_of_the_folder_is_taken_along_and_a_given_one_comes_first(folder):
    assert read_exported_tokenizer(folder, 5).chat_template is None
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    found = read_exported_tokenizer(folder, 5)
    assert found.files["chat_template.jinja"] == found.chat_template == "{{ messages }}"
    assert read_exported_tokenizer(folder, 5, "other").files["chat_template.jinja"] == "other"
    assert json.loads(found.files["tokenizer_config.json"])["split_special_tokens"] is False


@pytest.mark.parametrize("vocab_size", [4, 6])
def test_tokenizer_that_does_not_fit_the_model_is_refused(vocab_size, folder):
    with pytest.raises(ValueError, match=f"the tokenizer has 5 tokens, the model {vocab_size}"):
        read_exported_tokenizer(folder, vocab_size)


def test_tokenizer_of_others_with_more_tokens_than_the_model_is_refused(folder):
    (folder / "gristmill_tokenizer.json").unlink()
    with pytest.raises(ValueError, match="the tokenizer has 5 tokens, the model 4"):
        read_exported_tokenizer(folder, 4)


@pytest.mark.parametrize(
    "broken",
    [
        [],
        {},
        {**TOKENIZER, "model": None},
        {**TOKENIZER, "model": {"type": "WordLevel", "vocab": LETTERS, "merges": []}},
        {**TOKENIZER, "model": {"type": "BPE", "vocab": {"a": "0"}, "merges": []}},
        {**TOKENIZER, "model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}},
        {**TOKENIZER, "model": {"type": "BPE", "vocab": LETTERS}},
        {**TOKENIZER, "added_tokens": [{"id": 4}]},
    ],
)
def test_broken_tokenizer_json_is_refused_by_file(broken, folder):
    write(folder, "tokenizer.json", broken)
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a tokenizer of Hugging Face"):
        read_exported_tokenizer(folder, 5)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_missing_file_is_named(name, folder):
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"no tokenizer to export: {name} is missing"):
        read_exported_tokenizer(folder, 5)


def test_tokenizer_config_that_is_no_object_is_refused(folder):
    write(folder, "tokenizer_config.json", [1])
    with pytest.raises(ValueError, match=r"tokenizer_config\.json contains a list"):
        read_exported_tokenizer(folder, 5)
