"""Estimates how long a run will take on this machine, before it starts.

In: the plan of the graph. Out: an Estimate, and a sentence for people. Only assets that are not up to date count.
Training is estimated from its FLOPs and the speed of matrix products, which is measured for two seconds. Every other
stage is estimated from the seconds of its last build or, if it never ran, from those of the demo; for a corpus of
another size the first estimate is rough. An open model that was never imported has an unknown size: neither its
download nor a training that begins with it is counted, and the sentence names both.
"""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from model.network.shape import config_for
from model.network.size import flops_per_token, predicted_share
from model.training.finetune_settings import OF_NARROW_BASE
from pipeline.commands.planning import PlannedAsset
from pipeline.store.engine import n_usable_cores
from pipeline.store.progress import duration_text
from pipeline.training.bases import BASE
from pipeline.training.continuing import ResolvedContinue
from pipeline.training.finetune import FinetuneConfig, random_baseline
from pipeline.training.pace import LONG_SECONDS
from pipeline.training.pretrain import ResolvedPretrain

MEASURED_SECONDS = 2.0
SIZES = (1024, 128, 384)  # rows x width x d_ff: the largest product in a layer of the preset `demo`
# FLOP/s of such products and of a training of the demo on 2 idle cores of an AMD EPYC, by HAS_FAST_ONEDNN of
# model/network/linear.py: wider instructions speed up the products alone, so that a training reaches a smaller share
# of them.
SPEEDS = {True: (4.7e11, 1.25e11), False: (1.9e11, 0.96e11)}
# Seconds of the demo on those two cores.
DEMO_SECONDS = {
    "pages": 1.1,
    "documents": 17.7,
    "corpus": 10.4,
    "corpus_report": 2.8,
    "tokenizer": 2.3,
    "token_shards": 1.4,
    "examples": 2.0,
    "model": 0.0,
    "evaluation": 7.5,
}
OUTSIDE_SECONDS = 0.8  # per asset: its step, its checks and its share of the start
DEMO_VOCABULARY = 4096
FLOPS_PER_PARAMETER = 6  # and token: 2 forwards, 4 backwards
LORA_SHARE = 2 / 3  # of a training's FLOPs: frozen weights get no gradients
HEAD_SHARE = 1 / 3  # nothing goes backwards through the trunk
TOKENS_A_TEXT = 16  # the cost of a training example in pretraining tokens
TEXTS = {  # training examples of the default tasks, for the first run, when they are not made yet
    "sarcasm": 22_655,
    "tweet_entities": 1_900,
    "sarcasm_minilm": 22_655,
    "review_sentiment": 4_800,
    "toxicity": 850,
    "wikipedia_questions": 2_300,
}
OTHER_TEXTS = 5_000  # of a task whose examples are not made yet: a guess


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """The work of the assets that are not up to date, and the speed of this machine."""

    flops: float  # of all trainings
    demo_seconds: float  # of everything else on the machine of SPEEDS
    product_speed: float  # measured here, FLOP/s
    fast_onednn: bool  # which of SPEEDS to compare with
    longest: tuple[str, float] = ("", 0.0)  # the training of the most FLOPs: its asset and those FLOPs
    unknown: tuple[str, ...] = ()  # assets whose work is not counted

    @property
    def longest_seconds(self) -> float:
        return self.slowdown * self.longest[1] / SPEEDS[self.fast_onednn][1]

    @property
    def seconds(self) -> float:
        return self.slowdown * (self.flops / SPEEDS[self.fast_onednn][1] + self.demo_seconds)

    @property
    def slowdown(self) -> float:
        """How many times as long as on the machine of SPEEDS everything takes here and now."""
        return SPEEDS[self.fast_onednn][0] / self.product_speed


def estimate(assets: Sequence[PlannedAsset], names: Collection[str] | None = None) -> Estimate | None:
    """The estimate for the `names` that have to be built; None if that takes only a few seconds."""
    wanted = [one for one in assets if (names is None or one.asset in names) and one.rebuilt]
    trainings = list(_training_flops(wanted, assets))
    flops = sum(of_one for _, of_one in trainings)
    if not wanted or (flops < 1e11 and all(build.last for one in wanted for build in one.rebuilt)):
        return None
    work = Estimate(
        longest=max(trainings, key=lambda training: training[1], default=("", 0.0)),
        flops=flops,
        unknown=tuple(one.asset for one in wanted if _is_unknown(one, trainings)),
        demo_seconds=0.0,
        **measured(MEASURED_SECONDS if flops > 1e11 else MEASURED_SECONDS / 20),
    )
    seconds = 0.0
    for one in wanted:
        known = [build.seconds for build in one.rebuilt if build.seconds is not None and not _trains(build.config)]
        here = sum(known) / work.slowdown  # `seconds` were measured on this machine
        seconds += OUTSIDE_SECONDS + (here if known else _demo_seconds(one.asset))
    return replace(work, demo_seconds=seconds)


