"""The kind of task `preference`: a decoder learns which of two answers is the better one, and to answer like it.

In: rows with a prompt, a chosen and a rejected answer (corpus/examples/preferences.py). Out: a decoder, as of the
kind `instruction`, which prefers the chosen answers: compared with the base that it started from, the reference, it
makes them more likely than the rejected ones. The log-probabilities of the reference are an output of their own
(training/reference.py), which every training on the same base and examples reads. The losses are in
model/training/preferences.py. The evaluation shows accuracy, margin, the log-probabilities before and after, and
answers of both models.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from annotated_types import Ge, Lt

from pipeline.corpus.examples.conversations import MESSAGES, Refused
from pipeline.corpus.examples.labelled_file import Record
from pipeline.corpus.examples.preferences import OPTIONAL, PARTS, encoded_preferences, preference_in
from pipeline.corpus.examples.protocol import ExamplesConfig, Rows
from pipeline.corpus.examples.rows import Row
from pipeline.corpus.report.card_markdown import table
from pipeline.evaluation.mistakes import Mistake
from pipeline.evaluation.preference_metrics import METRICS, REFERENCE
from pipeline.evaluation.preference_results import (
    answers_side_by_side,
    judged_preferences,
    preference_report,
    preferences_of,
    results_of,
)
from pipeline.evaluation.results import Result
from pipeline.evaluation.task import Answer, Judged, TaskEvaluationConfig
from pipeline.serving.predictor import Predictor
from pipeline.store.records import Checkpoint, Shards
from pipeline.store.settings import OptionalPositive, Positive, Text
from pipeline.store.shards import text_digest
from pipeline.store.store import Stage, Work
from pipeline.tasks.chat_encoding import ChatEncoder, SystemPrompt, Template, Tuning
from pipeline.tasks.instruction import Instruction, InstructionEvaluationConfig
from pipeline.training.finetune import FinetuneConfig
from pipeline.training.reference import ReferenceConfig, read_references, reference_stage

if TYPE_CHECKING:
    from torch import nn

    from model.data.pairs import EncodedPairs
    from model.training.preferences import PreferenceLoss


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferenceExamplesConfig(ExamplesConfig):
    """Settings for reading preferences. The defaults are the names that most files have."""

    prompt: Annotated[
        Text,
        "Column that holds a prompt: a text, or messages. Without it and without an instruction both answers are"
        " whole conversations with a common beginning.",
    ] = "prompt"
    chosen: Annotated[Text, "Column that holds the better answer: a text, or messages."] = "chosen"
    rejected: Annotated[Text, "Column that holds the other answer: a text, or messages."] = "rejected"
    instruction: Annotated[Text, "Column that holds an instruction, in place of a prompt."] = "instruction"
    input: Annotated[Text, "Column that holds what an instruction is about, if that is not in the instruction."] = (
        "input"
    )
    system: Annotated[Text, "Column that holds the system message of a row, if there is one."] = "system"


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferenceConfig(FinetuneConfig):
    """Settings of a training on preferences. Its learning rates are far below those of an instruction tuning, because
    the model is to change its mind and not its language."""

    loss: Annotated[
        Literal["dpo", "dpo_norm", "ipo", "simpo"],
        "What is minimised: dpo (arXiv:2305.18290), dpo_norm, which is dpo with log-probabilities per token"
        " (arXiv:2411.15124), ipo, also per token (arXiv:2310.12036), or simpo, which needs no reference"
        " (arXiv:2405.14734).",
    ] = "dpo"
    beta: Annotated[
        OptionalPositive,
        "How strongly the model is held to the base: a larger value changes it less. Without a value 0.1 for dpo and"
        " ipo, 5 for dpo_norm, and 2 for simpo, which has no base and multiplies its margin with it.",
    ] = None
    label_smoothing: Annotated[
        float,
        Ge(0),
        Lt(0.5),
        "Probability that chosen and rejected answer of a pair are the wrong way round; not for ipo.",
    ] = 0.0
    simpo_margin: Annotated[
        float,
        Ge(0),
        "With loss = simpo: by how many nats per token the chosen answer is to be likelier than the rejected one.",
    ] = 0.5
    sft_weight: Annotated[
        float,
        Ge(0),
        "Weight of the loss of the chosen answer itself, in nats per token (arXiv:2404.19733): it keeps chosen"
        " answers from becoming less likely while rejected ones do so faster.",
    ] = 0.0
    tuning: Tuning = "full"
    template: Template = "auto"
    system_prompt: SystemPrompt = ""
    max_tokens: Annotated[
        int | None,
        Ge(2),
        "Largest number of tokens per conversation; without a value the context of the base model. A pair of which no"
        " difference is read is not used, and named in the log.",
    ] = None
    epochs: Annotated[int, Ge(1), "Number of passes over the training pairs."] = 1
    rows: Annotated[int, Ge(1), "Number of pairs per update."] = 8
    optimizer: Annotated[Literal["muon", "adamw"], "Muon for the hidden matrices, or AdamW for all weights."] = (
        "adamw"
    )
    adamw_lr: Annotated[Positive, "Peak learning rate of the weights that AdamW trains."] = 1e-5
    lora_lr: Annotated[Positive, "Peak learning rate of adapters with tuning = lora."] = 2e-4

    def __post_init__(self) -> None:
        FinetuneConfig.__post_init__(self)
        if self.loss == "ipo" and self.label_smoothing:
            raise ValueError(f"label_smoothing={self.label_smoothing} has no effect with loss='ipo'; leave it out")
        if self.loss != "simpo" and self.simpo_margin != 0.5:
            raise ValueError(f"simpo_margin={self.simpo_margin} has no effect with loss={self.loss!r}; leave it out")
        if self.settings().augmentation.changes_texts:
            raise ValueError("the settings augment_... are for labelled texts; leave them out")

    def preference_loss(self) -> "PreferenceLoss":
        from model.training.preferences import BETAS, PreferenceLoss

        return PreferenceLoss(
            name=self.loss,
            beta=BETAS[self.loss] if self.beta is None else self.beta,
            label_smoothing=self.label_smoothing,
            margin=self.simpo_margin,
            sft_weight=self.sft_weight,
        )


@dataclass(frozen=True, slots=True)
class PairEncoder(ChatEncoder):
    """Takes the place of a tokenizer where examples are pairs of answers."""

    shares_beginning: bool = True  # see pair_of in model/data/pairs.py

    def pairs(self, rows: pa.Table, max_tokens: int, truncation_side: str) -> "EncodedPairs":
        """The pairs of examples. Raises ValueError if of none a difference is read."""
        return encoded_preferences(
            self.template,
            self.system,
            rows["id"].to_pylist(),
            rows.select(["prompt", "chosen", "rejected"]).to_pylist(),
            max_tokens=max_tokens,
            truncation_side=truncation_side,
            shares_beginning=self.shares_beginning,
        )


class Preference(Instruction):
    name = identity = "preference"
    evaluation_version = 1
    examples, finetune, evaluation = PreferenceExamplesConfig, PreferenceConfig, InstructionEvaluationConfig
    summary = "A decoder that was tuned to prefer the chosen answers of pairs to the rejected ones."
    example = """
