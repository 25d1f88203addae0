"""Asset checks: one step per asset, which evaluates all checks of the asset.

In: the handles of the asset and of other assets that a check needs. Out: one result per check, with the observed
value and the limit as numbers that the UI plots. A check blocks if a model would be trained on a bad result:

    pages/<source>         conservation (blocks), few_lost (blocks), not_empty, files_read
    documents              conservation (blocks), few_lost (blocks), not_empty (blocks)
    corpus                 conservation (blocks), few_lost (blocks), no_leak (blocks), not_empty (blocks),
                           source_loss (blocks; limits in
                           [checks.corpus] of config.toml: removed_fraction, removed_fraction_<source>)
    corpus_report          accounted, and the limits of [checks.corpus_report] in config.toml
    tokenizer              lossless (blocks)
    token_shards           conservation (blocks), few_lost (blocks), ids_in_range (blocks)
    token_shards/<base>    the same
    <model>                finite_loss (blocks)
    <model>_evaluation     beats_baseline (of a model that is trained further beats_base and forgets_little), and the
                           limits of [checks.<model>_evaluation] in config.toml
    <task>_pages           as pages/<source>, and not_empty blocks
    <task>_documents       conservation (blocks), few_lost (blocks), not_empty (blocks), and so <task>_passages
    <task>_examples        conservation (blocks), no_leak (blocks), not_empty (blocks), plausible
    <task>_model           finite_loss (blocks; not if nothing is trained), whole_texts (of an assistant
                           enough_questions)
    <task>_evaluation      beats_<baseline of the kind>, unseen_in_pretraining (where the base was trained on the
                           corpus), keeps_chosen (of preferences), and the limits of [checks.<task>_evaluation] in
                           config.toml
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import dagster as dg
import pyarrow as pa

from model.data.tokenizer import load_tokenizer
from pipeline.corpus import laws
from pipeline.corpus.collect.unread_files import unread_files
from pipeline.corpus.examples.stage import read_examples
from pipeline.corpus.source_loss import lost_sources
from pipeline.corpus.split.stage import leaked_documents
from pipeline.defs.run_config import ConfigFile
from pipeline.evaluation.continued_model import BASE as BASE_OF_MODEL
from pipeline.evaluation.continued_model import METRICS as CHANGES
from pipeline.evaluation.laws import (
    MOST_FORGOTTEN,
    MOST_UNLIKELIER,
    beats_baseline,
    beats_limit,
    enough_questions,
    finite,
    forgets_little,
    keeps_chosen,
    not_measured,
    unseen,
    whole_texts,
)
from pipeline.evaluation.masked_model import METRICS as MASKED_METRICS
from pipeline.evaluation.task import SEEN
from pipeline.store.chain import EVALUATION, MODEL_SUFFIX, TOKENS, metrics_of
from pipeline.store.outputs import read_curve, read_results
from pipeline.store.records import Handle, Shards
from pipeline.store.settings import refuse_unknown
from pipeline.store.shards import read_table, shard_paths
from pipeline.store.store import read_record
from pipeline.store.verdict import Verdict, conservation, few_lost, not_empty
from pipeline.tasks.tasks_toml import Task
from pipeline.training.models_toml import ContinuedModel, Model, vocabularies

TABLE = "checks"  # table of config.toml
# Whether a model is a decoder or an encoder is known from its evaluation alone: the launchpad may change the family
# of a pretrained one, and the files of an open one decide. So the metrics of both may have limits, and a check
# compares the metric that is there with this baseline.
METRICS = (*metrics_of(EVALUATION), *MASKED_METRICS)
MUST_BEAT = {"bits_per_byte": "bigram", "masked_perplexity": "unigram"}
CONTINUED_MUST_BEAT = {f"domain_{metric}": BASE_OF_MODEL for metric in MUST_BEAT}
FORGOTTEN = "general_change"  # a limit in config.toml takes the place of the check forgets_little
UNLIKELIER = "chosen_change"  # and of the check keeps_chosen
SAMPLE_DOCUMENTS = 200  # that are checked for losslessness, besides the hard texts
Key = Sequence[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Law:
    """A check; `judge` gets the handle of the asset, then those of `others`."""

    name: str
    judge: Callable[..., Verdict]
    blocks: bool


def asset_checks(
    sources: Iterable[str],
    models: Collection[Model],
    tasks: Iterable[Task],
    limits: Mapping[str, Mapping[str, float]],
) -> list[dg.AssetChecksDefinition]:
    kept = [CONSERVED, FEW_LOST, Law(name="not_empty", judge=_has_rows, blocks=False), FILES_READ]
    checks = [check_step(["pages", source], kept) for source in sources]
    no_leak = Law(name="no_leak", judge=_corpus_leak, blocks=True)
    lossless = Law(name="lossless", judge=_lossless, blocks=True)
    accounted = Law(name="accounted", judge=_accounted, blocks=False)
    in_range = Law(name="ids_in_range", judge=lambda tokens: laws.ids_in_range(tokens.directory), blocks=True)
    checks += [
        check_step(["documents"], [CONSERVED, FEW_LOST, NOT_EMPTY]),
        check_step(["corpus"], [CONSERVED, FEW_LOST, no_leak, NOT_EMPTY, _source_loss(limits.get("corpus", {}))]),
        check_step(["corpus_report"], [accounted, *_limits("corpus_report", limits)]),
        check_step(["tokenizer"], [lossless], others=[["corpus"]]),
        *(check_step(key.split("/"), [CONSERVED, FEW_LOST, in_range]) for key in (TOKENS, *vocabularies(models))),
    ]
    for model in (one for one in models if one.evaluation):
        stem, evaluation = model.name.removesuffix(MODEL_SUFFIX), str(model.evaluation)
        if isinstance(model, ContinuedModel):
            own = [_beats("beats_base", stem, CONTINUED_MUST_BEAT)]
            if FORGOTTEN not in limits.get(evaluation, {}):
                own.append(Law(name="forgets_little", judge=_forgets_little, blocks=False))
        else:
            own = [_beats("beats_baseline", stem, MUST_BEAT)]
        checks += [
            check_step([model.asset], [FINITE_LOSS]),
            check_step([evaluation], [*own, *_limits(evaluation, limits)]),
        ]
    return checks + [check for task in tasks for check in _checks_of_task(task, limits)]


def _checks_of_task(task: Task, limits: Mapping[str, Mapping[str, float]]) -> list[dg.AssetChecksDefinition]:
    leak = Law(name="no_leak", judge=_examples_leak, blocks=True)
    checks, of_model = [], [Law(name="whole_texts", judge=_whole_texts, blocks=False)]
    if task.collection:
        rows = [CONSERVED, FEW_LOST, NOT_EMPTY]
        pages = [*rows, FILES_READ]
        checks = [check_step([one], pages if one.endswith("_pages") else rows) for one in task.collection.assets]
        of_model = [Law(name="enough_questions", judge=_enough_questions, blocks=False)]
    if task.kind.has_curve:
        of_model.insert(0, FINITE_LOSS)
    return [
        *checks,
        check_step([f"{task.name}_examples"], [CONSERVED, leak, NOT_EMPTY, _plausible(task)]),
        check_step([f"{task.name}_model"], of_model),
        check_step([f"{task.name}_evaluation"], _laws_of_evaluation(task, limits)),
    ]


def _laws_of_evaluation(task: Task, limits: Mapping[str, Mapping[str, float]]) -> list[Law]:
    (metric, baseline), evaluation = task.kind.must_beat, f"{task.name}_evaluation"
    own = [_beats(f"beats_{baseline}", task.name, {metric: baseline})]
    if task.hides_examples:
        own.append(Law(name="unseen_in_pretraining", judge=_unseen, blocks=False))
    if UNLIKELIER in task.kind.metrics and UNLIKELIER not in limits.get(evaluation, {}):
        own.append(Law(name="keeps_chosen", judge=_keeps_chosen, blocks=False))
    return [*own, *_limits(evaluation, limits)]


def metrics_of_model(model: Model) -> tuple[str, ...]:
    """The metrics that its evaluation may have, for limits in config.toml."""
    return (*METRICS, *CHANGES) if isinstance(model, ContinuedModel) else METRICS


def check_step(key: Key, laws_of_asset: Sequence[Law], others: Sequence[Key] = ()) -> dg.AssetChecksDefinition:
    """One step for all checks of an asset, because each step costs a process."""
    asset = dg.AssetKey(key)
    inputs = {"__".join(one).replace("-", "_"): dg.AssetIn(list(one)) for one in (key, *others)}

    @dg.multi_asset_check(
        name=f"{'__'.join(key).replace('-', '_')}__checks",  # no model or task can have this name
        specs=[
            dg.AssetCheckSpec(
                law.name,
                asset=asset,
                blocking=law.blocks,
                description=(law.judge.__doc__ or "").strip() or None,
                additional_deps=[dg.AssetKey(one) for one in others],
            )
            for law in laws_of_asset
        ],
        ins=inputs,
        can_subset=True,  # otherwise the UI could not run checks of an asset with several
    )
    def check(context: dg.AssetCheckExecutionContext, **handles: Handle) -> Iterable[dg.AssetCheckResult]:
        selected = {key.name for key in context.selected_asset_check_keys}
        for law in (law for law in laws_of_asset if law.name in selected):
            yield check_result(asset, law, law.judge(*(handles[name] for name in inputs)))

    return check


def check_result(asset: dg.AssetKey, law: Law, verdict: Verdict) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        asset_key=asset,
        check_name=law.name,
        passed=verdict.passed,
        severity=dg.AssetCheckSeverity.ERROR if law.blocks else dg.AssetCheckSeverity.WARN,
        description=verdict.sentence(),
        metadata={**verdict.details, "observed": verdict.observed, "limit": verdict.limit},
    )


def read_limits(file: ConfigFile, metrics: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float]]:
    """[checks.<evaluation or report>] of config.toml: metric = limit. Raises ValueError for invalid entries.

    `metrics` are the assets that may have a table, with the metrics that each reports.
    """
    tables = file.table(TABLE)
    refuse_unknown(f"{file.path}: [{TABLE}]", "table", tables, list(metrics))
    for name, table in tables.items():
        where = f"{file.path}: [{TABLE}.{name}]"
        if not isinstance(table, Mapping) or not all(_is_number(limit) for limit in table.values()):
            raise ValueError(f"{where} is {table!r}, expected lines `metric = number`")
        refuse_unknown(where, "metric", table, metrics[name])
    return {name: {metric: float(limit) for metric, limit in table.items()} for name, table in tables.items()}


def limited_metrics(
    sources: Iterable[str], models: Iterable[Model], tasks: Iterable[Task]
) -> dict[str, Sequence[str]]:
    """Asset -> what may have a limit in its table of config.toml."""
    return {
        "corpus": [laws.REMOVED, *(f"{laws.REMOVED}_{source}" for source in sources)],
        "corpus_report": metrics_of("corpus_report"),
        **{model.evaluation: metrics_of_model(model) for model in models if model.evaluation},
        **{f"{task.name}_evaluation": task.kind.metrics for task in tasks},
    }


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _conserved(handle: Handle) -> Verdict:
    """Every input row was kept, or dropped with a reason."""
    return conservation(handle)


def _few_lost(handle: Handle) -> Verdict:
    """Hardly a row was lost to a timeout, a crash or a lack of memory."""
    return few_lost(handle)


def _accounted(report: Handle) -> Verdict:
    """For every source, each document that entered a stage of the corpus was kept, or dropped with a reason."""
    lost = _results(report)["unaccounted_documents"]["value"]
    return Verdict(passed=not lost, rule="documents in - kept - dropped = 0", observed=lost, limit=0)


def _has_rows(handle: Handle) -> Verdict:
    """The output has at least one row."""
    return not_empty(handle)


def _files_read(pages: Shards) -> Verdict:
    """A page was made of every data set, table, dump, mailbox and archive of the source."""
    return unread_files(pages)


# What assets of several tables are checked for.
CONSERVED = Law(name="conservation", judge=_conserved, blocks=True)
FEW_LOST = Law(name="few_lost", judge=_few_lost, blocks=True)
NOT_EMPTY = Law(name="not_empty", judge=_has_rows, blocks=True)
FILES_READ = Law(name="files_read", judge=_files_read, blocks=False)
FINITE_LOSS = Law(name="finite_loss", judge=lambda model: finite(read_curve(model.directory)), blocks=True)


def _corpus_leak(corpus: Handle) -> Verdict:
    """No document of validation or test has a near duplicate in train; no family of documents is on two sides."""
    return leaked_documents(corpus)


def _source_loss(limits: Mapping[str, float]) -> Law:
    def judge(corpus: Handle) -> Verdict:
        """No source loses more than a set share of its text as copies, repeated lines and evaluation texts."""
        return lost_sources(corpus, limits)

    return Law(name="source_loss", judge=judge, blocks=True)


def _examples_leak(examples: Handle) -> Verdict:
    """No example of validation or test has a near duplicate in train."""
    train, *held_out = (
        read_examples(examples.directory, split, ["text"])["text"].to_pylist()
        for split in ("train", "validation", "test")
    )
    similarity = (read_record(examples.directory) or {})["config"]["similarity"]
    return laws.no_leak(train, [text for texts in held_out for text in texts], similarity)


def _plausible(task: Task) -> Law:
    def judge(examples: Handle) -> Verdict:
        """Nothing looks wrong with the examples, such as two labels that differ in one letter."""
        names = [*(column.name for column in task.kind.columns), "split"]
        table = pa.concat_tables([read_table(path, columns=names) for path in shard_paths(examples.directory)])
        return laws.plausible(task.kind.example_warnings(table))

    return Law(name="plausible", judge=judge, blocks=False)


def _unseen(report: Handle) -> Verdict:
    """No evaluated example occurs in the text that the base model was pretrained on."""
    return unseen((read_record(report.directory) or {})["measures"][SEEN])


def _whole_texts(model: Handle) -> Verdict:
    """The model reads most of its training texts from the beginning to the end."""
    return whole_texts((read_record(model.directory) or {})["measures"])


def _enough_questions(model: Handle) -> Verdict:
    """What an assistant refuses was chosen on enough questions of people."""
    return enough_questions((read_record(model.directory) or {})["measures"])


def _lossless(tokenizer: Handle, corpus: Handle) -> Verdict:
    """Hard texts and documents of the corpus are equal to the byte after encoding and decoding."""
    texts = (
        text
        for path in shard_paths(corpus.directory)
        for text in read_table(path, columns=["text"])["text"].to_pylist()
    )
    return laws.lossless(load_tokenizer(tokenizer.directory), islice(texts, SAMPLE_DOCUMENTS))


def _beats(name: str, model: str, baselines: Mapping[str, str]) -> Law:
    """A check that the one of the metrics that `model` has is better than that of its baseline."""

    def judge(report: Handle) -> Verdict:
        found = _results(report)
        metric = next((one for one in found if one in baselines), next(iter(baselines)))
        return (
            beats_baseline(found[metric], model, baselines[metric])
            if metric in found
            else not_measured(metric, model)
        )

    parts = [f"{metric} is better than that of the {baseline} baseline" for metric, baseline in baselines.items()]
    judge.__doc__ = f"{', or '.join(parts)}."
    return Law(name=name, judge=judge, blocks=False)


def _forgets_little(report: Handle) -> Verdict:
    """The loss on general text has hardly risen since the base."""
    return forgets_little(_results(report), MOST_FORGOTTEN)


def _keeps_chosen(report: Handle) -> Verdict:
    """The chosen answers are hardly less likely than under the base."""
    return keeps_chosen(_results(report), MOST_UNLIKELIER)


def _limits(asset: str, limits: Mapping[str, Mapping[str, float]]) -> list[Law]:
    return [_limit(asset, metric, limit) for metric, limit in limits.get(asset, {}).items()]


def _limit(asset: str, metric: str, limit: float) -> Law:
    def judge(report: Handle) -> Verdict:
        found = _results(report)
        return beats_limit(found[metric], limit, asset) if metric in found else not_measured(metric, asset)

    judge.__doc__ = f"{metric} is better than {limit:g}, the limit in data/config.toml."
    return Law(name=f"{metric}_limit", judge=judge, blocks=False)


def _results(report: Handle) -> dict[str, Any]:
    return {result["metric"]: result for result in read_results(report.directory)}