def estimate_line(work: Estimate) -> str:
    """For instance "About 6 minutes on this machine (2 cores, 41 GFLOP/s measured): ...", with a warning of a
    training that takes longer than LONG_SECONDS."""
    minutes = round(work.seconds / 60)
    length = (
        f"About {duration_text(work.seconds)}"
        if work.seconds >= LONG_SECONDS
        else f"About {minutes:,} minutes"
        if minutes > 1
        else "About a minute"
        if work.seconds >= 45
        else "Less than a minute"
    )
    trained = f"{work.flops / 1e12:,.1f} TFLOP of training" if work.flops else "no training"
    warning = (
        f"\nWARNING: {work.longest[0]} alone trains for about {duration_text(work.longest_seconds)} here. Check its"
        " number of steps (n_steps, or epochs) and its size (preset), or use a faster machine."
        if work.longest_seconds > LONG_SECONDS
        else ""
    )
    if work.unknown:
        warning += (
            f"\nNot counted, because the size of an open model is not known before it is imported:"
            f" {', '.join(work.unknown)}."
        )
    return (
        f"{length} on this machine ({n_usable_cores()} cores, {work.product_speed / 1e9:,.0f} GFLOP/s"
        f" measured): {trained}, {work.demo_seconds * work.slowdown:,.0f} seconds for everything else."
        f"{warning}"
    )


def measured(seconds: float = MEASURED_SECONDS) -> dict[str, Any]:
    """The measured fields of an Estimate: FLOP/s of float32 matrix products of the demo's size, on all cores, at the
    current load of the machine.

    By the product that trainings use (model/network/linear.py). Every core computes its own products: on busy cores
    the threads of one product would wait for each other.
    """
    import torch

    from model.network.linear import HAS_FAST_ONEDNN, product

    rows, width, wide = SIZES
    a, b = torch.ones(rows, width), torch.ones(wide, width)

    def n_products(until: float) -> int:
        n = 0
        while time.perf_counter() < until:
            product(a, b)
            n += 1
        return n

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(n_usable_cores()) as threads, torch.inference_mode():
            started = time.perf_counter()
            total = sum(threads.map(n_products, [started + seconds] * n_usable_cores()))
            speed = max(total, 1) * 2.0 * rows * width * wide / (time.perf_counter() - started)
            return {"product_speed": speed, "fast_onednn": HAS_FAST_ONEDNN}
    finally:
        torch.set_num_threads(n_threads)


def _training_flops(wanted: Sequence[PlannedAsset], assets: Sequence[PlannedAsset]) -> Iterator[tuple[str, float]]:
    """Asset and FLOPs of every training; the evaluation of a task trains its model again from random weights."""
    by_name = {one.asset: one for one in assets}
    for one in wanted:
        for build in one.builds:
            if isinstance(cfg := build.config, ResolvedPretrain | ResolvedContinue) and build.reasons:
                share = LORA_SHARE if isinstance(cfg, ResolvedContinue) and cfg.lora else 1.0
                n_tokens = cfg.train.n_steps * cfg.train.tokens_per_step
                yield one.asset, share * n_tokens * _flops_per_token(one, by_name)
            elif isinstance(cfg, FinetuneConfig) and build.reasons:
                yield one.asset, _finetune_flops(cfg, by_name, one)
        twin = by_name.get(one.asset.removesuffix("_evaluation") + "_model")
        if twin and not any(_trains(build.config) for build in one.builds):
            yield from (
                (one.asset, _finetune_flops(random_baseline(build.config), by_name, twin))
                for build in twin.builds
                if isinstance(build.config, FinetuneConfig)
            )


def _is_unknown(asset: PlannedAsset, trainings: Sequence[tuple[str, float]]) -> bool:
    """Whether the asset is an open model that was never imported, or a training whose base has no known size."""
    is_new_base = any(build.stage == BASE.name and not build.last for build in asset.builds)
    return is_new_base or (asset.asset, 0.0) in trainings


def _flops_per_token(asset: PlannedAsset, by_name: Mapping[str, PlannedAsset]) -> float:
    """FLOPs to train a model, or the base that it is trained further from, on one token; 0 if that is unknown."""
    for build in asset.builds:
        if isinstance(cfg := build.config, ResolvedPretrain):
            network = config_for(cfg.network, DEMO_VOCABULARY)
            return flops_per_token(network, cfg.train.seq_len, predicted_share(network, cfg.train.mask_fraction))
        if build.last and (n_parameters := build.last["measures"].get("parameters")):
            return FLOPS_PER_PARAMETER * n_parameters
    return max((_flops_per_token(by_name[name], by_name) for name in asset.reads if name in by_name), default=0.0)


def _finetune_flops(cfg: FinetuneConfig, by_name: Mapping[str, PlannedAsset], asset: PlannedAsset) -> float:
    task = asset.asset.removesuffix("_model").removesuffix("_evaluation")
    records = [build.last for build in by_name[f"{task}_examples"].builds if build.last]
    n_texts = records[-1]["measures"].get("train_examples", OTHER_TEXTS) if records else TEXTS.get(task, OTHER_TEXTS)
    share = {"full": 1.0, "lora": LORA_SHARE, "head": HEAD_SHARE}[cfg.tuning]
    epochs = cfg.epochs or OF_NARROW_BASE["epochs"]  # open while the base is not there
    return share * epochs * n_texts * TOKENS_A_TEXT * _flops_per_token(asset, by_name)


def _trains(config: Any) -> bool:
    return isinstance(config, ResolvedPretrain | ResolvedContinue | FinetuneConfig)


def _demo_seconds(asset: str) -> float:
    """DEMO_SECONDS of an asset, or of the first or last part of its name, for instance `pages`; else 0."""
    names = (asset, asset.split("/")[0], asset.rsplit("_", 1)[-1])
    return next((DEMO_SECONDS[name] for name in names if name in DEMO_SECONDS), 0.0)
