"""The table of all stages, from raw pages to evaluated models: their order and properties, such as inputs and schema.

In: nothing. Out: CHAIN, with one row per stage, and functions that query it. The command line, the asset bodies, the
checks, the corpus report, `gristmill trace`, `gristmill forget` and docs/stages.md read it, so that a new stage is a
folder of its own and one row here. Stages and configs are dotted names, because the store imports nothing that is
built on it; schemas are names of records.py, so that `gristmill --help` needs no pyarrow. Functions read CHAIN at
call time.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.store.records import Handle

GREY = "#BBBBBB"
SOURCE, MODEL, BASE, TASK = "<source>", "<model>", "<base>", "<task>"  # stand for the name of a table
OF_SOURCE = f"pages/{SOURCE}"
OF_BASE = f"base/{BASE}"
OF_PASSAGES = f"{TASK}_passages"  # of a task that answers from documents
TOKENS = "token_shards"  # the corpus in the vocabulary of its own tokenizer
OF_TOKENS = f"{TOKENS}/{BASE}"  # and in that of a model made elsewhere
EVALUATION = f"{MODEL}_evaluation"  # of a model of models.toml
MODELS = ("base", "pretrain", "continue")  # stages that make the models of models.toml
MODEL_SUFFIX = "_model"  # of a model, which its evaluation leaves out


@dataclass(frozen=True, slots=True)
class Reads:
    """An input of a stage: `least` to `most` outputs (None = any number).

    `what` is the name of a stage, or of a schema in capitals; the output of any earlier stage that writes it fits.
    Or the names of several stages whose outputs fit.
    """

    what: str | tuple[str, ...]
    least: int = 1
    most: int | None = 1

    def stages(self, reader: str) -> tuple[str, ...]:
        """Names of the stages whose outputs fit."""
        if isinstance(self.what, tuple):
            return self.what
        if not self.what.isupper():
            return (self.what,)
        names = [link.name for link in CHAIN]
        before = CHAIN[: names.index(reader)] if reader in names else CHAIN
        return tuple(link.name for link in before if link.writes == self.what)


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """One stage of the chain."""

    name: str
    does: str  # a phrase with a verb, for the data card and the documentation
    stage: str = ""  # dotted name of the Stage constant; empty if it is created for each input or kind of task
    config: str = ""
    recipe: str = ""  # class that wraps the config if the stage needs more than its settings
    asset: str = ""  # the asset that runs it, with SOURCE, MODEL, BASE or TASK if each table has one
    command: str = ""  # the command of `gristmill` that runs it alone: stage, train or evaluate
    reads: tuple[Reads, ...] = ()
    writes: str = ""  # schema of the rows in its shards
    drops: bool = False  # whether it may drop rows
    divides: str = ""  # column that identifies a row of its input, if it makes several rows of one
    evidence: str = ""  # schema of the rows in evidence/
    view: str = ""  # name of its evidence in the database of the corpus report
    removes: bool = False  # whether it removes text that the check source_loss limits
    metrics: tuple[str, ...] = ()  # in its results.json; {stage} stands for each stage with documents
    shows: tuple[str, ...] = ()  # columns of a kept row with what the stage found; `gristmill trace` shows them
    colour: str = GREY  # in figures: a colour of Okabe and Ito, for colour-blind readers

    @property
    def has_documents(self) -> bool:
        """Whether its rows are pages or documents, each with a URL."""
        return "url" in self.columns()

    def columns(self) -> list[str]:
        """Columns of the rows in its shards; empty if they are not Parquet."""
        return schema(self.writes).names if self.writes else []

    def load(self) -> tuple[Any, Any]:
        """The Stage constant and its config class."""
        return _loaded(self.stage), _loaded(self.config)

    def settings(self, cfg: Any, **more: Any) -> Any:
        """The config that the stage is built with, wrapped with `more` if it has a recipe."""
        return _loaded(self.recipe)(config=cfg, **more) if self.recipe else cfg

    def inputs(self, handles: Sequence["Handle"]) -> list[Any]:
        """The `handles` it reads, in the order of its inputs: the last one that fits if it reads one, else all that
        fit."""
        chosen: list[Handle] = []
        for read in self.reads:
            own = [handle for handle in handles if handle.stage in read.stages(self.name)]
            chosen += own if read.most is None else own[-read.most :]
        return chosen


CHAIN: tuple[Link, ...] = (
    Link(
        name="collect",
        does="reads the pages of a source and drops those that are too large or are not text",
        stage="pipeline.corpus.collect.stage.COLLECT",
        config="pipeline.corpus.collect.stage.CollectConfig",
        asset=OF_SOURCE,
        command="stage",
        writes="PAGE",
        drops=True,
        shows=("source", "licence", "media_type", "collected_at", "http_status"),
    ),
    Link(
        name="clean",
        does="extracts the text of each page and repairs its encoding",
        stage="pipeline.corpus.clean.stage.CLEAN",
        config="pipeline.corpus.clean.stage.CleanConfig",
        asset="documents",
        command="stage",
        reads=(Reads("PAGE", most=None),),
        writes="DOCUMENT",
        drops=True,
        shows=("extractor", "code_language", "n_mojibake", "n_boilerplate_lines", "n_unknown_templates"),
        colour="#CC79A7",
    ),
    Link(
        name="signals",
        does="measures quality, language and personal data of each document as columns",
        stage="pipeline.corpus.signals.stage.MEASURE",
        config="pipeline.corpus.signals.stage.SignalsConfig",
        asset="documents",
        command="stage",
        reads=(Reads("DOCUMENT"),),
        writes="SIGNALS",
    ),
    Link(
        name="filter",
        does="keeps documents in the selected languages that satisfy the rule sets; masks personal data",
        stage="pipeline.corpus.filter.stage.FILTER",
        config="pipeline.corpus.filter.rules.FilterConfig",
        recipe="pipeline.corpus.filter.rules.FilterRecipe",
        asset="documents",
        command="stage",
        reads=(Reads("DOCUMENT"), Reads("SIGNALS"), Reads("deny_list", least=0)),
        writes="FILTERED",
        drops=True,
        shows=("language", "n_words", "n_masked"),
        colour="#E69F00",
    ),
    Link(
        name="dedup",
        does="removes exact and near duplicates, each verified on its text",
        stage="pipeline.corpus.dedup.stage.DEDUP",
        config="pipeline.corpus.dedup.stage.DedupConfig",
        asset="corpus",
        command="stage",
        reads=(Reads("FILTERED"), Reads("dedup", least=0, most=None)),
        writes="CORPUS",
        drops=True,
        evidence="EVIDENCE",
        view="duplicates",
        removes=True,
        shows=("cluster_size",),
        colour="#56B4E9",
    ),
    Link(
        name="dedup_lines",
        does="removes lines that occur in many documents of a site",
        stage="pipeline.corpus.dedup_lines.stage.DEDUP_LINES",
        config="pipeline.corpus.dedup_lines.stage.DedupLinesConfig",
        asset="corpus",
        command="stage",
        reads=(Reads("CORPUS"),),
        writes="CORPUS",
        drops=True,
        evidence="REPEATED",
        view="repeated",
        removes=True,
        colour="#0072B2",
    ),
    Link(
        name="decontaminate",
        does="removes texts that models are evaluated on",
        stage="pipeline.corpus.decontaminate.stage.DECONTAMINATE",
        config="pipeline.corpus.decontaminate.stage.DecontaminateConfig",
        recipe="pipeline.corpus.decontaminate.stage.DecontaminateRecipe",
        asset="corpus",
        command="stage",
        reads=(Reads("CORPUS"), Reads("examples", least=0, most=None)),
        writes="CORPUS",
        drops=True,
        evidence="CONTAMINATION",
        view="contamination",
        removes=True,
        colour="#D55E00",
    ),
    Link(
        name="split",
        does="assigns each document to train, validation or test; drops nothing",
        stage="pipeline.corpus.split.stage.SPLIT",
        config="pipeline.corpus.split.stage.SplitConfig",
        asset="corpus",
        command="stage",
        reads=(Reads("CORPUS"),),
        writes="SPLIT_CORPUS",
        shows=("split", "family_id"),
        colour="#F0E442",
    ),
    Link(
        name="tokenizer",
        does="learns a byte-pair vocabulary from the train split, or uses a published one",
        stage="pipeline.corpus.tokens.tokenizer.TOKENIZER",
        config="pipeline.corpus.tokens.tokenizer.TokenizerConfig",
        asset="tokenizer",
        command="stage",
        reads=(Reads("SPLIT_CORPUS"),),
    ),
    Link(
        name="tokenize",
        does="encodes the documents, repeats them by weight, and shuffles them into token shards",
        stage="pipeline.corpus.tokens.tokenize.TOKENIZE",
        config="pipeline.corpus.tokens.tokenize.TokenizeConfig",
        recipe="pipeline.corpus.tokens.tokenize.TokenizeRecipe",
        asset=TOKENS,
        command="stage",
        reads=(Reads("SPLIT_CORPUS"), Reads(("tokenizer", *MODELS))),  # of a model its tokenizer
        drops=True,
    ),
    Link(
        name="corpus_report",
        does="counts what is in the corpus and what was dropped, and writes the data card",
        stage="pipeline.corpus.report.stage.CORPUS_REPORT",
        config="pipeline.corpus.report.stage.CorpusReportConfig",
        asset="corpus_report",
        metrics=(
            "documents",
            "words",
            "text_bytes",
            "unaccounted_documents",
            "dropped_share_{stage}",
            "share_without_licence",
            "share_in_largest_source",
            "pii_per_million_words",
            "pii_unmasked_per_million_words",
            "profane_per_million_words",
            "adult_per_million_words",
            "share_with_mojibake",
            "she_share_of_she_and_he",
            "held_out_share",
        ),
        reads=(Reads("FILTERED"), Reads("SPLIT_CORPUS")),
    ),
    Link(
        name="base",
        does="imports a model made elsewhere, verified by its sha256",
        stage="pipeline.training.bases.BASE",
        config="pipeline.training.open_config.OpenConfig",
        asset=OF_BASE,
    ),
    Link(
        name="pretrain",
        does="trains a decoder on token shards",
        stage="pipeline.training.pretrain.PRETRAIN",
        config="pipeline.training.pretrain.PretrainConfig",
        asset="<model>",
        command="train",
        reads=(Reads("tokenize"), Reads("tokenizer")),
    ),
    Link(
        name="continue",
        does="trains a model further on documents, mixed with general text",
        stage="pipeline.training.continuing.CONTINUE",
        config="pipeline.training.continuing.ContinueConfig",
        asset=MODEL,
        reads=(Reads(MODELS), Reads("tokenize")),
    ),
    Link(
        name="passages",
        does="cuts the documents of a task into passages, which are searched and quoted",
        stage="pipeline.corpus.passages.stage.PASSAGES",
        config="pipeline.corpus.passages.stage.PassagesConfig",
        asset=OF_PASSAGES,
        reads=(Reads(("clean", "split")), Reads(MODELS), Reads("deny_list", least=0)),
        drops=True,
        divides="page_id",
    ),
    Link(
        name="embed",
        does="turns passages into vectors; those that an earlier output has are taken from there",
        stage="pipeline.training.embed.EMBED",
        config="pipeline.training.embed.EmbedConfig",
        asset=OF_PASSAGES,
        reads=(Reads("passages"), Reads(MODELS)),
        drops=True,
    ),
    Link(
        name="examples",
        does="reads labelled rows of a task, or makes questions, and splits them so that nothing leaks",
        config="pipeline.corpus.examples.stage.ExamplesConfig",
        asset="<task>_examples",
        reads=(Reads("embed", least=0),),
        drops=True,
    ),
    Link(
        name="reference",
        does="measures how likely the base considers both answers of each pair of a preference task",
        config="pipeline.training.reference.ReferenceConfig",
        asset="<task>_model",
        reads=(Reads((*MODELS, "finetune")), Reads("examples")),
    ),
    Link(
        name="finetune",
        does="trains a model on the examples of a task",
        config="pipeline.training.finetune.FinetuneConfig",
        asset="<task>_model",
        reads=(Reads((*MODELS, "finetune")), Reads("examples"), Reads("reference", least=0), Reads("embed", least=0)),
    ),
    Link(
        name="evaluate_model",
        does="measures how well a model predicts held-out text and writes samples",
        stage="pipeline.evaluation.language_model.EVALUATE_MODEL",
        config="pipeline.evaluation.language_model.LanguageModelEvaluationConfig",
        asset=EVALUATION,
        command="evaluate",
        metrics=("bits_per_byte", "perplexity"),
        reads=(Reads(MODELS), Reads("tokenize")),
    ),
    Link(
        name="evaluate_task",
        does="evaluates the model of a task on held-out examples",
        config="pipeline.evaluation.task.TaskEvaluationConfig",
        asset="<task>_evaluation",
        command="evaluate",
        reads=(Reads("finetune"), Reads("examples")),
    ),
)


def schema(name: str) -> "pa.Schema":
    """A schema of records.py."""
    from pipeline.store import records

    return getattr(records, name)


def link_of(stage: str) -> Link:
    """The row of a stage. The ValueError for an unknown one lists all stages."""
    for link in CHAIN:
        if link.name == stage:
            return link
    raise ValueError(f"there is no stage {stage!r}; there are: {', '.join(link.name for link in CHAIN)}")


def links_of(asset: str) -> list[Link]:
    """The stages that an asset runs, in order."""
    return [link for link in CHAIN if link.asset == asset]


def metrics_of(asset: str) -> tuple[str, ...]:
    """The metrics that an asset reports, for limits in [checks.<asset>]; those of a task's are its kind's."""
    names = [name for link in links_of(asset) for name in link.metrics]
    stages = document_stages()
    return tuple(one for name in names for one in ([name.format(stage=s) for s in stages] if "{" in name else [name]))


def fixed_assets() -> set[str]:
    """Assets that every graph has; those of sources, models and tasks have the names of their tables."""
    return {link.asset for link in CHAIN if "<" not in link.asset}


def asset_folders() -> set[str]:
    """The first parts of names of assets that have two, such as pages."""
    return {asset.partition("/")[0] for asset in (*(link.asset for link in CHAIN), OF_TOKENS) if "/" in asset}


def assets_of_table(kind: str, name: str) -> list[str]:
    """The assets of the table `name`; `kind` is SOURCE or TASK."""
    return [one.replace(kind, name) for one in dict.fromkeys(link.asset for link in CHAIN) if kind in one]


def stages_of(asset: str) -> list[Any]:
    """The Stage constants of an asset."""
    return [link.load()[0] for link in links_of(asset)]


def configs_of(asset: str) -> dict[str, Any]:
    """Stage -> config class, for the stages that an asset runs."""
    return {link.name: link.load()[1] for link in links_of(asset)}


def output_of(asset: str) -> str:
    """The stage whose output is the output of an asset."""
    return links_of(asset)[-1].name


def run_by(command: str) -> tuple[str, ...]:
    """The stages that a command of `gristmill` runs alone."""
    return tuple(link.name for link in CHAIN if link.command == command)


def corpus_links() -> list[Link]:
    """The stages from the sources to the split corpus: those with rows that a report reads."""
    return [link for link in CHAIN if link.writes]


def document_stages() -> tuple[str, ...]:
    """The stages with shards of pages or documents."""
    return tuple(link.name for link in CHAIN if link.has_documents)


def traced_stages() -> tuple[str, ...]:
    """The stages that a page passes on its way into token shards."""
    return (*document_stages(), output_of("token_shards"))


def stages_with_texts() -> tuple[str, ...]:
    return tuple(link.name for link in CHAIN if "text" in link.columns())


def removing_stages() -> tuple[str, ...]:
    """The stages whose losses the check source_loss limits."""
    return tuple(link.name for link in CHAIN if link.removes)


def same_asset(stage: str) -> set[str]:
    """The stages of the asset that runs `stage`; only `stage` itself if it is not in the chain."""
    own = [link.asset for link in CHAIN if link.name == stage]
    return {link.name for link in CHAIN if link.asset in own} | {stage}


def divided_by(stage: str) -> str:
    """The column that identifies a row of the input of `stage` in its output; "" if no row becomes several."""
    return next((link.divides for link in CHAIN if link.name == stage), "")


def side_inputs(stage: str) -> set[str]:
    """Stages whose outputs `stage` reads besides its rows, for instance examples that it searches for in them."""
    found = [link for link in CHAIN if link.name == stage]
    return {name for link in found for read in link.reads[1:] for name in read.stages(stage)}


def _loaded(dotted: str) -> Any:
    module, _, name = dotted.rpartition(".")
    return getattr(importlib.import_module(module), name)
