"""Search in documents: what is found, what is refused, and what an answer rests on.

In: a folder with pubmedqa_first700.json.gz and xquad_en_first36.json (--data), an encoder (--base) and, for the part
`answers`, a decoder (--decoder), both in our format. Out: tables in Markdown, one for each part.

The collections are the 700 abstracts of PubMedQA, whose questions are their titles, and the 180 paragraphs of 36
articles of XQuAD. Questions with an even number are validation data: constants, weights and thresholds are chosen on
them; the others are reported. A document is found at the rank of the first of its passages.

    recall     BM25 with each way to cut words to stems, embeddings, both; PubMedQA
    headings   passages with and without the title of their article; XQuAD
    refusals   questions whose document is left out, and the questions of the other collection
    support    the share of an author's conclusion that its own abstract and another one contain; PubMedQA
    storage    float16 and float32, and an index beside the exact search, on vectors with noise
    answers    --questions answers of the decoder with and without the documents; XQuAD

    python -m bench.retrieval --data DIR --base DIR [--decoder DIR] [--parts recall ...] [--kept DIR]

`--kept`: a folder in which the vectors of texts are kept, so that a second run computes none again.
"""

import argparse
import dataclasses
import gzip
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from model.data.tokenizer import load_model_tokenizer
from model.generation.embed import embed
from model.network.registry import load_encoder
from model.retrieval.answerability import LOOKED_AT, NUMBERS, Answerability, examples_of, fitted, numbers_of
from model.retrieval.citations import SHARE, Citing, Source
from model.retrieval.fusion import rank_of, tuned
from model.retrieval.passages import cut
from model.retrieval.retriever import (
    METHODS,
    SCHEMA,
    RetrievalConfig,
    Retriever,
    load_retriever,
    searched_texts,
    write_retriever,
)
from model.retrieval.sentences import sentence_spans
from model.retrieval.terms import STEMMINGS
from model.retrieval.vectors import DTYPE, load_vectors, write_vectors

PARTS = ("recall", "headings", "refusals", "support", "storage", "answers")
EMBEDDED_TOKENS = 256
N_OTHERS = 200  # questions of the other collection


@dataclasses.dataclass(frozen=True)
class Collection:
    documents: list[tuple[str, str, str]]  # name, title, text
    questions: list[tuple[str, str, list[str]]]  # question, name of its document, answers

    def half(self, number: int) -> list[tuple[str, str, list[str]]]:
        return self.questions[number::2]


def pubmed(data: Path) -> Collection:
    rows = list(json.loads(gzip.decompress((data / "pubmedqa_first700.json.gz").read_bytes())).values())
    return Collection(
        [(str(n), "", "\n\n".join(row["CONTEXTS"])) for n, row in enumerate(rows)],
        [(row["QUESTION"], str(n), [row["LONG_ANSWER"]]) for n, row in enumerate(rows)],
    )


def xquad(data: Path) -> Collection:
    found = Collection([], [])
    for article in json.loads((data / "xquad_en_first36.json").read_text("utf-8"))["data"]:
        for number, paragraph in enumerate(article["paragraphs"]):
            name, title = f"{article['title']}#{number}", article["title"].replace("_", " ")
            found.documents.append((name, title, paragraph["context"]))
            found.questions.extend(
                (one["question"], name, [answer["text"] for answer in one["answers"]]) for one in paragraph["qas"]
            )
    return found


class Embedder:
    """An encoder that remembers the vectors of texts, in a file where a folder is given."""

    def __init__(self, base: Path, kept: Path | None):
        self.model = load_encoder(base).eval()
        self.tokenizer = load_model_tokenizer(base, self.model.cfg.vocab_size)
        self.path = kept / "vectors.npz" if kept else None
        self.known: dict[str, np.ndarray] = {}
        if self.path and self.path.is_file():
            with np.load(self.path) as file:
                self.known = dict(zip(file["names"].tolist(), file["vectors"], strict=True))

    def n_tokens(self, text: str) -> int:
        return len(self.tokenizer.encode(text))

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        names = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
        new = {name: text for name, text in zip(names, texts, strict=True) if name not in self.known}
        if new:
            vectors = embed(self.model, self.tokenizer, list(new.values()), EMBEDDED_TOKENS)
            self.known |= dict(zip(new, vectors, strict=True))
            if self.path and len(new) > 20:
                np.savez(self.path, names=np.array(list(self.known)), vectors=np.array(list(self.known.values())))
        return np.array([self.known[name] for name in names])


def retriever_of(
    collection: Collection,
    embedder: Embedder,
    folder: Path,
    most_tokens: int,
    cfg: RetrievalConfig | None = None,
    *,
    has_titles: bool = True,
) -> Retriever:
    rows = [
        {
            "document": name,
            "url": name,
            "title": title if has_titles else "",
            "headings": list(headings),
            "start": start,
            "end": end,
            "text": text[start:end],
        }
        for name, title, text in collection.documents
        for start, end, headings in cut(text, embedder.n_tokens, most_tokens)
    ]
    passages = pa.Table.from_pylist(rows, schema=SCHEMA)
    write_retriever(folder, passages, embedder(searched_texts(passages)), cfg or RetrievalConfig())
    return load_retriever(folder, embedder)


