"""Trainings of adapters: what is stored, what is refused, and exact resume."""

import dataclasses
import shutil

import pytest
import torch

from model.cli import main
from model.data.mixture import Mixture
from model.hf.adapter import write_adapter
from model.network.decoder import new_decoder
from model.network.encoder import new_masked_lm
from model.network.heads import classifier_from, span_classifier_from, token_classifier_from
from model.network.lora import add_lora, merge_lora
from model.network.lora_config import LoraConfig
from model.network.registry import KINDS, describe, load_classifier, load_decoder, load_model, save_model
from model.network.shape import EncoderConfig, switches_of
from model.training.adapters import load_adapters, save_trained, start_adapters
from model.training.checkpoint import complete_checkpoints
from model.training.config import TrainConfig
from model.training.files import WEIGHTS, read_json, read_tensors, sha256
from model.training.finetune_settings import FinetuneSettings, resolved, train_config
from model.training.optim import Optimizer
from model.training.pretraining import Pretraining, job_of, made_from, pretrain
from tests.model.training.test_finetuning import rows, write

LORA = LoraConfig(rank=2, alpha=4.0)
BERT = EncoderConfig(
    vocab_size=40, n_layers=2, n_heads=2, n_kv_heads=2, d_model=16, d_head=8, d_ff=24, max_seq_len=16,
    tie_embeddings=True, **switches_of("bert"),
)  # fmt: skip
TRAIN = TrainConfig(
    n_steps=12, rows=4, seq_len=16, micro_batch=2, muon_lr=None, adamw_lr=0.01, checkpoint_every=4, n_threads=1
)


class Silent:
    def metrics(self, step, values) -> None: ...
    def checkpoint(self, path, step, values) -> None: ...


class StopsAt(Silent):
    def __init__(self, step: int) -> None:
        self.step = step

    def metrics(self, step, values) -> None:
        if step == self.step:
            raise InterruptedError


@pytest.fixture
def plan(corpus, trained, tmp_path) -> Pretraining:
    """The tiny model, trained further with adapters on the data that it knows."""
    network = load_decoder(trained).cfg
    return Pretraining(
        shards=corpus / "shards", out=tmp_path / "out", network=network, train=TRAIN, made_from={"tokens": "a"},
        start_from=trained, lora=LORA,
    )  # fmt: skip


IDS_BT = torch.arange(24).view(2, 12)


def test_finished_folder_holds_the_merged_model_and_its_adapters(plan, trained):
    pretrain(plan, Silent())
    base, model = load_decoder(trained), load_decoder(plan.out)
    merged_BTV = model(IDS_BT)
    assert (merged_BTV - base(IDS_BT)).abs().max() > 1e-2
    load_adapters(plan.out / "adapter", base, trained)
    torch.testing.assert_close(base(IDS_BT), merged_BTV, atol=1e-4, rtol=0)
    merge_lora(base)
    assert all(torch.equal(one, other) for one, other in zip(base.parameters(), model.parameters(), strict=True))
    description = read_json(plan.out / "adapter" / "config.json")
    values = {"rank": 2, "alpha": 4.0, "targets": [], "base_sha256": sha256(trained / WEIGHTS)}
    assert description["lora"] == values and "lora" not in read_json(plan.out / "config.json")


def test_checkpoint_holds_adapters_and_their_optimizer_state_alone(plan, trained):
    pretrain(plan, Silent())
    folder = complete_checkpoints(plan.out / "checkpoints")[-1]
    weights = read_tensors(folder / WEIGHTS)
    n_numbers = sum(weight.numel() for weight in weights.values())
    base = load_decoder(trained)
    add_lora(base, LORA, 0)
    expected = {name: weight for name, weight in base.named_parameters() if weight.requires_grad}
    assert weights.keys() == expected.keys() and all(name.rpartition(".")[2][:5] == "lora_" for name in weights)
    assert (folder / WEIGHTS).stat().st_size < 4 * n_numbers + 200 * len(weights)
    assert (folder / "optimizer.safetensors").stat().st_size < 8 * n_numbers + 400 * len(weights) + 2**14
    assert n_numbers < 0.2 * sum(weight.numel() for weight in base.parameters())
    with pytest.raises(ValueError, match="holds adapters and not the base that they belong to"):
        load_model(folder)


def test_resumed_training_of_adapters_ends_with_the_bits_of_an_uninterrupted_one(plan, tmp_path):
    pretrain(plan, Silent())
    stopped = dataclasses.replace(plan, out=tmp_path / "stopped")
    with pytest.raises(InterruptedError):
        pretrain(stopped, StopsAt(10))
    assert complete_checkpoints(stopped.out / "checkpoints")[-1].name == "step-000008"
    pretrain(stopped, Silent())
    for name in (WEIGHTS, f"adapter/{WEIGHTS}", "checkpoints/step-000012/optimizer.safetensors"):
        assert (stopped.out / name).read_bytes() == (plan.out / name).read_bytes()


