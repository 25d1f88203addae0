"""Explains why a stage kept or dropped a page: the rule with its limit, the document kept instead, the removed lines.

In: the places of a page in the outputs (trace_chain). Out: for each place the reason, the score and the evidence as a
table of literals, which --json prints; `evidence_lines` formats it for people. Only narrow columns of the row itself
and the rows of evidence/ of the same shard are read, never a text.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.provenance.trace_chain import TraceChain, TracedRow, read_row
from pipeline.store.chain import document_stages, link_of
from pipeline.store.lineage import Record, inputs_of
from pipeline.store.settings import read_recorded
from pipeline.store.shards import EVIDENCE_FOLDER, read_table

DROPPED_COLUMNS = ("reason", "score", "preview")
PAGE_OF_EVIDENCE = ("dropped_page_id", "page_id")  # the evidence of a stage has one of them
MOST_LINES = 5  # lines of evidence that are printed per stage
PREVIEW = 60  # characters per line


def kept_facts(places: Sequence[TracedRow]) -> dict[str, dict[str, Any]]:
    """Stage -> what it added to the page, for the stages that kept it."""
    facts: dict[str, dict[str, Any]] = {}
    kept = [place for place in places if place.is_kept]
    shown = {stage: link_of(stage).shows for stage in document_stages()}
    collected = shown.pop("collect")
    for place in kept[:1]:
        if place.folder.stage == "collect":
            facts["collect"] = read_row(place.path, place.row, collected)
    if kept and kept[-1].folder.stage != "collect":
        names = [name for columns in shown.values() for name in columns]
        row = read_row(kept[-1].path, kept[-1].row, names)
        for stage, columns in shown.items():
            facts[stage] = {name: row[name] for name in columns if name in row}
    return facts


def evidence_of(
    chain: TraceChain, places: Sequence[TracedRow], place: TracedRow, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """The evidence for one place; for a dropped page `reason`, `score` and what led to them."""
    stage = place.folder.stage
    rows = list(_evidence_rows(chain, place)) if link_of(stage).evidence else []
    told: dict[str, Any] = dict(facts.get(stage, {})) if place.is_kept else {}
    if told.get("family_id", place.page_id) != place.page_id:
        told["family_url"] = chain.url_of(told["family_id"])
    if not place.is_kept:
        told |= read_row(place.path, place.row, DROPPED_COLUMNS)
        record = chain.folders[place.folder]
        if stage == "filter":
            told |= _broken_rule(chain, record, places, told)
        if stage == "dedup":
            told |= _duplicate_rule(record, rows)
    return told | ({"evidence": rows} if rows else {})


def _evidence_rows(chain: TraceChain, place: TracedRow) -> Iterator[dict[str, Any]]:
    path = place.folder.directory / EVIDENCE_FOLDER / place.shard
    if not path.exists():
        return
    table = read_table(path)
    column = next((name for name in PAGE_OF_EVIDENCE if name in table.column_names), None)
    if column is None:
        return
    for i in (i for i, page_id in enumerate(table[column].to_pylist()) if page_id == place.page_id):
        row = table.slice(i, 1).to_pylist()[0]
        if row.get("kept_page_id"):
            row["kept_url"] = chain.url_of(row["kept_page_id"])
        yield row


def _duplicate_rule(record: Record, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The limit of `dedup` that the pair exceeded; none for equal texts."""
    for row in rows:
        if row.get("rule") in ("similarity", "containment"):
            limit = record["config"][f"min_{row['rule']}"]
            return {"rule": {"signal": row["rule"], "value": row[row["rule"]], "at_least": limit}}
    return {}


def _broken_rule(
    chain: TraceChain, record: Record, places: Sequence[TracedRow], told: Mapping[str, Any]
) -> dict[str, Any]:
    """The rule of `filter` with the limit that applied to the source of the page."""
    from pipeline.corpus.filter.rules import FilterRecipe, rules_of

    measured = _signals(chain, record, places)
    source = next((read_row(place.path, place.row, ("source",))["source"] for place in places[-1:]), "")
    try:
        recipe = read_recorded(FilterRecipe, record["config"])
    except ValueError:  # an older version of the stage, with other settings
        return {}
    if told["reason"] == "wrong_language":
        names = ("language", "language_confidence")
        wanted = {"wanted": list(recipe.languages(source)), "at_least": recipe.config.min_language_confidence}
        return {"rule": {"signal": "language_confidence", "value": told["score"], **wanted}} | {
            name: measured[name] for name in names if name in measured
        }
    for rule in rules_of(recipe.config, recipe.rules(source)):
        if rule.reason == told["reason"]:
            limits = {"at_least": rule.low, "at_most": rule.high}
            given = {name: limit for name, limit in limits.items() if limit is not None}
            return {"rule": {"signal": rule.signal, "value": told["score"], **given}}
    return {}


