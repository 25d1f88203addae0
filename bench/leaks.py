"""Does `decontaminate` find what it should, and nothing else? Examples are planted into documents of a corpus.

In: --data FOLDER, a data folder in which the asset `corpus` is built; its lineage names the examples and settings.
Out: recall and precision, printed with what was missed; exit code 1 when one of them is below its limit.
Steps: examples of the tasks are written into texts in every one of FORMS; beside them are documents of the corpus as
they are, and texts with the words of an example in another order or with every third one replaced. The stage itself
runs on all of them in a temporary folder. Plain search then judges its result: an example counts as found when its
document is named and no longer holds it, and each row of evidence has to name a document that really holds a run of
words of that example.

    python -m bench.leaks [--data data]
"""

import argparse
import functools
import random
import sys
import tempfile
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash

from pipeline.corpus.decontaminate.evaluation_runs import WORD, Item, evaluation_items, run_index
from pipeline.corpus.decontaminate.stage import DECONTAMINATE, DecontaminateConfig, DecontaminateRecipe
from pipeline.corpus.examples.near_texts import normalised
from pipeline.store.engine import Engine, LocalProcesses
from pipeline.store.layout import Layout, load_current
from pipeline.store.lineage import lineage
from pipeline.store.records import CONTAMINATION, CORPUS, Counts, Handle, Shards
from pipeline.store.settings import read_recorded
from pipeline.store.shards import EVIDENCE_FOLDER, read_table, shard_paths, write_rows
from pipeline.store.store import Outcome, Stage, Store, Work, read_handle
from pipeline.store.verdict import Verdict

MIN_RECALL = 0.95
MIN_PRECISION = 1.0
N_PLANTED = 160  # 20 examples a form
N_DOCUMENTS = 200  # of the corpus, as they are and as what stands around an example
N_SHARDS = 8  # of the corpus at most, where they hold so many documents
MOST_CHARACTERS = 100_000  # of each
FILLER_WORDS = 500  # around what is no example
SEED = 1
BENT = {"'": "\u2019", '"': "\u201d", "-": "\u2011", " ": "\u00a0 "}
Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Planted:
    """A text and the example that it holds in some form; None where it holds none."""

    text: str
    item: Item | None
    form: str


def whole(text: str, filler: Callable[[int], str]) -> str:
    return text


def wrapped(text: str, filler: Callable[[int], str]) -> str:
    """Eight words per line."""
    words = text.split()
    return "\n".join(" ".join(words[i : i + 8]) for i in range(0, len(words), 8))


def bent(text: str, filler: Callable[[int], str]) -> str:
    """Capitals, decomposed letters, other quotes, hyphens and spaces."""
    capitals = "".join(c.upper() if c.upper().casefold() == c.casefold() else c for c in text)
    return unicodedata.normalize("NFD", "".join(BENT.get(c, c) for c in capitals))


def embedded(n_words: int) -> Callable[[str, Callable[[int], str]], str]:
    return lambda text, filler: f"{filler(n_words)} {text} {filler(n_words)}"


def embedded_wrapped(text: str, filler: Callable[[int], str]) -> str:
    return wrapped(f"{filler(FILLER_WORDS)} {text} {filler(FILLER_WORDS)}", filler)


def quoted_line(text: str, filler: Callable[[int], str]) -> str:
    """One line of a long document."""
    lines = [wrapped(filler(2000), filler), f'> "{text}"', wrapped(filler(2000), filler)]
    return "\n".join(lines)


FORMS: dict[str, Callable[[str, Callable[[int], str]], str]] = {
    "whole": whole,
    "wrapped": wrapped,
    "bent": bent,
    "embedded_50": embedded(50),
    "embedded_500": embedded(500),
    "embedded_2000": embedded(2000),
    "embedded_wrapped": embedded_wrapped,
    "quoted_line": quoted_line,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="data folder; default: data")
    corpus = load_current(Layout(parser.parse_args().data.resolve()), "corpus")
    verdicts = injected_into(corpus)
    for name, verdict in zip(("recall", "precision"), verdicts, strict=True):
        print(f"{name} {verdict.observed:.4f} (limit {verdict.limit}): {dict(verdict.details)}")
    return int(not all(verdict.passed for verdict in verdicts))