[politeness]
kind = "preference"
base = "smollm2"                          # a decoder, best one that answers already
data = { path = "preferences.jsonl" }     # prompt, chosen and rejected; or whole conversations

[politeness.finetune]
loss = "dpo"                              # or dpo_norm, ipo, simpo
beta = 0.1
"""
    parts = keys = PARTS
    optional = OPTIONAL
    columns = tuple(pa.field(name, MESSAGES, nullable=False) for name in ("prompt", "chosen", "rejected"))
    metrics = METRICS
    decides, must_beat = ("preference_accuracy", True), ("preference_accuracy", REFERENCE)
    needs_decoder = makes_bases = True
    selects = ("validation_accuracy", True)

    def records(self, name: str, content: bytes, cfg: Any, stray_quotes: list[int]) -> Iterator[Record | str]:
        return Rows.records(self, name, content, cfg, stray_quotes)

    def row(self, parts: Mapping[str, Any], cfg: Any) -> Row:
        try:
            found = preference_in(parts)
        except Refused as refused:
            return refused.row(parts[name] for name in PARTS)
        prompt, *answers = ([{"role": one.role, "content": one.content} for one in messages] for messages in found)
        text = "\n\n".join(one["content"] for one in prompt if one["role"] != "system")
        whole = text_digest(*(text for part in found for one in part for text in (one.role, one.content)))
        group = text_digest(text) if cfg.group is None else None  # answers to one prompt stay in one split
        values = {"prompt": prompt, "chosen": answers[0], "rejected": answers[1]}
        return Row(text, values, key=whole, group=group)

    def describe_examples(self, examples: pa.Table) -> str:
        return preferences_overview(examples)

    def encoder(self, cfg: Any, tokenizer: Any, directory: Path) -> PairEncoder:
        from model.data.chat import load_chat_template
        from model.network.registry import read_config

        window = read_config(directory.parent)[0]["model"]["sliding_window"]
        template = load_chat_template(tokenizer, directory, cfg.template)
        return PairEncoder(template, cfg.system_prompt, shares_beginning=window is None)

    def encode(self, examples: Shards, rows: pa.Table, tokenizer: Any, max_tokens: int, truncation_side: str) -> Any:
        """EncodedPairs; `tokenizer` is a PairEncoder."""
        return tokenizer.pairs(rows, max_tokens, truncation_side)

    def reference(self, cfg: PreferenceConfig) -> tuple[Stage, ReferenceConfig] | None:
        if cfg.initialisation == "random":
            raise ValueError("initialisation is 'random', but preferences need a base that writes; leave it out")
        if cfg.loss == "simpo":
            return None
        names = ("template", "system_prompt", "max_tokens", "truncation_side")
        return reference_stage(self), ReferenceConfig(**{name: getattr(cfg, name) for name in names})

    def referenced(self, encoded: Any, reference: Shards) -> Any:
        return replace(encoded, references=read_references(reference.directory, encoded.ids))

    def loss(self, cfg: Any) -> Any:
        from model.training.preferences import preference_loss

        return partial(preference_loss, loss=cfg.preference_loss())

    def validate(self, network: "nn.Module", encoded: "EncodedPairs") -> dict[str, float]:
        """validation_loss, in nats per token of the chosen answers; validation_accuracy and validation_margin, by
        what the answers gained on the reference; and the log-probability of an answer of each side."""
        from model.data.pairs import n_tokens_of
        from model.training.preferences import pair_log_probabilities

        nats_N2 = pair_log_probabilities(network, encoded)
        gains_N2 = nats_N2 - encoded.references if len(encoded.references) else nats_N2
        margins_N = gains_N2[:, 0] - gains_N2[:, 1]
        return {
            "validation_loss": float(-nats_N2[:, 0].sum() / n_tokens_of(encoded.pairs)[:, 0].sum()),
            "validation_accuracy": float((margins_N > 0).mean()),
            "validation_margin": float(margins_N.mean()),
            "validation_chosen": float(nats_N2[:, 0].mean()),
            "validation_rejected": float(nats_N2[:, 1].mean()),
        }

    def judge(
        self, cfg: Any, models: Sequence[Checkpoint], base: Checkpoint | None, examples: Shards, work: Work
    ) -> Judged:
        return judged_preferences(self.predictor, cfg, models[0], base, examples, work)

    def answers(self, model: Predictor, rows: Sequence[Mapping[str, Any]]) -> Sequence[Answer]:
        return preferences_of(model, rows)

    def results(self, judged: Judged, seed: int) -> list[Result]:
        return results_of(judged, seed)

    def mistakes_listed(self, judged: Judged, worst: Sequence[Mistake], n_wrong: int) -> str:
        del worst, n_wrong
        return answers_side_by_side(judged)

    def report(self, judged: Judged, cfg: TaskEvaluationConfig) -> str:
        del cfg
        return preference_report(judged)


KIND = Preference()


def preferences_overview(examples: pa.Table) -> str:
    """Prompts, turns and lengths of the answers of each split."""
    rows, splits = [], np.array(examples["split"].to_pylist())
    for split in dict.fromkeys(splits.tolist()):
        part = examples.filter(pa.array(splits == split))
        words = {
            side: np.array([sum(len(one["content"].split()) for one in answer) for answer in part[side].to_pylist()])
            for side in ("chosen", "rejected")
        }
        longer = f"{(words['chosen'] > words['rejected']).mean():.1%}"
        numbers = (part.num_rows, len(part["text"].unique()))
        medians = (int(np.median(words[side])) for side in ("chosen", "rejected"))
        rows.append([split, *(f"{number:,}" for number in (*numbers, *medians)), longer])
    header = [
        "split",
        "pairs",
        "prompts",
        "words of the chosen answer, median",
        "of the rejected one",
        "chosen longer",
    ]
    return "## Pairs\n\n" + table(header, rows)
