"""The kind of task `instruction`: a decoder learns to answer, from questions or conversations with their answers.

In: rows with an instruction and its output, messages, or a prompt and its completion (corpus/examples/
conversations.py). Out: a decoder that is saved with its chat template, so that every use of it writes conversations
as its training did. Only the answers are learned by default, with the token that ends them; conversations share the
rows of a batch without seeing each other (model/data/conversations.py). The evaluation compares the loss on held-out
answers, and greedy answers, with those of the base.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from annotated_types import Ge, Gt, Le

from model.data.augment import augmented_texts
from pipeline.corpus.examples.conversations import FORMS, MESSAGES, PARTS, Refused, conversation_in
from pipeline.corpus.examples.labelled_file import Record
from pipeline.corpus.examples.paths import part_of
from pipeline.corpus.examples.protocol import ExamplesConfig, part_paths
from pipeline.corpus.examples.rows import Row, is_sampled
from pipeline.corpus.examples.stage import refuse_empty_splits, with_column
from pipeline.corpus.report.card_markdown import table
from pipeline.evaluation.instruction_results import (
    BASE,
    METRICS,
    answers_side_by_side,
    judged_instructions,
    loss_answers,
    results_of,
    template_report,
)
from pipeline.evaluation.mistakes import Mistake
from pipeline.evaluation.results import Result
from pipeline.evaluation.task import Answer, Judged, TaskEvaluationConfig
from pipeline.serving.predictor import Predictor
from pipeline.store.records import Checkpoint, Shards
from pipeline.store.settings import Count, OptionalCount, Text
from pipeline.store.shards import text_digest
from pipeline.store.store import NOT_IDENTITY, Work
from pipeline.tasks.chat_encoding import (
    ChatEncoder,
    SystemPrompt,
    Template,
    Trained,
    Tuning,
    chat_encoder,
    checked_roles,
    write_template,
)
from pipeline.tasks.kind import Kind
from pipeline.training.finetune import FinetuneConfig

if TYPE_CHECKING:
    from torch import nn

    from model.data.conversations import EncodedConversations

SHOWN_COLUMNS = 20  # in a message
SHOWN_IDS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class InstructionExamplesConfig(ExamplesConfig):
    """Settings for reading conversations. The defaults are the names that most files have."""

    form: Annotated[
        Literal["messages", "sharegpt", "prompt", "alpaca"] | None,
        "Form of the rows: messages (role and content), sharegpt (from and value), prompt (with a completion) or"
        " alpaca (instruction, input and output). Without a value the form of each row is found from its columns.",
    ] = None
    messages: Annotated[Text, "Column that holds the messages of a conversation, or the keys that lead to it."] = (
        "messages"
    )
    conversations: Annotated[Text, "Column that holds the messages in ShareGPT's form."] = "conversations"
    prompt: Annotated[Text, "Column that holds a prompt: a text, or messages."] = "prompt"
    completion: Annotated[Text, "Column that holds the answer to a prompt: a text, or messages."] = "completion"
    instruction: Annotated[Text, "Column that holds an instruction."] = "instruction"
    input: Annotated[Text, "Column that holds what an instruction is about, if that is not in the instruction."] = (
        "input"
    )
    output: Annotated[Text, "Column that holds the answer to an instruction."] = "output"
    system: Annotated[Text, "Column that holds the system message of a row, if there is one."] = "system"
    sample: Annotated[
        float,
        Gt(0),
        Le(1),
        "Fraction of the conversations that are used, chosen by the hash of what comes before the last answer; the"
        " others are dropped and counted. Less than 1 to try a task on a part of large data.",
    ] = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class InstructionConfig(FinetuneConfig):
    """Settings of instruction tuning."""

    tuning: Tuning = "full"
    epochs: Annotated[
        OptionalCount,
        "Number of passes over the training conversations. No head is new, so that few conversations need no more"
        " passes than many.",
    ] = 3
    template: Template = "auto"
    system_prompt: SystemPrompt = ""
    trained: Trained = ()
    max_tokens: Annotated[
        int | None,
        Ge(2),
        "Largest number of tokens per conversation; without a value the context of the base model. A conversation of"
        " which no trained token is left is not used, and named in the log.",
    ] = None

    def __post_init__(self) -> None:
        FinetuneConfig.__post_init__(self)
        checked_roles(self.trained)


@dataclass(frozen=True, kw_only=True, slots=True)
class InstructionEvaluationConfig(TaskEvaluationConfig):
    """How a model that was tuned on instructions is evaluated."""

    random_init: Annotated[
        bool, "Always false: a decoder that was not pretrained learns no language from a few answers."
    ] = field(default=False, metadata=NOT_IDENTITY)
    prompted_examples: Annotated[
        Count,
        "Number of held-out conversations, chosen at random, whose last answers the model and its base write anew, to"
        " compare them with the expected ones. The loss is always measured on all of them.",
    ] = 100
    max_new_tokens: Annotated[Count, "Largest number of tokens of such an answer."] = 128

    def __post_init__(self) -> None:
        TaskEvaluationConfig.__post_init__(self)
        if self.random_init:
            raise ValueError("random_init is true, but the baseline of this kind of task is the base; leave it out")


class InstructionAnswerer(Predictor):
    """The likeliest answer to a prompt, which is the user's message of a conversation."""

    inputs: ClassVar = {"prompt": "string"}
    outputs: ClassVar = {"answer": "string"}
    MOST_NEW_TOKENS: ClassVar = 256

    def __init__(self, directory: Path) -> None:
        from model.data.chat import load_chat_template

        super().__init__(directory)
        self.template = load_chat_template(self.tokenizer, directory / "tokenizer")
        self.system = self.description.get("chat", {}).get("system", "")

    def load_network(self, directory: Path) -> Any:
        from model.network.registry import load_decoder

        return load_decoder(directory)

    def examine(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        from model.evaluate_conversations import greedy_answers

        answers = greedy_answers(self.model, self.template, self.questions(rows), self.MOST_NEW_TOKENS)
        return [{"answer": one.text, "is_complete": one.is_complete} for one in answers]

    def n_cut(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """How many prompts leave no room for an answer, so that their beginnings are not read."""
        from model.evaluate_conversations import most_of_prompt

        most = most_of_prompt(self.model.cfg.max_seq_len, self.MOST_NEW_TOKENS)
        return sum(len(self.template.prompt(one)) > most for one in self.questions(rows))

    def questions(self, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
        from model.data.chat import Message, with_system
        from model.data.examples import valid

        return [with_system([Message("user", valid(str(row["prompt"])))], self.system) for row in rows]


class Instruction(Kind):
    name = identity = "instruction"
    evaluation_version, libraries = 2, ("jinja2", "scipy")
    predictor = InstructionAnswerer
    examples, finetune, evaluation = InstructionExamplesConfig, InstructionConfig, InstructionEvaluationConfig
    summary = "A decoder that was tuned to answer instructions, or to go on with conversations."
    example = """
[assistant]
kind = "instruction"
base = "smollm2"                          # a decoder
data = { path = "questions.jsonl" }       # instruction, input and output; messages; or prompt and completion

[assistant.finetune]
system_prompt = "You answer briefly."     # of conversations without one
"""
    parts = optional = PARTS
    keys = (*PARTS, "form")
    columns = (pa.field("messages", MESSAGES, nullable=False),)
    metrics = METRICS
    decides, must_beat = ("answer_loss", False), ("answer_loss", BASE)
    needs_decoder = makes_bases = can_be_prompted = True
    selects = ("validation_loss", False)

    def records(self, name: str, content: bytes, cfg: Any, stray_quotes: list[int]) -> Iterator[Record | str]:
        """Raises ValueError after the last one if none has the columns of a form."""
        paths, columns, has_form = part_paths(self, cfg), dict[str, None](), False
        for record in super().records(name, content, cfg, stray_quotes):
            if not has_form and isinstance(record, dict):
                columns |= dict.fromkeys(map(str, record))
                parts = {part: part_of(record, paths[part]) for part in PARTS}
                forms = list(FORMS) if cfg.form is None else [cfg.form]
                has_form = any(all(parts[part] is not None for part in FORMS[form]) for form in forms)
            yield record
        if columns and not has_form:
            raise ValueError(_no_form(name, cfg, list(columns)))

    def row(self, parts: Mapping[str, Any], cfg: InstructionExamplesConfig) -> Row:
        try:
            found = conversation_in(parts, cfg.form)
        except Refused as refused:
            return refused.row(parts[name] for name in PARTS)
        contents = [one.content for one in found if one.role != "system"]
        whole = text_digest(*(text for one in found for text in (one.role, one.content)))
        before = text_digest(*(one.content for one in found[:-1]))
        reason = None if is_sampled(before, cfg.sample) else "not_sampled"
        messages = [{"role": one.role, "content": one.content} for one in found]
        group = before if cfg.group is None else None  # answers to one question stay in one split
        return Row("\n\n".join(contents), {"messages": messages}, reason, key=whole, group=group)

    def check_examples(self, examples: pa.Table, cfg: InstructionExamplesConfig, name: str) -> None:
        del cfg
        refuse_empty_splits(examples, name)

    def describe_examples(self, examples: pa.Table) -> str:
        return conversations_overview(examples)

    def augmented(self, rows: pa.Table, cfg: Any, seed: int) -> pa.Table:
        """Only the messages of users change: typing errors are made by who asks."""
        changed = []
        for name, messages in zip(rows["id"].to_pylist(), rows["messages"].to_pylist(), strict=True):
            names = [f"{name} {place}" for place in range(len(messages))]
            texts = augmented_texts(names, [one["content"] for one in messages], cfg.settings().augmentation, seed)
            asked = zip(messages, texts, strict=True)
            changed.append([one | {"content": text} if one["role"] == "user" else one for one, text in asked])
        return with_column(rows, "messages", changed)

    def encoder(self, cfg: InstructionConfig, tokenizer: Any, directory: Path) -> ChatEncoder:
        return chat_encoder(tokenizer, directory, cfg)

    def encode(
        self, examples: Shards, rows: pa.Table, tokenizer: ChatEncoder, max_tokens: int, truncation_side: str
    ) -> "EncodedConversations":
        return tokenizer.encoded(rows, max_tokens, truncation_side)

    def network(self, cfg: InstructionConfig, base: Any, examples: Shards) -> "tuple[nn.Module, dict[str, Any]]":
        from model.network.decoder import Decoder, new_decoder
        from model.network.registry import KINDS, describe, kind_of

        del examples
        if not isinstance(base, Decoder):
            raise ValueError(
                f"the base is {KINDS[kind_of(base)].title}, which writes no text; the kind of task {self.name!r}"
                " needs a decoder as base"
            )
        description = describe(base.cfg) | ({"chat": {"system": cfg.system_prompt}} if cfg.system_prompt else {})
        return new_decoder(base.cfg, cfg.seed) if cfg.initialisation == "random" else base, description

    def loss(self, cfg: InstructionConfig) -> Any:
        from model.training.loss import language_model_loss

        del cfg
        return language_model_loss

    def validate(self, network: "nn.Module", encoded: Any) -> dict[str, float]:
        """validation_loss: nats per trained token."""
        from model.evaluate_conversations import mean_conversation_loss

        return {"validation_loss": mean_conversation_loss(network, encoded)}  # type: ignore[arg-type]

    def complete(self, encoder: ChatEncoder, directory: Path) -> None:
        write_template(encoder, directory)

    def judge(
        self, cfg: Any, models: Sequence[Checkpoint], base: Checkpoint | None, examples: Shards, work: Work
    ) -> Judged:
        return judged_instructions(self.predictor, cfg, models[0], base, examples, work)

    def answers(self, model: Predictor, rows: Sequence[Mapping[str, Any]]) -> Sequence[Answer]:
        return loss_answers(model, rows)

    def results(self, judged: Judged, seed: int) -> list[Result]:
        """The resampled unit is the conversation."""
        return results_of(judged, seed)

    def mistakes_listed(self, judged: Judged, worst: Sequence[Mistake], n_wrong: int) -> str:
        del worst, n_wrong
        return answers_side_by_side(judged)

    def report(self, judged: Judged, cfg: TaskEvaluationConfig) -> str:
        del cfg
        return template_report(judged)


KIND = Instruction()


def _no_form(name: str, cfg: InstructionExamplesConfig, columns: Sequence[str]) -> str:
    forms = list(FORMS) if cfg.form is None else [cfg.form]
    expected = " or ".join(" and ".join(getattr(cfg, part) for part in FORMS[form]) for form in forms)
    there = ", ".join(sorted(columns)[:SHOWN_COLUMNS])
    return (
        f"{name}: expected the columns {expected}, but no row has them; the rows have: {there}. Name the columns in"
        ' the table of the task, for instance instruction = "question" and output = "answer"'
    )


def conversations_overview(examples: pa.Table) -> str:
    """Turns, lengths and system messages of the conversations of each split."""
    rows, systems = [], set()
    splits = np.array(examples["split"].to_pylist())
    for split in dict.fromkeys(splits.tolist()):
        of_split = examples["messages"].filter(pa.array(splits == split)).to_pylist()
        roles = [[one["role"] for one in messages] for messages in of_split]
        answers = [one["content"] for messages in of_split for one in messages if one["role"] == "assistant"]
        told = [messages[0]["content"] for messages in of_split if messages[0]["role"] == "system"]
        systems.update(told)
        lengths = [len(text.split()) for text in answers]
        turns = [of_one.count("assistant") for of_one in roles]
        numbers = (len(of_split), len(told), sum(n > 1 for n in turns), max(turns))
        of_answers = (int(np.median(lengths)), int(np.quantile(lengths, 0.99)), max(lengths))
        rows.append([split, *(f"{number:,}" for number in (*numbers, *of_answers))])
    header = [
        "split", "conversations", "with a system message", "with several answers", "most answers",
        "words of an answer, median", "99 %", "most",
    ]  # fmt: skip
    told = f"\n{len(systems):,} different system messages.\n" if systems else ""
    return "## Conversations\n\n" + table(header, rows) + told