def test_adapters_on_another_base_are_refused_with_both_digests(plan, trained, tmp_path):
    pretrain(plan, Silent())
    other = shutil.copytree(trained, tmp_path / "other")
    shutil.copy(plan.out / WEIGHTS, other / WEIGHTS)  # the shape is the same
    message = f"has the sha256 {sha256(trained / WEIGHTS)}, that of .*other has {sha256(other / WEIGHTS)}; give"
    with pytest.raises(ValueError, match=message):
        load_adapters(plan.out / "adapter", load_decoder(other), other)
    (plan.out / WEIGHTS).unlink()
    moved = dataclasses.replace(plan, start_from=other)
    with pytest.raises(ValueError, match=r"has adapters on a base with the sha256 .* use another folder"):
        pretrain(moved, Silent())
    with pytest.raises(ValueError, match=r"has adapters on a base .*, this training has a whole model"):
        pretrain(dataclasses.replace(plan, lora=None), Silent())
    with pytest.raises(ValueError, match="is not a folder of adapters"):
        load_adapters(trained, load_decoder(trained), trained)


def test_training_cannot_be_resumed_with_another_scale_base_or_mixture(plan, tmp_path):
    """All of them fit the shapes of the checkpoint, so that nothing else would refuse them."""
    with pytest.raises(InterruptedError):
        pretrain(plan, StopsAt(9))
    with pytest.raises(ValueError, match=r"was trained on .*, now the data is"):
        pretrain(dataclasses.replace(plan, lora=dataclasses.replace(LORA, alpha=8.0)), Silent())
    job, mixed = job_of(plan), dataclasses.replace(plan, mixture=Mixture(domain=("a",)))
    assert made_from(mixed, job.description) != job.made_from == made_from(plan, job.description)
    whole = dataclasses.replace(plan, lora=None, out=tmp_path / "whole")
    with pytest.raises(InterruptedError):
        pretrain(whole, StopsAt(9))
    other = shutil.copytree(whole.start_from, tmp_path / "other")
    save_model(other, new_decoder(plan.network, seed=77), describe(plan.network))
    with pytest.raises(ValueError, match=r"was trained on .*, now the data is"):
        pretrain(dataclasses.replace(whole, start_from=other), Silent())


def test_frozen_weights_have_no_optimizer_state(trained):
    model = load_decoder(trained)
    add_lora(model, LORA, 0)
    optimizer = Optimizer(model, TRAIN)
    model(IDS_BT).square().mean().backward()
    optimizer.step(1.0)
    n_trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert 2 * 4 * n_trained <= optimizer.n_bytes() < 2 * 4 * n_trained + 500


def test_plan_of_adapters_travels_as_json_and_needs_a_base(plan):
    assert Pretraining.from_json(plan.to_json()) == plan
    assert plan.params()["lora_rank"] == 2
    with pytest.raises(ValueError, match="lora trains adapters on a trained model; give start_from"):
        dataclasses.replace(plan, start_from=None)


def test_base_of_another_shape_is_refused(plan):
    network = dataclasses.replace(plan.network, n_layers=3)
    with pytest.raises(ValueError, match="holds a network of another shape"):
        pretrain(dataclasses.replace(plan, network=network), Silent())


def test_finetune_trains_adapters_and_a_new_head(trained, tmp_path, capsys):
    """From the command line, twice, with the same bits; what is new learns the labels, the base is frozen."""
    examples = write(tmp_path / "train.jsonl", rows(96))
    call = ["finetune", str(trained), str(examples), str(tmp_path / "model"), "--set", "tuning=lora"]
    call += ["--set", "lora_rank=4", "--set", "lora_lr=0.02", "--set", "epochs=12", "--set", "rows=8"]
    assert main(call) == 0
    assert "accuracy 1.0000" in capsys.readouterr()[0].splitlines()[-1]
    tensors = read_tensors(tmp_path / "model" / "adapter" / WEIGHTS)
    assert tensors["score.weight"].shape == (2, 16) and len(tensors) == 1 + 2 * 7
    merged, base = load_classifier(tmp_path / "model")[0], load_decoder(trained)
    for name, is_frozen in (("embed_tokens", True), ("layers.0.mlp.up_proj", False)):
        was, is_now = (one.get_parameter(f"model.{name}.weight") for one in (base, merged))
        assert torch.equal(was, is_now) is is_frozen
    before = (tmp_path / "model" / WEIGHTS).read_bytes()
    assert main(call) == 0 and (tmp_path / "model" / WEIGHTS).read_bytes() == before
    assert main([*call[:-4], "--set", "lora_alpha=3", *call[-4:]]) == 1
    assert "now the data is" in capsys.readouterr()[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tuning": "some"}, "tuning='some' must be one of full, lora, head"),
        ({"tuning": "lora", "lora_rank": 0}, "rank=0 of LoRA must be at least 1"),
        ({"tuning": "lora", "initialisation": "random"}, "tuning='lora' needs a trained base"),
        ({"tuning": "lora", "lora_lr": 0.0}, r"adamw_lr=0\.0 must be above 0"),
    ],
)
def test_settings_of_adapters_that_break_a_rule_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        FinetuneSettings(**settings)


