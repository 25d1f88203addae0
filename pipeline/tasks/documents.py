"""The kind of task `documents`: an assistant that answers questions from documents, and says when they do not answer.

In: documents, cut into passages and embedded (corpus/passages, training/embed), a decoder, and questions with the
document that answers each. Out: answers with the passages that they rest on, by address and characters. Nothing is
trained: the model is the decoder and the encoder as they are, by hard links, with the passages as a searchable folder
and, in config.json, how the two searches are joined and from which score on a question is answered, which were chosen
on validation questions. Baselines are each search alone, and the decoder without documents.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Gt, Le, Lt

from pipeline.evaluation.document_metrics import METRICS
from pipeline.evaluation.document_results import (
    details_of,
    judged_documents,
    mistakes_of,
    report_of,
    results_of,
    searched,
)
from pipeline.evaluation.mistakes import Mistake
from pipeline.evaluation.results import Result
from pipeline.evaluation.task import Answer, Judged, TaskEvaluationConfig
from pipeline.serving.predictor import Predictor
from pipeline.store.records import Checkpoint, Shards
from pipeline.store.settings import Count, check_values
from pipeline.store.store import NOT_IDENTITY, Outcome, Work
from pipeline.tasks.documents_examples import QuestionRows, QuestionsConfig
from pipeline.tasks.documents_model import write_assistant
from pipeline.tasks.kind import Kind


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentsConfig:
    """Settings of an assistant."""

    passages: Annotated[
        int,
        Ge(1),
        Le(20),
        "Number of passages that the decoder is given with a question. More make it likelier that the right one is"
        " among them, and every answer slower.",
    ] = 3
    max_prompt_tokens: Annotated[
        int,
        Ge(64),
        "Largest number of tokens of what the decoder reads for an answer, with the passages, of which those that do"
        " not fit are left out. Reading takes most of the time of an answer on a CPU.",
    ] = 700
    max_answer_tokens: Annotated[Count, "Largest number of tokens of an answer."] = 80
    wrong_refusals: Annotated[
        float,
        Gt(0),
        Lt(1),
        "Share of the answerable validation questions that may be refused: the threshold is the one that refuses most"
        " of the others within this share.",
    ] = 0.1
    validation_questions: Annotated[
        Count, "Number of validation questions, chosen at random, that the threshold and the weights are chosen on."
    ] = 1000
    seed: Annotated[int, "Seed for drawing these questions."] = 0

    def __post_init__(self) -> None:
        check_values(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentsEvaluationConfig(TaskEvaluationConfig):
    """How an assistant is evaluated."""

    random_init: Annotated[
        bool, "Always false: nothing is trained, so there is nothing to train from random weights."
    ] = field(default=False, metadata=NOT_IDENTITY)
    prompted_examples: Annotated[
        Count,
        "Number of questions, chosen at random, that are answered in words, with the documents and by the decoder"
        " without them. What is found and what is refused is measured on all questions, because that takes hardly any"
        " time.",
    ] = 40

    def __post_init__(self) -> None:
        TaskEvaluationConfig.__post_init__(self)
        if self.random_init:
            raise ValueError("random_init is true, but an assistant is not trained; leave it out")


class DocumentsAssistant(Predictor):
    """The answer to each question with [n] marks, and the passages that they cite by address and characters.

    citations: `start` and `end` are the place of the passage `text` in its document, `quote_start` and `quote_end`
    that of the sentence that says it, `answer_start` and `answer_end` that of what rests on it in the answer.
    A question that the documents do not answer is refused: the answer says so.
    """

    inputs: ClassVar = {"question": "string"}
    optional_inputs: ClassVar = {"history": [{"role": "string", "content": "string"}]}  # what was said before
    outputs: ClassVar = {
        "answer": "string",
        "citations": [
            {
                "n": "long",
                "document": "string",
                "url": "string",
                "title": "string",
                "headings": ["string"],
                "start": "long",
                "end": "long",
                "text": "string",
                "quote_start": "long",
                "quote_end": "long",
                "answer_start": "long",
                "answer_end": "long",
            }
        ],
        "refused": "boolean",
        "score": "double",
    }
    libraries: ClassVar = ("bm25s", "usearch")
    DENIED: ClassVar = "denied.jsonl"  # in the data folder: what must not be shown any more

    FOUND: ClassVar = 100  # passages of which the documents are listed

    def __init__(self, directory: Path) -> None:
        import pyarrow.parquet as pq

        from model.data.chat import load_chat_template
        from model.data.tokenizer import load_model_tokenizer
        from model.generation.embed import embed
        from model.network.registry import load_encoder
        from model.retrieval.answerability import answerability_in
        from model.retrieval.assistant import AssistantConfig, writer_of
        from model.retrieval.retriever import load_retriever
        from model.training.placement import for_evaluation

        super().__init__(directory)
        encoder = for_evaluation(load_encoder(directory / "embedder"))
        of_encoder = load_model_tokenizer(directory / "embedder", encoder.cfg.vocab_size)
        settings = self.description["documents"]
        self.retriever = load_retriever(directory / "passages", lambda texts: embed(encoder, of_encoder, texts))
        self.answerability = answerability_in(settings["answerability"])
        self.cfg = AssistantConfig(**settings["assistant"])
        self.writer = writer_of(self.model, load_chat_template(self.tokenizer, directory / "tokenizer"), self.cfg)
        self.pages = pq.read_table(directory / "passages" / "pages.parquet", partitioning=None).to_pylist()
        # <data>/store/<stage>/<fingerprint>; who loads a copy from elsewhere may name the deny list
        above = directory.absolute().parents
        self.denied_file = above[2] / self.DENIED if len(above) > 2 else directory / self.DENIED

    def load_network(self, directory: Path) -> Any:
        from model.network.registry import load_decoder

        return load_decoder(directory)

    def allowed(self) -> Any:
        """The retriever without the documents that the deny list names now. Raises ValueError for a line of it that
        cannot be read, because what it denies must not be shown."""

        denied: set[str] = set()
        if self.denied_file.is_file():
            for number, line in enumerate(self.denied_file.read_text("utf-8-sig").split("\n"), 1):
                try:
                    row = json.loads(line) if line.strip() else {}
                    denied |= {row[key] for key in ("url", "page_id", "document_id") if row.get(key)}
                except (ValueError, AttributeError, TypeError) as error:
                    raise ValueError(f"{self.denied_file}, line {number} is no row of a deny list") from error
        hidden = [one["id"] for one in self.pages if denied & {one["id"], one["page_id"], one["url"]}]
        return self.retriever.without(hidden) if hidden else self.retriever

    def found(
        self, questions: Sequence[str], method: str = "fused", left_out: Sequence[Sequence[str]] | None = None
    ) -> list[dict[str, Any]]:
        """For each question the documents found and their addresses, the best first; and, for both searches together,
        its score, and whether it is refused. `left_out`: documents that count as missing, for each question."""
        from model.retrieval.answerability import LOOKED_AT, numbers_of

        retriever, answers = self.allowed(), []
        for place, hits in enumerate(retriever.search(list(questions), self.FOUND, method)):
            if left_out is not None:
                hits = [hit for hit in hits if retriever.document(hit.place) not in left_out[place]]
            places = {retriever.document(hit.place): hit.place for hit in reversed(hits)}
            documents = list(dict.fromkeys(retriever.document(hit.place) for hit in hits))
            urls = [retriever.passage(places[one])["url"] for one in documents[:1]]
            answers.append({"documents": documents, "urls": urls, "score": 0.0, "refused": False})
            if method == "fused":
                score = self.answerability.score(numbers_of(retriever, questions[place], hits[:LOOKED_AT]))
                answers[-1] |= {"score": score, "refused": score < self.answerability.threshold}
        return answers

    def examine(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """As `answer`, with the answer without marks (`plain`), how it came about, and how many sentences the decoder
        wrote, and how many of them a passage supports."""
        from model.retrieval.assistant import Assistant

        assistant = Assistant(self.allowed(), self.answerability, self.writer, self.cfg)
        return [self._examined(assistant, str(row["question"]), row.get("history") or ()) for row in rows]

    def n_cut(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """Of how many questions only the beginning is read."""
        from model.retrieval.assistant import shortened

        return sum(shortened(str(row["question"]))[1] for row in rows)

    def _examined(self, assistant: Any, question: str, history: Sequence[Mapping[str, str]]) -> dict[str, Any]:
        from model.data.chat import Message
        from model.data.examples import valid
        from model.retrieval.assistant import REFUSAL, Answered, shortened
        from model.retrieval.citations import without_marks
        from model.retrieval.terms import terms_of

        asked = valid(question)
        has_words = bool(terms_of(shortened(asked)[0], "none"))
        said = [
            Message(one["role"], valid(one["content"])) for one in history if one["role"] in ("user", "assistant")
        ]
        found = assistant.answer(asked, said) if has_words else Answered(REFUSAL, (), (), True, 0.0, "refused")
        n_supported = len(found.citations) if found.how == "written" else 0
        return {
            "answer": found.text,
            "citations": [self._citation(assistant, one) for one in found.citations],
            "refused": found.refused,
            "score": found.score,
            "plain": "" if found.refused else without_marks(found.text),
            "how": found.how,
            "n_sentences": n_supported + found.n_unsupported,
            "n_supported": n_supported,
        }

    def _citation(self, assistant: Any, one: Any) -> dict[str, Any]:
        row = assistant.retriever.passage(one.place)
        of_answer = {"answer_start": one.answer_start, "answer_end": one.answer_end}
        return {"n": one.n, **row, "quote_start": one.start, "quote_end": one.end, **of_answer}


class Documents(QuestionRows, Kind):
    name = identity = "documents"
    evaluation_version, libraries = 1, ("bm25s", "scipy")
    predictor = DocumentsAssistant
    examples, finetune, evaluation = QuestionsConfig, DocumentsConfig, DocumentsEvaluationConfig
    summary = "A decoder that answers questions from documents, with the passages that its answers rest on."
    example = """
