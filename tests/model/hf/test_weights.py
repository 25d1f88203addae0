"""Tables of weights, both ways: the three layouts that families of decoders and encoders have."""

import pytest
import torch

from model.hf.family import LAYER, WeightRule
from model.hf.weights import to_ours, to_theirs

QKV = tuple(f"{LAYER}self_attn.{letter}_proj" for letter in "qkv")
OURS = {
    "model.embed_tokens.weight": torch.randn(9, 4),
    "mlm_head.bias": torch.randn(9),
    **{f"{name.format(i)}.{end}": torch.randn(4, 4)[: 4 if end == "weight" else 1].squeeze(0)
       for name in QKV for i in range(2) for end in ("weight", "bias")},
}  # fmt: skip
TABLES = {
    "apart": tuple(
        WeightRule(ours=(name,), theirs=f"bert.encoder.layer.{{}}.attention.self.{full}")
        for name, full in zip(QKV, ("query", "key", "value"), strict=True)
    ),
    "joined": (WeightRule(ours=QKV, theirs="model.layers.{}.attn.Wqkv"),),
    "joined_and_transposed": (WeightRule(ours=QKV, theirs="h.{}.attn.c_attn", transposed=True),),
}
TOP = (
    WeightRule(ours=("model.embed_tokens",), theirs="embeddings.word_embeddings"),
    WeightRule(ours=("mlm_head",), theirs="cls.predictions"),  # a bias alone
)


@pytest.mark.parametrize("name", TABLES)
def test_weights_by_a_table_come_back_as_they_were(name):
    rules = (*TOP, *TABLES[name])
    theirs = to_theirs(OURS, rules, n_layers=2)
    back = to_ours(theirs, rules, n_layers=2)
    assert back.keys() == OURS.keys()
    assert all(torch.equal(back[key], weight) for key, weight in OURS.items())
    assert torch.equal(theirs["cls.predictions.bias"], OURS["mlm_head.bias"])
    if name == "joined_and_transposed":
        assert theirs["h.1.attn.c_attn.weight"].shape == (4, 12)
        key = OURS["model.layers.1.self_attn.k_proj.weight"]
        assert torch.equal(theirs["h.1.attn.c_attn.weight"][:, 4:8], key.T)


def test_weights_without_a_table_keep_their_names():
    assert to_theirs(OURS, (), 2).keys() == OURS.keys() == to_ours(OURS, (), 2).keys()
