"""Answers of a decoder with the documents and without them; the part `answers` of bench/retrieval.py.

In: its arguments, with the decoder. Out: tables in Markdown. Without the documents the decoder is asked the question
alone, with the same settings. F1 is that of SQuAD, over the words of the answer without marks; "contains" says
whether the expected answer stands in it. A citation is right if its passage is of the document that the question was
asked about. The threshold is fitted on the questions about every second document, and the others are asked.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.retrieval import Collection, Embedder, pubmed, retriever_of, xquad
from model.data.chat import Message, load_chat_template
from model.data.tokenizer import load_model_tokenizer
from model.generation.decode import pack
from model.network.registry import load_decoder
from model.retrieval.answerability import examples_of, fitted
from model.retrieval.assistant import Assistant, Writer, without_unfinished, writer_of
from model.retrieval.citations import without_marks
from pipeline.evaluation.answer_metrics import answer_scores, normalised_answer

ALONE = "You answer questions in one or two short sentences."


def answers(args: argparse.Namespace, embedder: Embedder, folder: Path) -> None:
    if args.decoder is None:
        raise SystemExit("the part `answers` needs --decoder")
    model = load_decoder(args.decoder).eval()
    tokenizer = load_model_tokenizer(args.decoder, model.cfg.vocab_size)
    writer = writer_of(pack(model), load_chat_template(tokenizer, args.decoder / "tokenizer"))
    print("| | questions | F1 | contains | supported sentences | right citations | written | refused | s |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for name, collection in (("XQuAD", xquad(args.data)), ("PubMedQA", pubmed(args.data))):
        assistant, test = _made(collection, args, embedder, folder / name, writer)
        n_questions = args.questions if name == "XQuAD" else -(-args.questions // 3)
        asked = test[:: max(1, len(test) // n_questions)][:n_questions]
        for title, way in (
            ("decoder", assistant),
            ("quotes", Assistant(assistant.retriever, assistant.answerability)),
        ):
            print(_row(f"{name}, {title}", way, asked), flush=True)
        print(_row_alone(f"{name}, without documents", writer, asked), flush=True)


def _made(
    collection: Collection, args: argparse.Namespace, embedder: Embedder, folder: Path, writer: Writer
) -> tuple[Assistant, list[tuple[str, str, list[str]]]]:
    retriever = retriever_of(collection, embedder, folder, args.most_tokens)
    names = list(dict.fromkeys(document for _, document, _ in collection.questions))
    place = {document: number for number, document in enumerate(names)}
    validation, test = ([q for q in collection.questions if place[q[1]] % 2 == half] for half in (0, 1))
    judge = fitted(*examples_of(retriever, [q for q, _, _ in validation], [name for _, name, _ in validation]))
    return Assistant(retriever, judge, writer), test


def _row(title: str, assistant: Assistant, asked: list[tuple[str, str, list[str]]]) -> str:
    found, started = [], time.perf_counter()
    for question, document, expected in asked:
        one = assistant.answer(question)
        right = [assistant.retriever.document(cited.place) == document for cited in one.citations]
        n_written = len(one.citations) + one.n_unsupported if one.how == "written" else one.n_unsupported
        n_supported = len(one.citations) if one.how == "written" else 0
        scores = _scores("" if one.refused else one.text, expected)
        found.append((*scores, n_supported, n_written, sum(right), len(right), one.how == "written", one.refused))
    values = np.array(found, float)
    supported, right = (values[:, a].sum() / max(1, values[:, a + 1].sum()) for a in (2, 4))
    seconds = (time.perf_counter() - started) / len(asked)
    shares = [values[:, 0].mean(), values[:, 1].mean(), supported, right, values[:, 6].mean(), values[:, 7].mean()]
    return f"| {title} | {len(asked)} | " + " | ".join(f"{one:.3f}" for one in shares) + f" | {seconds:.1f} |"


def _row_alone(title: str, writer: Writer, asked: list[tuple[str, str, list[str]]]) -> str:
    scores, started = [], time.perf_counter()
    for question, _, expected in asked:
        answer = writer.write([Message("system", ALONE), Message("user", question)])
        scores.append(_scores(without_unfinished(answer), expected))
    f1, contains = np.array(scores).mean(axis=0)
    seconds = (time.perf_counter() - started) / len(asked)
    return f"| {title} | {len(asked)} | {f1:.3f} | {contains:.3f} | | | | | {seconds:.1f} |"


def _scores(answer: str, expected: list[str]) -> tuple[Any, bool]:
    plain = without_marks(answer)
    words = f" {normalised_answer(plain)} "
    return answer_scores(plain, expected)[1], any(f" {normalised_answer(one)} " in words for one in expected)