def _signals(chain: TraceChain, record: Record, places: Sequence[TracedRow]) -> dict[str, Any]:
    """Language as measured by `signals`, whose rows have the order of `clean`. Empty if its output was removed."""
    cleaned = next((place for place in places if place.folder.stage == "clean" and place.is_kept), None)
    folders = [one for one in inputs_of(chain.store, record) if one.stage == "signals"] if cleaned else []
    if cleaned is None or not folders:
        return {}
    path = folders[0].directory / cleaned.where
    return read_row(path, cleaned.row, ("language", "language_confidence", "failure")) if path.exists() else {}


def evidence_lines(stage: str, told: Mapping[str, Any]) -> Iterator[str]:
    """The evidence as lines for people, most informative first."""
    rows = told.get("evidence", ())
    if rule := told.get("rule"):
        yield _rule_line(rule, told)
    if stage == "dedup":
        for row in rows[:MOST_LINES]:
            yield f"kept instead: {row['kept_url'] or row['kept_page_id']}"
            if row.get("rule") != "exact":
                measured = f"similarity {row['similarity']:.3f}, containment {row['containment']:.3f}"
                yield f"{measured}, {row['bands_shared']} MinHash bands shared"
        if told.get("cluster_size", 1) > 1:
            yield f"the best of {told['cluster_size']:,} copies"
    elif stage == "dedup_lines":
        yield from _repeated_lines(rows)
    elif stage == "decontaminate":
        yield from _contaminated_lines(rows)
    elif line := _facts_line(stage, told):
        yield line
    if "reason" in told and told.get("preview", "").strip():
        yield f"begins with: {_shortened(told['preview'])}"


def _rule_line(rule: Mapping[str, Any], told: Mapping[str, Any]) -> str:
    if "wanted" in rule:
        language = told.get("language", "no longer known")
        wanted = " or ".join(rule["wanted"])
        return f"language {language}, confidence {rule['value']:.3g}; wanted: {wanted}, at least {rule['at_least']:g}"
    value = "not measured" if rule["value"] is None else f"{rule['value']:.4g}"
    if rule["signal"] in ("similarity", "containment"):
        return f"{rule['signal']} {value}; copies go from {rule['at_least']:g}"
    names = (("at_least", "at least"), ("at_most", "at most"))
    limits = [f"{words} {rule[name]:g}" for name, words in names if name in rule]
    return f"{rule['signal']} {value}; wanted: {' and '.join(limits)}"


def _facts_line(stage: str, told: Mapping[str, Any]) -> str:
    if "reason" in told:
        return ""
    if stage == "collect":
        status = f", HTTP {told['http_status']}" if told.get("http_status") else ""
        licence = told.get("licence") or "no licence declared"
        return f"{told['source']}, {told['media_type']}, {licence}, collected {told['collected_at'][:10]}{status}"
    if stage == "clean" and told.get("extractor"):
        counts = (("n_mojibake", "{} repaired"), ("n_boilerplate_lines", "{} of boilerplate removed"))
        parts = [what.format(_counted(told[name], "line")) for name, what in counts if told.get(name)]
        return ", ".join([f"text by {told['extractor']}", *parts])
    if stage == "filter" and "n_words" in told:
        masked = f", {_counted(told['n_masked'], 'place')} masked" if told.get("n_masked") else ""
        return f"{_counted(told['n_words'], 'word')}, language {told['language']}{masked}"
    return f"on the same side as {told['family_url']}, which it overlaps" if told.get("family_url") else ""


def _counted(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _repeated_lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for row in rows[:MOST_LINES]:
        if row["kind"] == "document":
            yield f"the remaining text is that of {row.get('kept_url') or row['kept_page_id']}"
        else:
            share = f"in {row['documents']:,} of the {row['site_documents']:,} documents of {row['site']}"
            yield f"{row['kind']} removed, {share}: {_shortened(row['preview'])}"
    if len(rows) > MOST_LINES:
        yield f"and {len(rows) - MOST_LINES:,} more (--json lists them)"


def _contaminated_lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for row in rows[:MOST_LINES]:
        verb = "dropped" if row["new_id"] is None else "cut"
        share = f"{row['example_share']:.0%} of its runs of words, {row['document_share']:.1%} of the document"
        yield f"{verb} for example {row['example_id']} of {row['task']} ({row['example_split']})"
        yield f"{share}: {_shortened(row['preview'])}"
    if len(rows) > MOST_LINES:
        yield f"and {len(rows) - MOST_LINES:,} more (--json lists them)"


def _shortened(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= PREVIEW else f"{flat[: PREVIEW - 3]}..."