def test_adapters_are_trained_by_adamw_alone():
    plan = train_config(resolved(FinetuneSettings(tuning="lora", lora_lr=0.003), d_model=16), n_examples=300)
    assert (plan.muon_lr, plan.adamw_lr) == (None, 0.003)
    assert train_config(resolved(FinetuneSettings(), d_model=16), n_examples=300).muon_lr is not None


def test_merge_from_the_command_line_gives_the_model_of_the_training(plan, trained, tmp_path, capsys):
    pretrain(plan, Silent())
    assert main(["merge", str(trained), str(plan.out / "adapter"), str(tmp_path / "merged")]) == 0
    assert "merged the adapters of 7 layers into" in capsys.readouterr()[0]
    assert (tmp_path / "merged" / WEIGHTS).read_bytes() == (plan.out / WEIGHTS).read_bytes()
    assert (tmp_path / "merged" / "tokenizer").is_dir()
    write_adapter(tmp_path / "peft", plan.out / "adapter")
    assert main(["merge", str(trained), str(tmp_path / "peft"), str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (plan.out / WEIGHTS).read_bytes()
    assert main(["merge", str(plan.out), str(tmp_path / "peft"), str(tmp_path / "other")]) == 1
    assert "these adapters belong to a base with the sha256" in capsys.readouterr()[1]
    before = (plan.out / "config.json").read_bytes(), (plan.out / WEIGHTS).read_bytes()
    for out in (trained, plan.out):  # a model and its checkpoints would be replaced
        assert main(["merge", str(trained), str(plan.out / "adapter"), str(out)]) == 1
        assert "exists and is no empty folder; name a new one" in capsys.readouterr()[1]
    assert before == ((plan.out / "config.json").read_bytes(), (plan.out / WEIGHTS).read_bytes())


def test_adapters_of_another_kind_of_model_are_refused(plan, trained):
    pretrain(plan, Silent())
    with pytest.raises(ValueError, match="belong to a model of the kind decoder, got sequence_classifier"):
        load_adapters(plan.out / "adapter", classifier_from(load_decoder(trained), 2, 0), trained)


@pytest.mark.parametrize("kind", ["sequence_classifier", "token_classifier", "span_classifier"])
@pytest.mark.parametrize("trunk", ["decoder", "encoder"])
def test_adapters_of_a_task_train_its_whole_head_and_come_back(trunk, kind, trained, tmp_path):
    base = load_decoder(trained) if trunk == "decoder" else new_masked_lm(BERT, seed=1)
    folder = trained if trunk == "decoder" else tmp_path / "base"
    if trunk == "encoder":
        save_model(folder, base, describe(BERT))
    labels = ("a", "b", "c") if KINDS[kind].has_labels else None
    make = {
        "sequence_classifier": lambda: classifier_from(base, 3, seed=0),
        "token_classifier": lambda: token_classifier_from(base, 3, seed=0),
        "span_classifier": lambda: span_classifier_from(base, seed=0),
    }[kind]
    model = make()
    description = start_adapters(model, describe(base.cfg, labels, kind=kind), LORA, folder, seed=3)
    trained_names = {name for name, weight in model.named_parameters() if weight.requires_grad}
    of_head = {name for name, _ in model.named_parameters() if not name.startswith("model.")}
    assert of_head and trained_names == of_head | {n for n, _ in model.named_parameters() if ".lora_" in n}
    for weight in model.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.1)
    ids, lengths = torch.arange(24).view(2, 12), torch.tensor([12, 5])
    expected = model(ids, lengths)
    save_trained(tmp_path / "out", model, description)
    merged, found = load_model(tmp_path / "out", "cpu", kind)
    assert found == labels
    again = make()
    load_adapters(tmp_path / "out" / "adapter", again, folder)
    torch.testing.assert_close(again(ids, lengths), expected)
    torch.testing.assert_close(merged(ids, lengths), expected, atol=1e-5, rtol=1e-5)
