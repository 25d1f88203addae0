"""How likely the base considers the answers of a preference task: the stage `reference`.

In: a decoder, which is the reference, and the examples of a preference task. Out: references.parquet with a row per
training and validation pair: the log-probabilities of both answers in nats, and their numbers of tokens. It is
computed once for all trainings with the same base, examples, template and limit of tokens: another loss or learning
rate reads the same output.

torch is imported where it is used, because Dagster loads this module only for its config.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from model.data.tokenizer import TOKENIZER
from pipeline.corpus.examples.stage import read_examples
from pipeline.store.records import Checkpoint, Shards
from pipeline.store.shards import read_table, write_table
from pipeline.store.store import DEVICE, UNICODE, Outcome, Stage, Work
from pipeline.training.finetune import Objective

VERSION = 1
FILE = "references.parquet"
SPLITS = ("train", "validation")  # that a training reads
REFERENCE = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # of the example
        pa.field("chosen_nats", pa.float64(), nullable=False),  # log-probability, at most 0
        pa.field("rejected_nats", pa.float64(), nullable=False),
        pa.field("chosen_tokens", pa.int64(), nullable=False),  # with the token that ends the answer
        pa.field("rejected_tokens", pa.int64(), nullable=False),
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceConfig:
    """Settings of a training that decide which tokens of a pair are read."""

    template: str
    system_prompt: str
    max_tokens: int | None
    truncation_side: str
    initialisation: ClassVar[str] = "pretrained"  # the reference is the network before its first step


def reference_stage(kind: Objective) -> Stage:
    return Stage(
        name="reference",
        version=VERSION,
        function=partial(write_references, kind),
        handle=Shards,
        libraries=("numpy", "regex", "tiktoken", "tokenizers", "torch", DEVICE, UNICODE),
        variant=kind.identity,
    )


def write_references(kind: Objective, cfg: Any, inputs: tuple[Checkpoint, Shards], work: Work) -> Outcome:
    """The stage function."""
    from model.data.pairs import n_tokens_of
    from model.training.finetuning import load_base
    from model.training.placement import for_evaluation
    from model.training.preferences import pair_log_probabilities

    checkpoint, examples = inputs
    base = load_base(checkpoint.directory)
    model = for_evaluation(kind.network(cfg, base.network, examples)[0])
    encoder, max_tokens = kind.encoder(cfg, base.tokenizer, checkpoint.directory / TOKENIZER), base.max_tokens(cfg)
    tables = []
    for split in SPLITS:
        rows = read_examples(examples.directory, split)
        pairs: Any = kind.encode(examples, rows, encoder, max_tokens, cfg.truncation_side)
        nats_N2 = pair_log_probabilities(
            model, pairs, progress=lambda done, total: work.progress(done, total, "pairs")
        )
        tokens_N2 = n_tokens_of(pairs.pairs)
        tables.append(pa.table([pa.array(pairs.ids, pa.string()), *nats_N2.T, *tokens_N2.T], schema=REFERENCE))
    table = pa.concat_tables(tables)
    write_table(work.directory / FILE, table)
    return Outcome(rows=table.num_rows)


def read_references(directory: Path, ids: list[str]) -> np.ndarray:
    """Log-probabilities of the answers of the pairs `ids`, float64 (N, 2)."""
    table = read_table(directory / FILE, REFERENCE)
    place = {name: row for row, name in enumerate(table["id"].to_pylist())}
    if missing := next((name for name in ids if name not in place), None):
        raise ValueError(f"{directory / FILE}: the example {missing} is not there; delete the folder and run again")
    nats_M2 = np.stack([table[name].to_numpy() for name in ("chosen_nats", "rejected_nats")], axis=1)
    return nats_M2[[place[name] for name in ids]]
