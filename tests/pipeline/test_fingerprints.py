"""What a fingerprint depends on: what changes the bytes, and nothing else (review 3.5 and 3.6)."""

import importlib.metadata
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from model.training.finetune_settings import resolved, train_config
from pipeline.corpus.clean.stage import CLEAN, CleanConfig
from pipeline.corpus.collect.files import FilesSource
from pipeline.corpus.collect.source_rules import SourceRules
from pipeline.corpus.collect.stage import COLLECT, CollectConfig, CollectRecipe
from pipeline.corpus.filter.rules import FilterConfig, FilterRecipe
from pipeline.corpus.filter.stage import FILTER
from pipeline.corpus.signals.stage import MEASURE, SignalsConfig
from pipeline.evaluation.language_model import EVALUATE_MODEL
from pipeline.evaluation.task import evaluation_stage
from pipeline.store.records import Shards
from pipeline.store.store import DEVICE, Outcome, Stage, libraries_of, recipe_of
from pipeline.tasks.kind import kind_named
from pipeline.training.finetune import finetune_stage
from pipeline.training.pretrain import PRETRAIN, PretrainConfig, pretrain_recipe

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Plain:
    ratio: Any = 1.0
    ratios: tuple[Any, ...] = (2.0, 0.5)
    is_on: Any = True


PLAIN = Stage(name="plain", version=1, function=lambda *inputs: Outcome(rows=0), handle=Shards)


def pretrained(**settings: Any) -> str:
    return recipe_of(PRETRAIN, pretrain_recipe(PretrainConfig(**settings)))


def filtered(own: SourceRules | None = None, **settings: Any) -> str:
    return recipe_of(FILTER, FilterRecipe(config=FilterConfig(**settings), sources={"web": own} if own else {}))


@pytest.mark.parametrize("name", ["checkpoint_every", "validate_every", "n_validation_batches", "keep_checkpoints"])
def test_fingerprint_of_a_training_does_not_have_how_often_it_is_saved_and_validated(name):
    """Whoever wanted to save more often lost a training of three days. A model has the weights of the last step,
    whatever the validation says, so neither decides a byte."""
    assert pretrained(**{name: 7}) == pretrained()
    kind = kind_named("classification")
    if name.endswith("every"):
        stage, plain = finetune_stage(kind), kind.finetune()
        assert recipe_of(stage, replace(plain, **{name: 7})) == recipe_of(stage, plain)
        assert recipe_of(stage, replace(plain, epochs=7)) != recipe_of(stage, plain)


def test_fingerprint_of_a_training_has_what_decides_its_weights():
    assert len({pretrained(), pretrained(rows=16), pretrained(seed=7), pretrained(n_steps=7)}) == 4


def test_fingerprint_has_no_limits_of_seconds_and_memory():
    """What exceeds a limit is no content, and is tried again, so that the limits are none either."""
    assert recipe_of(CLEAN, CleanConfig(page_seconds=7, page_memory_mb=700)) == recipe_of(CLEAN, CleanConfig())
    more = SignalsConfig(document_seconds=7, document_memory_mb=700)
    assert recipe_of(MEASURE, more) == recipe_of(MEASURE, SignalsConfig())
    assert recipe_of(CLEAN, CleanConfig(max_page_mb=7)) != recipe_of(CLEAN, CleanConfig())


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("languages", ("en", "de")),
        ("rules", ("gopher_quality", "c4")),
        ("pii", ("email", "phone")),
        ("stop_word_languages", ("en", "de")),
    ],
)
def test_fingerprint_has_no_order_of_values_that_are_sets(name, values):
    assert filtered(**{name: values}) == filtered(**{name: values[::-1]}) == filtered(**{name: (*values, values[0])})
    assert filtered(**{name: values}) != filtered(**{name: values[:1]})
    if name != "stop_word_languages":
        one, other = (SourceRules(**{name: own}) for own in (values, values[::-1]))
        assert filtered(one) == filtered(other) != filtered(SourceRules(**{name: values[:1]}))
        assert filtered(SourceRules(**{name: ()})) != filtered(SourceRules())  # nothing is not the setting of filter


def test_fingerprint_has_no_number_types():
    assert recipe_of(PLAIN, Plain(ratio=1, ratios=(2, 0.5))) == recipe_of(PLAIN, Plain())
    assert recipe_of(PLAIN, Plain(ratio=1.5)) != recipe_of(PLAIN, Plain())
    assert recipe_of(PLAIN, Plain(is_on=1)) != recipe_of(PLAIN, Plain(is_on=True))  # a switch is no number


def test_fingerprint_has_no_local_version_of_a_library(monkeypatch):
    """torch 2.13.0+cpu and 2.13.0+cu130 are one version, and a training can go on on the other machine."""
    recipes = set()
    for version in ("2.13.0+cpu", "2.13.0+cu130", "2.13.0"):
        monkeypatch.setattr(importlib.metadata, "version", lambda name, version=version: version)
        recipes.add(pretrained())
    assert len(recipes) == 1
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.14.0+cpu")
    assert pretrained() not in recipes


@dataclass(frozen=True, kw_only=True, slots=True)
class TarpitSource(FilesSource):
    """Another kind with the fields of `files`."""

    kind: ClassVar[str] = "tarpit"


def test_fingerprint_has_the_kind_of_a_source(tmp_path):
    recipes = [
        recipe_of(
            COLLECT,
            CollectRecipe(
                source=source(name="web", path="pages"),
                config=CollectConfig(),
                content="d",
                cache=Path("cache"),
                snapshot="s",
            ),
        )
        for source in (FilesSource, TarpitSource)
    ]
    assert len(set(recipes)) == 2


def test_fingerprint_of_a_training_has_the_kind_of_device_and_not_the_number_of_processes(monkeypatch):
    """On CUDA products are bfloat16 and other weights come out: 1e-3 of the loss lay between models that had one
    fingerprint. Processes only add in another order, which is said to be no identity (docs/pipeline.md)."""
    on_cpu = pretrained()
    assert pretrained(devices=2) == pretrained(devices=2, parallel="fsdp") == on_cpu
    monkeypatch.setattr("pipeline.store.store.device_kind", lambda: "cuda")
    assert pretrained() != on_cpu
    for kind in map(kind_named, ["classification"]):
        for stage in (finetune_stage(kind), evaluation_stage(kind), EVALUATE_MODEL):
            assert libraries_of(stage)[DEVICE] == "cuda"
    assert DEVICE not in CLEAN.libraries


def test_device_kind_needs_no_torch_where_torch_has_no_gpus():
    """`gristmill plan` and the code location stay quick."""
    code = "import sys; from model.training.machine import device_kind; print(device_kind(), 'torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    kind, is_imported = answer.stdout.split()
    if importlib.metadata.version("torch").endswith("+cpu"):
        assert (kind, is_imported) == ("cpu", "False")
    else:
        assert kind in ("cpu", "cuda")


def test_deterministic_kernels_of_a_gpu_reach_a_training_and_are_no_part_of_its_fingerprint():
    """They decide roundings on a GPU only, as compiling does."""
    kind = kind_named("classification")
    stage, plain = finetune_stage(kind), kind.finetune()
    asked = replace(plain, deterministic=True)
    assert recipe_of(stage, asked) == recipe_of(stage, plain)
    assert train_config(resolved(asked.settings(), d_model=16), n_examples=8).deterministic
    assert pretrained(deterministic=True) == pretrained()
    assert pretrain_recipe(PretrainConfig(deterministic=True)).train.deterministic
