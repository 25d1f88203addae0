"""One graph for all lengths, an error where torch would go on eagerly, and a compiled step beside an eager one.

The backend "eager" runs the graphs that torch.compile found, without generating code: what is compiled how often is
the same, in a hundredth of the time. tests/model/training/test_loop.py generates code (marked slow).
"""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.utils import counters

from model.network.decoder import new_decoder
from model.network.heads import SequenceClassifier
from model.network.shape import DecoderConfig
from model.training.compilation import compile_layers, is_compiled, strictly_compiled
from model.training.config import TrainConfig
from model.training.loss import classification_loss
from model.training.step import new_state, train_step

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch's compiler, about itself
LENGTHS = (16, 8, 24, 32, 40)  # the first is the width of the model, which must not make it a length of its own
CFG = DecoderConfig(
    vocab_size=31, n_layers=3, n_heads=2, n_kv_heads=1, d_model=16, d_head=8, d_ff=24, max_seq_len=48,
    tie_embeddings=True,
)  # fmt: skip
TRAIN = TrainConfig(n_steps=9, rows=4, seq_len=16, micro_batch=2)


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def language(n: int, rows: int = 4) -> dict[str, torch.Tensor]:
    ids_BT = torch.randint(0, 31, (rows, n), generator=torch.Generator().manual_seed(n))
    return {"ids_BT": ids_BT, "targets_BT": ids_BT.roll(-1, dims=1)}


def labelled(n: int, rows: int) -> dict[str, torch.Tensor]:
    labels_B = torch.arange(rows) % 2
    return {"ids_BT": language(n, rows)["ids_BT"], "lengths_B": torch.full((rows,), n), "labels_B": labels_B}


def n_graphs() -> int:
    return counters["stats"]["unique_graphs"]


def test_five_lengths_in_three_layers_take_two_graphs_one_of_layers_and_one_of_the_norm():
    """There was a graph per length, and after eight of them none: the rest ran eagerly."""
    model = SequenceClassifier(CFG, 2)
    compile_layers(model, has_varying_lengths=True, backend="eager")
    with strictly_compiled():
        for n in LENGTHS:
            loss, _ = classification_loss(model, labelled(n, 3 if n == 40 else 4))  # an epoch's last batch has fewer
            loss.backward()
    assert n_graphs() <= 2


def test_rows_of_one_length_take_one_graph_for_all_layers():
    model = new_decoder(CFG, 0)
    compile_layers(model, backend="eager")
    with strictly_compiled():
        for seed in range(3):
            model.trunk(language(16)["ids_BT"].roll(seed, dims=0)).sum().backward()
    assert n_graphs() == 2


def test_more_shapes_than_torch_compiles_are_an_error_and_not_eager_from_then_on():
    model = new_decoder(CFG, 0)
    compile_layers(model, backend="eager")
    with (
        pytest.raises(ValueError, match=r"compiled 2 times and met yet another shape .* Set compile=False"),
        torch._dynamo.config.patch(recompile_limit=2),
        strictly_compiled(),
    ):
        for n in LENGTHS:
            model.trunk(language(n)["ids_BT"])


def test_compiled_step_has_the_loss_gradient_norm_and_weights_of_an_eager_one():
    eager = new_decoder(CFG, 0)
    with torch.no_grad():
        for weight in eager.parameters():
            weight.add_(torch.empty_like(weight).normal_(std=0.2, generator=torch.Generator().manual_seed(1)))
    compiled = copy.deepcopy(eager)
    compile_layers(compiled, backend="eager")
    assert is_compiled(compiled) and not is_compiled(eager)
    with strictly_compiled():
        reports = [train_step(new_state(model, TRAIN), language(16), TRAIN) for model in (eager, compiled)]
    for name in ("loss", "gradient_norm"):
        torch.testing.assert_close(getattr(reports[1], name), getattr(reports[0], name), rtol=1e-5, atol=1e-6)
    for one, other in zip(compiled.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