def ranks(retriever: Retriever, questions: Sequence[tuple[str, str, list[str]]], method: Any) -> np.ndarray:
    """Rank of the right document of each question; a very large one where it was not found."""
    found = retriever.search([question for question, _, _ in questions], 2 * retriever.cfg.depth, method)
    return np.array([rank_of(retriever, hits, one[1]) or 10**6 for hits, one in zip(found, questions, strict=True)])


def row_of(name: str, ranks_Q: np.ndarray) -> str:
    values = [*(np.mean(ranks_Q <= k) for k in (1, 3, 5, 10)), np.mean(1 / ranks_Q)]
    return f"| {name} | " + " | ".join(f"{value:.4f}" for value in values) + " |"


RANK_HEAD = "| | recall@1 | recall@3 | recall@5 | recall@10 | MRR |\n|---|---:|---:|---:|---:|---:|"


def recall(args: argparse.Namespace, embedder: Embedder, folder: Path) -> None:
    collection = pubmed(args.data)
    validation, test = collection.half(0), collection.half(1)
    print(f"{len(validation)} validation questions\n\n{RANK_HEAD}")
    best: tuple[float, Retriever] | None = None
    for stemming in STEMMINGS:
        cfg = RetrievalConfig(stemming=stemming)
        one = retriever_of(collection, embedder, folder / stemming, args.most_tokens, cfg)
        one = tuned(one, [q for q, _, _ in validation], [name for _, name, _ in validation])
        print(row_of(f"BM25, stems: {stemming}", ranks(one, validation, "bm25")))
        fused_Q = ranks(one, validation, "fused")
        print(row_of(f"fused, constant {one.cfg.constant:g}, weight {one.cfg.bm25_weight:g}", fused_Q))
        if best is None or np.mean(1 / fused_Q) > best[0]:
            best = float(np.mean(1 / fused_Q)), one
    assert best
    chosen = best[1]
    print(f"\nchosen: {chosen.cfg}, {len(chosen.passages)} passages of at most {args.most_tokens} tokens")
    for name, questions in (("the other half", test), ("all", collection.questions)):
        print(f"\n{len(questions)} questions, {name}\n\n{RANK_HEAD}")
        for method in METHODS:
            print(row_of(method, ranks(chosen, questions, method)))


def headings(args: argparse.Namespace, embedder: Embedder, folder: Path) -> None:
    collection = xquad(args.data)
    questions = collection.questions
    print(f"{len(questions)} questions\n\n{RANK_HEAD}")
    for has_titles in (False, True):
        name = "with title" if has_titles else "text alone"
        one = retriever_of(collection, embedder, folder / name, args.most_tokens, has_titles=has_titles)
        for method in METHODS:
            print(row_of(f"{name}, {method}", ranks(one, questions, method)))