def injected_into(corpus: Handle, engine: Engine | None = None) -> tuple[Verdict, Verdict]:
    """Recall and precision with the settings and examples of `corpus`.

    ValueError when it was made without `decontaminate`.
    """
    for folder, record in lineage([corpus]).items():
        if folder.stage == DECONTAMINATE.name and record:
            examples = [read_handle(one.directory) for one in folder.inputs(record)[1:]]
            recipe = read_recorded(DecontaminateRecipe, record["config"])
            return leak_injection(sampled_documents(corpus), examples, recipe, engine=engine)
    raise ValueError(f"{corpus.directory} was not made by way of `{DECONTAMINATE.name}`")


def leak_injection(
    documents: Sequence[Document],
    examples: Sequence[Handle],
    recipe: DecontaminateRecipe,
    *,
    n_planted: int = N_PLANTED,
    seed: int = SEED,
    engine: Engine | None = None,
) -> tuple[Verdict, Verdict]:
    """Recall and precision of `decontaminate` with `recipe` on rows of a corpus (CORPUS) with planted examples."""
    items = evaluation_items(examples, recipe.tasks)
    planted = list(_planted(documents, items, recipe.config, n_planted, random.Random(seed)))
    with tempfile.TemporaryDirectory() as folder:
        store = Store(root=Path(folder), engine=engine or LocalProcesses())
        stage = Stage(
            name="planted", version=1, function=functools.partial(_write, documents, planted), handle=Shards
        )
        built = store.build(DECONTAMINATE, recipe, store.build(stage, {}).handle, *examples)
        directory = built.handle.directory
        kept = {row["page_id"]: row["text"] for path in shard_paths(directory) for row in _rows(path)}
        evidence = [
            row
            for path in shard_paths(directory, EVIDENCE_FOLDER)
            for row in read_table(path, CONTAMINATION).to_pylist()
        ]
    texts = {row["page_id"]: row["text"] for row in documents} | {str(i): one.text for i, one in enumerate(planted)}
    return _recall(planted, kept, evidence, items), _precision(texts, evidence, items, recipe.config)


