"""Writes the model of a task that answers from documents, and chooses on validation questions how it searches.

In: a decoder, questions, passages with their vectors, and the encoder that made these. Out: the folder of a model:
the decoder as it is, by hard link, with the settings of the assistant in its config.json; in embedder/ the encoder,
by hard link; in passages/ what is searched (model/retrieval/retriever.py), and pages.parquet, which names the pages
behind the documents for the deny list. Constants of the search are chosen by the mean reciprocal rank of the right
document, the threshold by refusals, with questions whose own document is left out as unanswerable ones.

torch is imported where it is used, because Dagster loads this module only for its config.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.corpus.examples.stage import read_examples
from pipeline.corpus.passages.stage import check_encoder
from pipeline.evaluation.document_results import judged_places
from pipeline.store.records import Checkpoint, Shards
from pipeline.store.shards import link_or_copy, write_table, write_text
from pipeline.store.store import Outcome, Work
from pipeline.tasks.prompting import check_decoder
from pipeline.training.embed import documents_in, read_passages
from pipeline.training.finetune import keep_tokenizer

if TYPE_CHECKING:
    from model.retrieval.retriever import RetrievalConfig, Retriever

WEIGHTS, CONFIG = "model.safetensors", "config.json"
EMBEDDER, PASSAGES, PAGES = "embedder", "passages", "pages.parquet"
FEWEST_QUESTIONS = 20  # with a document, on which constants are chosen; with fewer they stay as they are
PAGES_SCHEMA = pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("id", "page_id", "url")])
Row = Mapping[str, Any]


def write_assistant(cfg: Any, inputs: tuple[Any, ...], work: Work) -> Outcome:
    """The stage function. Inputs: base, examples, passages, embedder. Raises ValueError when a model is not of the
    kind that is needed, or there is no passage."""
    from model.retrieval.answerability import examples_of, fitted
    from model.retrieval.retriever import RetrievalConfig, load_retriever, write_retriever

    base, examples, passages, embedder = inputs
    check_decoder(base, "base")
    check_encoder(embedder)
    work.observer.started(work.fingerprint, dataclasses.asdict(cfg), inputs)
    table, vectors = read_passages(passages.directory)
    if not table.num_rows:
        raise ValueError(f"{passages.directory} has no passage: the documents of the task are empty; add documents")
    folder, rows = work.directory / PASSAGES, retrieved_rows(table)
    write_retriever(folder, rows, vectors, RetrievalConfig())
    write_pages(folder / PAGES, documents_in(passages.directory))
    link_model(embedder.directory, work.directory / EMBEDDER)
    questions = validation_questions(examples, cfg)
    retriever = load_retriever(folder, embedding_of(work.directory / EMBEDDER))
    chosen, measures = fusion_chosen(retriever, questions)
    retriever = dataclasses.replace(retriever, cfg=chosen)
    write_settings(folder, chosen)
    asked = [row for row in questions if row["document"] is not None]
    numbers, is_answerable = examples_of(
        retriever, [row["question"] for row in asked], [row["document"] for row in asked]
    )
    others = unanswerable_numbers(retriever, [row["question"] for row in questions if row["document"] is None])
    numbers, is_answerable = np.concatenate([numbers, others]), np.append(is_answerable, np.zeros(len(others), bool))
    answerability = fitted(numbers, is_answerable, cfg.wrong_refusals)
    refused = np.array([answerability.score(row) < answerability.threshold for row in numbers])
    measures |= {
        "validation_questions": len(questions),
        "validation_asked": sum(not row["made"] for row in asked),
        "validation_right_refusals": float(refused[~is_answerable].mean()),
        "validation_wrong_refusals": float(refused[is_answerable].mean()),
    }
    assistant = {
        "n_passages": cfg.passages,
        "most_prompt_tokens": cfg.max_prompt_tokens,
        "most_answer_tokens": cfg.max_answer_tokens,
    }
    described = {"assistant": assistant, "answerability": answerability.described()}
    write_decoder(base, work.directory, {"documents": described})
    n_documents = len(rows["document"].unique())
    return Outcome(rows=0, measures={"passages": table.num_rows, "documents": n_documents, **measures})


def retrieved_rows(passages: pa.Table) -> pa.Table:
    """The passages as model/retrieval has them: a document is named by the id of its text."""
    from model.retrieval.retriever import SCHEMA

    titles = [title or "" for title in passages["title"].to_pylist()]
    columns = {"document": passages["id"], "title": pa.array(titles, pa.string())}
    columns |= {name: passages[name].cast(SCHEMA.field(name).type) for name in SCHEMA.names if name not in columns}
    return pa.table({name: columns[name] for name in SCHEMA.names}, schema=SCHEMA)


def write_pages(path: Path, documents: Sequence[Mapping[str, str]]) -> None:
    """Id, page id and address of every document: what the deny list names."""
    write_table(path, pa.Table.from_pylist([dict(one) for one in documents], schema=PAGES_SCHEMA))


def write_settings(folder: Path, cfg: "RetrievalConfig") -> None:
    """Change the settings of a retriever that need no other file of it to change."""
    from model.retrieval.retriever import SETTINGS

    about = json.loads((folder / SETTINGS).read_text("utf-8"))
    write_text(folder / SETTINGS, json.dumps(about | {"settings": dataclasses.asdict(cfg)}, indent=1))


def write_decoder(base: Checkpoint, directory: Path, more: Mapping[str, Any]) -> None:
    """The decoder in a folder of its own, by hard links, with more in its config.json."""
    description = json.loads((base.directory / CONFIG).read_text("utf-8"))
    write_text(directory / CONFIG, json.dumps({**description, **more}, indent=1, ensure_ascii=False))
    link_or_copy(base.directory / WEIGHTS, directory / WEIGHTS)
    keep_tokenizer(base.directory, directory)


def link_model(model: Path, directory: Path) -> None:
    for name in (WEIGHTS, CONFIG):
        link_or_copy(model / name, directory / name)
    keep_tokenizer(model, directory)


def embedding_of(directory: Path) -> Any:
    """Texts to vectors, by the encoder in a folder."""
    from model.data.tokenizer import load_model_tokenizer
    from model.generation.embed import embed
    from model.network.registry import load_encoder
    from model.training.placement import for_evaluation

    model = for_evaluation(load_encoder(directory))
    tokenizer = load_model_tokenizer(directory, model.cfg.vocab_size)
    return lambda texts: embed(model, tokenizer, texts)


def validation_questions(examples: Shards, cfg: Any) -> list[Row]:
    """Questions of people; only if there are none, questions that were made."""
    rows = read_examples(examples.directory, "validation").to_pylist()
    judged = [rows[place] for place in judged_places(rows)]
    chosen = np.random.default_rng(cfg.seed).permutation(len(judged))[: cfg.validation_questions]
    return [judged[place] for place in sorted(chosen.tolist())]


def unanswerable_numbers(retriever: "Retriever", questions: Sequence[str]) -> np.ndarray:
    """What is known of questions that no document answers (N, F)."""
    from model.retrieval.answerability import LOOKED_AT, NUMBERS, numbers_of

    found = retriever.search(questions, LOOKED_AT)
    rows = [numbers_of(retriever, question, hits) for question, hits in zip(questions, found, strict=True)]
    return np.array(rows).reshape(-1, len(NUMBERS))


def fusion_chosen(retriever: "Retriever", questions: Sequence[Row]) -> tuple["RetrievalConfig", dict[str, float]]:
    """The constants with the best mean reciprocal rank of the right document, and this value of some constants."""
    from model.retrieval.fusion import mean_reciprocal_rank, tuned

    asked = [row for row in questions if row["document"] is not None]
    texts, documents = [row["question"] for row in asked], [row["document"] for row in asked]
    chosen = tuned(retriever, texts, documents).cfg if len(asked) >= FEWEST_QUESTIONS else retriever.cfg
    found, own = retriever.search(texts, 2 * retriever.cfg.depth), retriever.cfg
    constants = {
        "validation_mrr": (chosen.constant, chosen.bm25_weight),
        "validation_mrr_unchosen": (own.constant, own.bm25_weight),
        "validation_mrr_bm25": (own.constant, 1.0),
        "validation_mrr_embeddings": (own.constant, 0.0),
    }
    return chosen, {name: mean_reciprocal_rank(retriever, found, documents, *one) for name, one in constants.items()}
