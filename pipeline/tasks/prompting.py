"""The kind of task `prompting`: a decoder classifies texts as it is, without any training.

In: rows as those of a classification. Out: the label whose words the model considers the likeliest continuation of a
prompt (model/generation/prompting.py), and its probability. The "training" only writes the prompt: it draws the shots
from the training examples, balanced by label, measures the prior of the labels, and with scoring = "auto" compares
the scorings on validation examples. The model is the base itself, by a hard link, with the prompt in its config.json;
evaluation, registry and commands treat it as any other classifier.
"""

import dataclasses
import json
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from annotated_types import Ge

from pipeline.corpus.examples.stage import read_examples
from pipeline.corpus.report.card_markdown import plain, table
from pipeline.evaluation.results import Result, quoted
from pipeline.evaluation.task import Answer, Answering, Judged, TaskEvaluationConfig
from pipeline.serving.predictor import Predictor
from pipeline.store.records import Checkpoint, Handle, Shards
from pipeline.store.settings import Count, Natural, Text, check_values
from pipeline.store.shards import link_or_copy, write_text
from pipeline.store.store import NOT_IDENTITY, Outcome, Work
from pipeline.tasks.classification import Classification, labels_of
from pipeline.training.finetune import keep_tokenizer

if TYPE_CHECKING:
    from model.data.chat import ChatTemplate
    from model.data.tokenizer import Tokenizer
    from model.generation.prompt import Prompt, Shot
    from model.generation.prompting import PromptedLabels

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer"
MEASURED = 1000  # training texts, chosen at random, of which the lengths are measured
FAMILIES = "gpt2, llama and qwen3"  # of decoders that can be pretrained here
DECODERS = f'a model of kind "pretrain" with a family such as {FAMILIES}, or open weights of a decoder (smollm2)'


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptingConfig:
    """Settings of a prompt."""

    template: Annotated[
        Text,
        "Form of an example, with {text} once and {label} at the end. The model is asked how likely it continues"
        " the form with the words of each label.",
    ] = "Text: {text}\nLabel: {label}"
    choices: Annotated[
        tuple[str, ...],
        "Words that stand for a label in the prompt, each as label=words, for instance 1=positive. A label without"
        " words is written as its name, with spaces for underscores.",
    ] = ()
    instruction: Annotated[str, "Text before everything else, for instance what the labels mean."] = ""
    shots: Annotated[
        Natural,
        "Number of training examples with their labels in the prompt, balanced by label; 0 is called zero-shot.",
    ] = 0
    scoring: Annotated[
        Literal["raw", "per_byte", "per_token", "content_free", "corrected", "auto"],
        "How the log-likelihoods of the labels are compared: as they are (raw), divided by the length of the words"
        " (per_byte, per_token), or corrected by how likely each label is after texts without content (content_free,"
        " arXiv:2102.09690) or after training texts, without their labels (corrected, arXiv:2309.17249). auto uses"
        " the one with the best accuracy on validation examples.",
    ] = "corrected"
    prior_examples: Annotated[
        Count, "Number of training examples, chosen at random, on whose texts the scoring `corrected` is based."
    ] = 100
    chat_template: Annotated[
        bool,
        "Write the prompt as a conversation, in the chat template of the base: a shot is a question and its answer."
        " For bases that were tuned to answer.",
    ] = False
    max_tokens: Annotated[
        int | None,
        Ge(16),
        "Largest number of tokens of a prompt with its shots; without a value the context of the base. A longer one"
        " loses shots, and then the beginning of the text.",
    ] = None
    validation_examples: Annotated[
        Count, "Number of validation examples, chosen at random, on which the scorings are compared."
    ] = 200
    seed: Annotated[int, "Seed for drawing shots and other examples."] = 0

    def __post_init__(self) -> None:
        check_values(self)
        from model.generation.prompt import check_template

        check_template(self.template)
        self.words()

    def words(self) -> dict[str, str]:
        """Label -> words, of the labels that have words of their own."""
        pairs = [entry.partition("=") for entry in self.choices]
        if not all(label and words.strip() for label, _, words in pairs):
            raise ValueError(f"choices={list(self.choices)} must be texts of the form label=words")
        return {label: words.strip() for label, _, words in pairs}


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptingEvaluationConfig(TaskEvaluationConfig):
    """How a prompted model is evaluated."""

    random_init: Annotated[
        bool, "Always false: nothing is trained, so there is nothing to train from random weights."
    ] = field(default=False, metadata=NOT_IDENTITY)

    def __post_init__(self) -> None:
        TaskEvaluationConfig.__post_init__(self)
        if self.random_init:
            raise ValueError("random_init is true, but a prompted model is not trained; leave it out")