def sampled_documents(corpus: Handle, n_documents: int = N_DOCUMENTS) -> list[Document]:
    """Rows of CORPUS, chosen by the hash of their page id from shards chosen by the hash of their name."""
    chosen: list[Document] = []
    paths = sorted(shard_paths(corpus.directory), key=lambda path: _place(path.name))
    most = -(-n_documents // max(1, min(N_SHARDS, len(paths))))
    for path in paths:
        if len(chosen) >= n_documents:
            break
        table = read_table(path, CORPUS).select(CORPUS.names)
        order = sorted(range(table.num_rows), key=lambda row: _place(table["page_id"][row].as_py()))
        own = pa.array(order[: min(most, n_documents - len(chosen))], pa.int64())  # of an empty shard none
        rows = table.take(own).to_pylist()
        chosen += [row | {"text": row["text"][:MOST_CHARACTERS]} for row in rows]
    return chosen


def _place(name: str) -> tuple[int, str]:
    return xxhash.xxh3_64_intdigest(name.encode(), seed=SEED), name


def _planted(
    documents: Sequence[Document], items: Sequence[Item], cfg: DecontaminateConfig, n_planted: int, rng: random.Random
) -> Iterator[Planted]:
    """Each example in one form; in more of them where there are fewer examples than are wanted."""
    n_runs = run_index((item.text for item in items), cfg.n_words, cfg.min_words).sizes
    usable = {_key(item): item for item, n in zip(items, n_runs, strict=True) if n}
    wanted = list(usable.values())
    rng.shuffle(wanted)
    words = [word for document in documents for word in document["text"].split()]
    if not words or not wanted:
        return

    def filler(n_words: int) -> str:
        start = rng.randrange(len(words))
        return " ".join(words[i % len(words)] for i in range(start, start + n_words))

    forms = list(FORMS)
    for nth in range(min(n_planted, len(wanted) * min(len(forms), cfg.max_documents))):
        n_round, place = divmod(nth, len(wanted))
        item, form = wanted[place], forms[(place + n_round) % len(forms)]
        yield Planted(FORMS[form](item.text, filler), item, form)
        broken = item.text.split()
        if nth % 2:
            rng.shuffle(broken)
        else:
            broken[::3] = (filler(1) for _ in broken[::3])
        yield Planted(f"{filler(FILLER_WORDS)} {' '.join(broken)} {filler(FILLER_WORDS)}", None, "broken")


def _write(
    documents: Sequence[Document], planted: Sequence[Planted], cfg: Any, inputs: tuple[()], work: Work
) -> Outcome:
    """corpus.parquet with the documents as they are, planted-<k>.parquet with the texts under their numbers."""
    if documents:
        write_rows(work.directory / "corpus.parquet", list(documents), CORPUS)
    rows: list[dict[str, object]] = [
        {**documents[0], "page_id": str(i), "text": one.text} for i, one in enumerate(planted)
    ]
    for k in range(N_SHARDS):
        write_rows(work.directory / f"planted-{k}.parquet", rows[k::N_SHARDS], CORPUS)
    total = len(documents) + len(planted)
    return Outcome(rows=total, counts=Counts(rows_in=total, kept=total))


def _rows(path: Path) -> list[dict[str, Any]]:
    return read_table(path, columns=["page_id", "text"]).to_pylist()


def _recall(
    planted: Sequence[Planted], kept: Mapping[str, str], evidence: Sequence[dict[str, Any]], items: Sequence[Item]
) -> Verdict:
    keys = {(item.task, item.example_id): _key(item) for item in items}
    named = {(row["page_id"], keys[row["task"], row["example_id"]]) for row in evidence}
    found: dict[str, list[bool]] = {}
    missed = []
    for i, one in enumerate(planted):
        if one.item is None:
            continue
        is_found = (str(i), _key(one.item)) in named and _key(one.item) not in _squeezed(kept.get(str(i), ""))
        found.setdefault(one.form, []).append(is_found)
        if not is_found:
            missed.append(f"{one.form}: {one.item.text[:200]}")
    shares = {f"recall_{form}": sum(of_form) / len(of_form) for form, of_form in found.items()}
    worst = min(shares.values(), default=1.0)
    n_planted = sum(map(len, found.values()))
    first = {"first_missed": missed[0]} if missed else {}
    return Verdict(
        passed=worst >= MIN_RECALL,
        rule="share of planted examples that are found, in the worst form >= limit",
        observed=worst,
        limit=MIN_RECALL,
        details={"planted": n_planted, "missed": len(missed), **shares, **first},
    )


def _precision(
    texts: Mapping[str, str], evidence: Sequence[dict[str, Any]], items: Sequence[Item], cfg: DecontaminateConfig
) -> Verdict:
    """A document of the corpus that really holds a run of an example is rightly taken for one."""
    examples = {(item.task, item.example_id): item.text for item in items}
    wrong = [
        row
        for row in evidence
        if not _holds(texts[row["page_id"]], examples[row["task"], row["example_id"]], cfg.n_words)
    ]
    observed = 1 - len(wrong) / len(evidence) if evidence else 1.0
    first = {"first_wrong": f"{wrong[0]['preview']} ({wrong[0]['example_id']})"} if wrong else {}
    return Verdict(
        passed=observed >= MIN_PRECISION,
        rule="share of what was found that plain search confirms >= limit",
        observed=observed,
        limit=MIN_PRECISION,
        details={"texts": len(texts), "found": len(evidence), "wrong": len(wrong), **first},
    )


def _holds(text: str, example: str, n_words: int) -> bool:
    """Plain search for a run of `n_words` words of the example, of a shorter one for all of it."""
    words, where = WORD.findall(normalised(example)), _squeezed(text)
    ends = range(min(n_words, len(words)), len(words) + 1)
    return any("".join(words[max(0, end - n_words) : end]) in where for end in ends)


def _key(item: Item) -> str:
    return _squeezed(item.text)


def _squeezed(text: str) -> str:
    """Letters and digits alone, in one word."""
    return "".join(WORD.findall(normalised(text)))


if __name__ == "__main__":
    sys.exit(main())