[handbook]
kind = "documents"
base = "smollm2"                     # a decoder, which writes the answers
embedder = "minilm"                  # an encoder, by which passages are found
documents = { path = "manuals" }     # of this task alone; or "corpus", or a list of sources of sources.toml
data = { path = "questions.jsonl" }  # question, answers, document; without this key questions are made
"""
    keys = ("question", "answers", "document")
    metrics = METRICS
    decides, must_beat = ("mrr", True), ("answer_f1", "decoder")
    selects = ("validation_mrr", True)
    has_curve = False
    needs_decoder = reads_documents = True

    def train(self, cfg: DocumentsConfig, inputs: tuple[Any, ...], work: Work) -> Outcome:
        return write_assistant(cfg, inputs, work)

    def judge(
        self, cfg: Any, models: Sequence[Checkpoint], base: Checkpoint | None, examples: Shards, work: Work
    ) -> Judged:
        return judged_documents(self.predictor, cfg, models[0], base, examples, work)

    def answers(self, model: Predictor, rows: Sequence[Mapping[str, Any]]) -> Sequence[Answer]:
        return searched(model, rows, "fused")

    def results(self, judged: Judged, seed: int) -> list[Result]:
        return results_of(judged, seed)

    def details(self, judged: Judged) -> dict[str, float]:
        return details_of(judged)

    def mistakes(self, judged: Judged) -> Iterator[Mistake]:
        yield from mistakes_of(judged)

    def report(self, judged: Judged, cfg: TaskEvaluationConfig) -> str:
        del cfg
        return report_of(judged)


KIND = Documents()
