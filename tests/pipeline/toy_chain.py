"""A toy corpus through all data stages, with addresses that are the same on every machine, and its golden digests.

`python -m tests.pipeline.toy_chain` writes golden_digests.json anew, after the output of a stage was changed on
purpose and its version was raised.
"""

import json
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.corpus.clean.stage import CLEAN, CleanConfig
from pipeline.corpus.collect.files import FilesSource
from pipeline.corpus.collect.stage import CollectConfig, collect
from pipeline.corpus.decontaminate.stage import DECONTAMINATE, DecontaminateRecipe
from pipeline.corpus.dedup.stage import DEDUP, DedupConfig
from pipeline.corpus.dedup_lines.stage import DEDUP_LINES, DedupLinesConfig
from pipeline.corpus.deny_list import deny_list
from pipeline.corpus.examples.stage import LabelledFile
from pipeline.corpus.filter.rules import FilterConfig, FilterRecipe
from pipeline.corpus.filter.stage import FILTER
from pipeline.corpus.signals.stage import MEASURE, SignalsConfig
from pipeline.corpus.split.stage import SPLIT, SplitConfig
from pipeline.corpus.tokens.tokenize import TOKENIZE, TokenizeConfig, TokenizeRecipe
from pipeline.corpus.tokens.tokenizer import TOKENIZER, TokenizerConfig
from pipeline.store.engine import Done
from pipeline.store.record_file import read_record
from pipeline.store.store import Store
from pipeline.tasks.classification import KIND, ClassificationExamplesConfig

GOLDEN = Path(__file__).with_name("golden_digests.json")
WORDS = ("mill", "stone", "river", "flour", "sack", "road", "house", "bridge", "wheel", "water", "grain", "field")
DENIED = {"url": "https://mill.example/denied", "date": "2026-01-01", "reason": "asked for"}
REPEATED = "Read more about the mills of the valley and of the miller in the yearbook of the valley."
GLUE = ["the", "of", "and", "to", "that", "have", "with", "be"]


class InThisProcess:
    """An engine without workers."""

    def map(self, function: Callable, items: Any, **limits: Any) -> Iterator[Done]:
        return (Done(function(item)) for item in items)


def prose(rng: random.Random, n_sentences: int) -> str:
    sentences = []
    for _ in range(n_sentences):
        words = [word for _ in range(6) for word in (rng.choice(GLUE), f"{rng.choice(WORDS)}{rng.randrange(40)}x")]
        sentences.append(" ".join(words).capitalize() + ".")
    return " ".join(sentences)


def write_inputs(folder: Path) -> None:
    """Pages with something to remove for every stage, and labelled rows of which some stand in a page."""
    rng = random.Random(5)
    rows = [{"text": f"{rng.choice(('good', 'bad'))} {prose(rng, 2)}", "label": ("a", "b")[i % 2]} for i in range(60)]
    pages = []
    for i in range(30):
        paragraphs = [prose(rng, 5) for _ in range(3)]
        if i % 6 == 1:
            paragraphs.append(f"Write to miller{i}@mill.example or call 212-555-01{i:02d}.")
        if i % 2 == 0:
            paragraphs.insert(1, f"{rows[2 * i]['text']} {rows[2 * i + 1]['text']}")
        pages.append({"url": f"https://mill.example/{i}", "text": "\n\n".join(paragraphs)})
    pages.append({"url": "https://mill.example/copy", "text": pages[0]["text"]})
    pages.append({"url": "https://mill.example/nearly", "text": pages[2]["text"] + "\n\nThe end of the mill."})
    pages.append({"url": "https://mill.example/short", "text": "Too short."})
    pages.append({"url": "https://mill.example/denied", "text": prose(rng, 9)})
    html = [
        f"<html><head><title>Page {i}</title></head><body><nav>Home</nav><article><h1>Page {i}</h1>"
        + "".join(f"<p>{prose(rng, 4)}</p>" for _ in range(3))
        + f"<p>{REPEATED}</p><p>{prose(rng, 4)}</p></article></body></html>"
        for i in range(8)
    ]
    web = [{"url": f"https://web.example/{i}", "text": page} for i, page in enumerate(html)]
    for name, own in (("texts", pages), ("web", web), ("labelled", rows)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    (folder / "denied.jsonl").write_text(json.dumps(DENIED) + "\n")


def chain(store: Store, folder: Path) -> dict[str, Any]:
    """Stage -> what was built, for all stages whose output does not depend on a processor's roundings."""
    built: dict[str, Any] = {}
    pages, denied = [], folder / "denied.jsonl"
    for name, media_type in (("texts", None), ("web", "text/html")):
        path = str(folder / f"{name}.jsonl")
        source = FilesSource(name=name, path=path, url_key="url", media_type=media_type)
        pages.append(collect(store, source, folder / "cache", CollectConfig(n_shards=2)).handle)
    built["collect"] = pages[0]
    built["deny_list"], *_ = deny_list(store, denied)
    cfg = ClassificationExamplesConfig(text="text", label="label")
    labelled = LabelledFile(folder / "labelled.jsonl")
    built["examples"] = KIND.build_examples(store, labelled, cfg, folder / "cache").handle
    built["clean"] = store.build(CLEAN, CleanConfig(), *pages).handle
    built["signals"] = store.build(MEASURE, SignalsConfig(), built["clean"]).handle
    recipe = FilterRecipe(config=FilterConfig(languages=()))
    rows = (built["clean"], built["signals"], built["deny_list"])
    built["filter"] = store.build(FILTER, recipe, *rows).handle
    built["dedup"] = store.build(DEDUP, DedupConfig(), built["filter"]).handle
    built["dedup_lines"] = store.build(DEDUP_LINES, DedupLinesConfig(), built["dedup"]).handle
    clean_of = DecontaminateRecipe(tasks=("toy",))
    built["decontaminate"] = store.build(DECONTAMINATE, clean_of, built["dedup_lines"], built["examples"]).handle
    shares = SplitConfig(validation_fraction=0.1, test_fraction=0.1)
    built["split"] = store.build(SPLIT, shares, built["decontaminate"]).handle
    vocabulary = TokenizerConfig(vocab_size=300, compared_with=())
    built["tokenizer"] = store.build(TOKENIZER, vocabulary, built["split"]).handle
    tokens = TokenizeRecipe(config=TokenizeConfig())
    built["tokenize"] = store.build(TOKENIZE, tokens, built["split"], built["tokenizer"]).handle
    return built


def facts(handle: Any) -> dict[str, Any]:
    """What is compared with the golden file."""
    record = read_record(handle.directory)
    assert record is not None
    return {
        "version": record["version"],
        "digest": record["digest"],
        "inputs": [one["digest"] for one in record["inputs"]],
        "libraries": record["libraries"],
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_inputs(folder)
        built = chain(Store(root=folder / "store", engine=InThisProcess()), folder)
        golden = {stage: facts(handle) for stage, handle in built.items()}
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")
    print(f"{GOLDEN}: {len(golden)} stages")


if __name__ == "__main__":
    main()