class PromptedClassifier(Predictor):
    """The label whose words continue the prompt most likely, with its probability among the labels."""

    inputs: ClassVar = {"text": "string"}
    outputs: ClassVar = {"label": "string", "probability": "double"}

    def __init__(self, directory: Path) -> None:
        from model.generation.prompt import Prompt
        from model.generation.prompting import PromptedLabels

        super().__init__(directory)
        prompt = Prompt.of(self.description["prompt"])
        template = template_of(directory, self.tokenizer) if prompt.chat else None
        self.prompted = PromptedLabels(self.model, self.tokenizer, prompt, self.description["max_tokens"], template)

    def load_network(self, directory: Path) -> Any:
        from model.network.registry import load_decoder

        return load_decoder(directory)

    def examine(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        from model.evaluate import most_likely

        probabilities_NC = self.prompted.probabilities([str(row["text"]) for row in rows])
        return most_likely(self.prompted.prompt.labels, probabilities_NC)

    def n_cut(self, rows: Sequence[Mapping[str, Any]]) -> int:
        return self.prompted.n_beyond([str(row["text"]) for row in rows])[1]


class Prompting(Classification):
    name = identity = "prompting"
    evaluation_version, libraries = 2, ("scikit-learn", "scipy")
    predictor = PromptedClassifier
    finetune, evaluation = PromptingConfig, PromptingEvaluationConfig
    has_curve = can_be_prompted = False
    needs_decoder = True
    example = """
[tickets_prompted]
kind = "prompting"
base = "smollm2"                 # a decoder
data = { path = "tickets.csv" }
text = "subject"
label = "queue"

[tickets_prompted.finetune]
template = "Ticket: {text}\\nThis is about {label}"
shots = 4                        # examples in the prompt
"""
    summary = "A decoder as it is, with a prompt that asks it for the label of a text; nothing is trained."

    @property
    def rows_identity(self) -> str:
        return Classification.identity

    def train(self, cfg: PromptingConfig, inputs: tuple[Checkpoint, Shards], work: Work) -> Outcome:
        return write_prompt(cfg, inputs, work)

    def prompted(self, base: Path, model: Mapping[str, Any]) -> Answering | None:
        return None  # the model itself is one

    def results(self, judged: Judged, seed: int) -> list[Result]:
        """The note of the deciding metric describes the prompt, without which its value cannot be compared."""
        notes = {self.decides[0]: prompt_line(judged.description)}
        return [
            {**one, "note": "; ".join(note for note in (notes.get(one["metric"], ""), one["note"]) if note)}
            for one in super().results(judged, seed)
        ]

    def report(self, judged: Judged, cfg: TaskEvaluationConfig) -> str:
        return super().report(judged, cfg) + prompt_report(judged.description)


KIND = Prompting()


def write_prompt(cfg: PromptingConfig, inputs: tuple[Checkpoint, Shards], work: Work) -> Outcome:
    """The stage function. Raises ValueError when the base is no decoder, or the settings do not fit the examples."""
    from model.generation.prompting import PromptedLabels
    from model.network.registry import read_config

    base, examples = inputs
    check_decoder(base, "base")
    train, held_out = (read_examples(examples.directory, split) for split in ("train", "validation"))
    prompt = prompt_of(cfg, labels_of(examples.directory), train)
    description, network = read_config(base.directory, "decoder")
    work.observer.started(work.fingerprint, dataclasses.asdict(cfg), inputs)
    max_tokens = min(cfg.max_tokens or network.max_seq_len, network.max_seq_len)
    model, tokenizer = loaded(base.directory)
    template = template_of(base.directory, tokenizer) if prompt.chat else None
    prompted, measures = PromptedLabels(model, tokenizer, prompt, max_tokens, template), {}
    texts = sample_of(train, cfg.prior_examples, cfg.seed)["text"].to_pylist()
    if cfg.scoring == "auto":
        chosen = prompted.of_all_scorings(texts)
        prompted, measures = best_of(chosen, sample_of(held_out, cfg.validation_examples, cfg.seed))
    elif cfg.scoring == "corrected":
        prompted = prompted.corrected(texts)
    elif cfg.scoring == "content_free":
        prompted = prompted.content_free()
    prompt = prompted.prompt
    described = {"prompt": prompt.described(), "max_tokens": max_tokens, "truncation_side": "left"}
    whole = {**description, "labels": prompt.labels, **described}
    write_text(work.directory / CONFIG, json.dumps(whole, indent=1, ensure_ascii=False))
    link_or_copy(base.directory / WEIGHTS, work.directory / WEIGHTS)
    keep_tokenizer(base.directory, work.directory)
    return Outcome(
        rows=0,  # steps
        measures={"n_shots": len(prompt.shots), **measures, **cuts(prompted, sample_of(train, MEASURED, cfg.seed))},
        content=(WEIGHTS, CONFIG, f"{TOKENIZER}/*"),
    )


def cuts(prompted: "PromptedLabels", rows: pa.Table) -> dict[str, float]:
    """Fraction of `rows` before which shots are missing, and number and fraction of those that are cut themselves."""
    n_shortened, n_cut = prompted.n_beyond(rows["text"].to_pylist())
    return {
        "train_fewer_shots_fraction": n_shortened / rows.num_rows,
        "train_n_cut": n_cut,
        "train_cut_fraction": n_cut / rows.num_rows,
    }


def check_decoder(model: Checkpoint, key: str) -> None:
    """Raises ValueError if the model that the key of a task names cannot continue a text."""
    from model.network.registry import KINDS, read_config

    description, _ = read_config(model.directory)
    if description["kind"] != "decoder":
        raise ValueError(
            f"the key {key} of the task names {model.directory}, {KINDS[description['kind']].title}, which continues"
            f" no text; prompting needs a decoder: {DECODERS}"
        )


def asked_decoder(base: Checkpoint, named: Handle | None) -> Checkpoint:
    """The model that is asked without training: the one that a task names in `prompted`, which must be a decoder,
    otherwise its base."""
    if not isinstance(named, Checkpoint):
        return base
    check_decoder(named, "prompted")
    return named


def loaded(directory: Path) -> tuple[Any, Any]:
    """The decoder on its device, and its tokenizer."""
    from model.data.tokenizer import load_model_tokenizer
    from model.network.registry import load_decoder
    from model.training.placement import for_evaluation

    decoder = for_evaluation(load_decoder(directory))
    return decoder, load_model_tokenizer(directory, decoder.cfg.vocab_size)


def prompt_of(cfg: PromptingConfig, labels: Sequence[str], train: pa.Table) -> "Prompt":
    from model.generation.prompt import Prompt, words_of

    given = cfg.words()
    if unknown := sorted(given.keys() - set(labels)):
        raise ValueError(f"choices names the label {unknown[0]!r}; the examples have {', '.join(labels)}")
    words = {label: given.get(label, words_of(label)) for label in labels}
    for one, label in ((one, label) for label in labels for one in labels if one < label):
        if words[one] == words[label]:
            raise ValueError(f"choices: the labels {one!r} and {label!r} have the same words, {words[one]!r}")
    return Prompt(
        words=words,
        template=cfg.template,
        instruction=cfg.instruction,
        shots=tuple(shots_of(train, cfg.shots, cfg.seed)),
        scoring=cfg.scoring if cfg.scoring in ("per_byte", "per_token") else "raw",  # until there is a prior
        chat=cfg.chat_template,
    )


def template_of(model: Path, tokenizer: "Tokenizer") -> "ChatTemplate":
    """Raises ValueError if the folder of a model has no chat template, or one that does not work."""
    from model.data.chat import CHAT_TEMPLATE, load_chat_template

    path = model / TOKENIZER / CHAT_TEMPLATE
    if not path.is_file():
        raise ValueError(f"chat_template is true, but the base has none ({path}); set it to false")
    return load_chat_template(tokenizer, path.parent)


def shots_of(train: pa.Table, n_shots: int, seed: int) -> list["Shot"]:
    """Examples of all labels in turn, so that their numbers differ by at most 1 while there are enough of each, in a
    random order. An example keeps its place in the draw when other labels get more examples."""
    from model.generation.prompt import Shot

    if n_shots > train.num_rows:
        raise ValueError(f"shots is {n_shots:,}, but there are only {train.num_rows:,} training examples")
    rows = sorted(train.select(["id", "text", "label"]).to_pylist(), key=lambda row: row["id"])
    rng = random.Random(f"shots {seed}")
    rng.shuffle(rows)
    places = Counter()
    turns = []
    for row in rows:
        turns.append((places[row["label"]], row))
        places[row["label"]] += 1
    chosen = [row for _, row in sorted(turns, key=lambda turn: turn[0])[:n_shots]]  # stable: labels by their draw
    rng.shuffle(chosen)
    return [Shot(**row) for row in chosen]


def sample_of(table: pa.Table, n_rows: int, seed: int) -> pa.Table:
    chosen = random.Random(f"sample {seed}").sample(range(table.num_rows), min(n_rows, table.num_rows))
    return table.take(sorted(chosen))


def best_of(candidates: "Sequence[PromptedLabels]", held_out: pa.Table) -> "tuple[PromptedLabels, dict[str, float]]":
    """The one whose scoring has the best accuracy on `held_out`, the first of equals; and all accuracies."""
    from model.generation.prompting import scores

    labels, found = candidates[0].prompt.labels, candidates[0].likelihoods(held_out["text"].to_pylist())
    classes_N = np.array([labels.index(label) for label in held_out["label"].to_pylist()])
    accuracies = [float((scores(found, one.prompt).argmax(axis=1) == classes_N).mean()) for one in candidates]
    named = {f"validation_accuracy_{one.prompt.scoring}": x for one, x in zip(candidates, accuracies, strict=True)}
    best = int(np.argmax(accuracies))
    return candidates[best], {
        **named,
        "validation_accuracy": accuracies[best],
        "validation_examples": len(classes_N),
    }


def zero_shot_answers(base: Path, labels: Sequence[str]) -> Answering | None:
    """How the decoder `base` answers rows by the names of the labels alone, as a baseline of tuned models; None
    for another network. The prior of the labels is that after the texts of all rows that are asked at once."""
    from model.evaluate import most_likely
    from model.generation.prompting import zero_shot
    from model.network.registry import read_config

    if read_config(base)[0]["kind"] != "decoder":
        return None
    network, tokenizer = loaded(base)

    def answers(rows: Sequence[Mapping[str, Any]]) -> Sequence[Answer]:
        return most_likely(labels, zero_shot(network, tokenizer, labels, [str(row["text"]) for row in rows]))

    return answers


def prompt_line(description: Mapping[str, Any]) -> str:
    """How the answers came about, in a few words."""
    prompt = description["prompt"]
    shots = f"{len(prompt['shots'])} shots" if prompt["shots"] else "zero-shot"
    chat = "with its chat template" if prompt["chat"] else "no chat template"
    return f"prompted, not trained: {shots}, scoring {prompt['scoring']}, {chat}"


def prompt_report(description: Mapping[str, Any]) -> str:
    from model.generation.prompt import Prompt

    prompt = Prompt.of(description["prompt"])
    plain_form = dataclasses.replace(prompt, chat=False)  # as a reader sees it best
    prior = prompt.prior or (None,) * len(prompt.words)
    rows = [
        [plain(label), plain(repr(words)), "-" if nats is None else f"{math.exp(nats):.3f}"]
        for (label, words), nats in zip(prompt.words.items(), prior, strict=True)
    ]
    counts = Counter(shot.label for shot in prompt.shots)
    shots = ", ".join(f"{plain(label)} {n}" for label, n in sorted(counts.items())) or "none"
    return "\n".join(
        [
            "\n## Prompt\n",
            f"{prompt_line(description)}. At most {description['max_tokens']:,} tokens. Shots: {shots}.\n",
            table(["label", "words", "prior"], rows),
            "\nBefore each text:\n",
            quoted(plain_form.opening().text(len(prompt.shots)) or "(nothing)"),
            "\nForm of each text:\n",
            quoted(prompt.template),
            *(
                ["\nIds of the shots, all of them training examples: " + ", ".join(s.id for s in prompt.shots)]
                if counts
                else []
            ),
            "",
        ]
    )
