"""Files that models and runs are made of."""

import hashlib

import pytest
import torch
from safetensors.torch import save_file

from model.training.files import read_tensors, write_tensors

KINDS = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool, torch.int32, torch.int8)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_write_tensors_writes_the_bytes_of_the_library_and_returns_their_digest(tmp_path, metadata):
    """Names and shapes in no order: a scalar, an empty tensor, a transposed one, one that starts inside a storage."""
    tensors = {f"x.{i}": torch.arange(6).reshape(2, 3).to(kind) for i, kind in enumerate(KINDS)}
    tensors |= {"a": torch.tensor(2.5), "z\u00e4": torch.zeros(0, 4), "b": torch.rand(5, 7)[1:, 2:]}
    digest = write_tensors(tmp_path / "ours", tensors | {"t": torch.rand(3, 4).t()}, metadata)
    ours = read_tensors(tmp_path / "ours")
    save_file(ours, tmp_path / "theirs", metadata)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert digest == hashlib.sha256((tmp_path / "ours").read_bytes()).hexdigest()
    assert all(torch.equal(ours[name], tensor) for name, tensor in tensors.items())