def refusals(args: argparse.Namespace, embedder: Embedder, folder: Path) -> None:
    collections = {"PubMedQA": pubmed(args.data), "XQuAD": xquad(args.data)}
    print("| | questions | wrong refusals | right: left out | right: other collection | threshold |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, collection in collections.items():
        one = retriever_of(collection, embedder, folder / name, args.most_tokens)
        other = next(each for each in collections.values() if each is not collection)
        names = list(dict.fromkeys(document for _, document, _ in collection.questions))
        place = {document: number for number, document in enumerate(names)}
        for number in (0, 1):
            halves = [[q for q in collection.questions if place[q[1]] % 2 == half] for half in (number, 1 - number)]
            validation, test = (
                examples_of(one, [q for q, _, _ in half], [document for _, document, _ in half]) for half in halves
            )
            judge = fitted(*validation)
            wrong, left_out = (np.mean(refused(judge, test[0][test[1] == kind])) for kind in (True, False))
            asked = [question for question, _, _ in other.questions[:: -(-len(other.questions) // N_OTHERS)]]
            found = one.search(asked, LOOKED_AT)
            foreign_NF = np.array([numbers_of(one, *pair) for pair in zip(asked, found, strict=True)])
            foreign = np.mean(refused(judge, foreign_NF))
            title = f"{name}, fitted on the {'second' if number else 'first'} half"
            counts = f"{len(halves[1])} + {len(asked)}"
            print(f"| {title} | {counts} | {wrong:.3f} | {left_out:.3f} | {foreign:.3f} | {judge.threshold:.3f} |")
            weights = ", ".join(f"{key} {value:.2f}" for key, value in zip(NUMBERS, judge.weights_F, strict=True))
            print(f"  <!-- {weights}, bias {judge.bias:.2f} -->")


def refused(judge: Answerability, numbers_NF: np.ndarray) -> np.ndarray:
    return np.array([judge.score(row) < judge.threshold for row in numbers_NF])


def support(args: argparse.Namespace, embedder: Embedder, folder: Path) -> None:
    """By the sentences of the conclusions of the authors, which stand in no abstract of the collection."""
    collection = pubmed(args.data)
    one = retriever_of(collection, embedder, folder / "support", args.most_tokens)
    texts = {name: text for name, _, text in collection.documents}
    questions = [question for question, _, _ in collection.questions]
    own, other, supported = list[float](), list[float](), np.zeros(2)
    found = one.search(questions, LOOKED_AT)
    for (question, name, answers), hits in zip(collection.questions, found, strict=True):
        wrong = next(document for hit in hits if (document := one.document(hit.place)) != name)
        sources = [Source("", texts[document]) for document in (name, wrong)]
        both = Citing(question, sources, one.bm25.idf, one.cfg.stemming)
        alone = [Citing(question, [source], one.bm25.idf, one.cfg.stemming) for source in sources]
        for start, end in sentence_spans(answers[0]):
            sentence = answers[0][start:end]
            own.append(both.share(sentence, 0))
            other.append(both.share(sentence, 1))
            supported += [each.support(sentence) is not None for each in alone]
    print(f"{len(own):,} sentences; share of the words that need support: median {np.median(own):.2f} in their own")
    print(f"abstract, {np.median(other):.2f} in the nearest other one. By the whole rule (share {SHARE:g}, numbers,")
    print(f"names) {supported[0] / len(own):.3f} and {supported[1] / len(own):.3f} are supported.\n")
    print("| share at least | own abstract | another |\n|---|---:|---:|")
    for share in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        print(f"| {share:g} | {np.mean(np.array(own) >= share):.3f} | {np.mean(np.array(other) >= share):.3f} |")


def storage(args: argparse.Namespace, embedder: Embedder, folder: Path) -> None:
    collection = pubmed(args.data)
    one = retriever_of(collection, embedder, folder / "storage", args.most_tokens)
    exact_ND = embedder(searched_texts(one.passages))
    asked_QD = embedder([question for question, _, _ in collection.questions[:100]])
    first = (asked_QD @ exact_ND.T).argmax(axis=1)
    half = (asked_QD @ exact_ND.astype(DTYPE).astype(np.float32).T).argmax(axis=1)
    print(f"nearest passage by float16 and float32 alike: {np.mean(first == half):.4f} of {len(first)} questions")
    draw = np.random.default_rng(0)
    vectors_ND = np.concatenate([exact_ND] * -(-args.vectors // len(exact_ND)))[: args.vectors]
    noise_ND = draw.standard_normal(vectors_ND.shape, np.float32) / np.sqrt(vectors_ND.shape[1])
    vectors_ND = vectors_ND + 0.5 * noise_ND
    vectors_ND = (vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)).astype(np.float32)
    print(f"\n{len(vectors_ND):,} vectors, {len(asked_QD)} questions, 10 passages each\n")
    print("| | built, s | a question, ms | recall@10 | MB |\n|---|---:|---:|---:|---:|")
    truth = [set(row.tolist()) for row in np.argsort(-(asked_QD @ vectors_ND.T), axis=1)[:, :10]]
    ways: dict[str, int] = {"exact, float16": 10**9, "index": 0}
    product = timed(lambda: [asked_QD[n : n + 1] @ vectors_ND.T for n in range(len(asked_QD))])[1]
    megabytes = vectors_ND.nbytes / 1e6
    print(f"| product, float32 | | {product / len(asked_QD) * 1e3:.1f} | 1 | {megabytes:.0f} |")
    for name, limit in ways.items():
        path = folder / name
        path.mkdir()
        built = timed(lambda path=path, limit=limit: write_vectors(path, vectors_ND, limit))[1]
        stored = load_vectors(path, *vectors_ND.shape, limit)
        found, seconds = timed(
            lambda stored=stored: [stored.nearest(row[None], 10, None)[0].tolist() for row in asked_QD]
        )
        share = np.mean([len(right & set(one)) / 10 for right, one in zip(truth, found, strict=True)])
        n_bytes = sum(file.stat().st_size for file in path.iterdir())
        times = f"{built:.1f} | {seconds / len(asked_QD) * 1e3:.1f}"
        print(f"| {name} | {times} | {share:.4f} | {n_bytes / 1e6:.0f} |")


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, and the CPU seconds of this process."""
    start = time.process_time()
    found = run()
    return found, time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--decoder", type=Path)
    parser.add_argument("--kept", type=Path)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS[:-1])
    parser.add_argument("--most-tokens", type=int, default=150)
    parser.add_argument("--vectors", type=int, default=20_000)
    parser.add_argument("--questions", type=int, default=30)
    args = parser.parse_args()
    torch.set_num_threads(1)
    from bench.retrieval_answers import answers

    parts = (recall, headings, refusals, support, storage, answers)
    embedder = Embedder(args.base, args.kept)
    for part in parts:
        if part.__name__ in args.parts:
            print(f"\n## {part.__name__}\n", flush=True)
            with tempfile.TemporaryDirectory() as folder:
                part(args, embedder, Path(folder))


if __name__ == "__main__":
    main()
