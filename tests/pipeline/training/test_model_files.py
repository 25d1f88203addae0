"""Which files make a model, and what identifies it."""

import pytest

from pipeline.training.model_files import files_line, identity_of, useful

A, B, C = ("a" * 64, "b" * 64, "c" * 64)


def test_identity_does_not_depend_on_folder_order_or_licence_texts():
    here = {"config.json": A, "model.safetensors": B}
    there = {"x/y/model.safetensors": B, "x/y/config.json": A, "x-1.0.dist-info/LICENSE": C}
    assert identity_of(here) == identity_of(there) == here
    assert identity_of({"one.gguf": A}) == identity_of({"z/other.Q4_1.gguf": A, "LICENSE": B})
    assert identity_of({"config.json": B, "model.safetensors": A}) != identity_of(here)


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (
            ["config.json", "model.safetensors", "pytorch_model.bin", "onnx/model.safetensors", "LICENSE"],
            ["LICENSE", "config.json", "model.safetensors"],
        ),
        (
            ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
             "model.safetensors.index.json", "consolidated.safetensors", "modeling_x.py"],
            ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
             "model.safetensors.index.json"],
        ),
        (["x/config.json", "x/model.Q4.gguf", "x/LICENSE.txt", "LICENSE"], ["x/LICENSE.txt", "x/model.Q4.gguf"]),
        (["config.json", "pytorch_model.bin"], []),
    ],
)  # fmt: skip
def test_useful_files_are_the_weights_and_what_lies_beside_them(there, expected):
    assert useful(there) == expected


def test_files_line_can_be_read_back():
    import tomllib

    files = {'a "b"/model.gguf': A, "config.json": B}
    assert tomllib.loads(files_line(files)) == {"files": files}
    assert "\n" not in files_line(files)
