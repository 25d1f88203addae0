"""Counts what is in a corpus and what became of the rest, in DuckDB over the shards.

In: a database with the views of corpus_chain.py. Out: tables, each a list of rows of plain numbers and words in a
fixed order. Only integers are added up, so that no result depends on the number of threads; shares are divided once,
at the end. If the output of a stage has been removed, its tables are shorter, and nothing is guessed.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa

from pipeline.corpus.collect.source_rules import RULE_SETS
from pipeline.corpus.filter.rules import FilterConfig, judge, rules_of
from pipeline.corpus.laws import REMOVED
from pipeline.corpus.report.corpus_chain import CorpusChain, Row, rows
from pipeline.corpus.report.corpus_terms import (
    AXES,
    NOT_AFTER,
    PRONOUNS,
    occupation_pattern,
    phrase_pattern,
    word_pattern,
)
from pipeline.store.chain import document_stages
from pipeline.store.records import MEASURES

Tables = dict[str, list[Row]]
QUANTILES = {"min": 0.0, "p5": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}
SIGNIFICANT_DIGITS = 6  # of a signal, because the columns are 32-bit floats
ENGLISH = "en"
BATCH_ROWS = 100_000

SOURCES = """
SELECT source, count(*) AS documents, CAST(sum(n_words) AS BIGINT) AS words,
    CAST(sum(strlen(text)) AS BIGINT) AS bytes,
    count(*) FILTER (coalesce(trim(licence), '') = '') AS without_licence,
    count(*) FILTER (n_mojibake > 0) AS mended, CAST(sum(n_mojibake) AS BIGINT) AS mojibake,
    CAST(coalesce(sum(n_unknown_templates), 0) AS BIGINT) AS unknown_templates,
    CAST(sum(n_boilerplate_lines) AS BIGINT) AS boilerplate_lines
FROM split GROUP BY source ORDER BY source
"""
BY = """
SELECT {columns}, count(*) AS documents, CAST(sum(n_words) AS BIGINT) AS words, count(DISTINCT source) AS sources
FROM split GROUP BY ALL ORDER BY words DESC, documents DESC, {columns}
"""
LICENCES_BY_SOURCE = """
SELECT source, licence, count(*) AS documents FROM split WHERE trim(licence) != '' GROUP BY ALL ORDER BY ALL
"""
SPLITS_BY_SOURCE = """
SELECT source, split, count(*) AS documents, CAST(sum(n_words) AS BIGINT) AS words FROM split
GROUP BY ALL ORDER BY ALL
"""
DROPPED = """
SELECT stage, source, reason, count(*) AS documents, min(url) AS example FROM dropped GROUP BY ALL ORDER BY ALL
"""
PII = """
SELECT source, found.key AS kind, count(*) AS documents, CAST(sum(found.value) AS BIGINT) AS found
FROM (SELECT source, unnest(map_entries(pii)) AS found FROM split)
WHERE found.value > 0 GROUP BY ALL ORDER BY ALL
"""
MASKED = """
SELECT source, CAST(sum(n_masked) AS BIGINT) AS masked FROM split GROUP BY source ORDER BY source
"""
# For a language without a list the number is unknown, not 0.
WORD_FRACTIONS = """
SELECT source, coalesce(CAST(sum(n_words) FILTER (profane_word_fraction IS NOT NULL) AS BIGINT), 0) AS words,
    count(*) FILTER (profane_word_fraction IS NULL) AS unknown,
    coalesce(CAST(sum(round(profane_word_fraction * n_words)) AS BIGINT), 0) AS profane_words,
    coalesce(CAST(sum(round(adult_word_fraction * n_words)) AS BIGINT), 0) AS adult_words,
    count(*) FILTER (profane_word_fraction > 0.01) AS documents_above_1_percent_profane,
    count(*) FILTER (adult_word_fraction > 0.01) AS documents_above_1_percent_adult
FROM split GROUP BY source ORDER BY source
"""
# A package is its own domain, a local file has none; user and port of an address are removed.
DOMAINS = r"""
SELECT domain, count(*) AS documents, CAST(sum(n_words) AS BIGINT) AS words FROM (
    SELECT n_words, CASE
        WHEN starts_with(url, 'file:') THEN '(local files)'
        WHEN regexp_matches(url, '^https?://') THEN lower(regexp_extract(url, '^https?://(?:[^/@]*@)?([^/:?#]*)', 1))
        ELSE regexp_extract(url, '^([^:]*://[^/?#]*)', 1)
    END AS domain FROM split
) GROUP BY domain ORDER BY words DESC, domain
"""
CLUSTER_SIZES = """
SELECT size, count(*) AS kept, CAST(sum(cluster_size) AS BIGINT) AS documents FROM (
    SELECT cluster_size, CASE WHEN cluster_size < 4 THEN CAST(cluster_size AS VARCHAR)
        WHEN cluster_size < 10 THEN '4 to 9' WHEN cluster_size < 100 THEN '10 to 99' ELSE '100 or more' END AS size
    FROM split
) GROUP BY size ORDER BY min(cluster_size)
"""
LARGEST_CLUSTERS = """
SELECT source, url, cluster_size AS documents FROM split WHERE cluster_size > 1
ORDER BY cluster_size DESC, url LIMIT 5
"""
FAMILIES = """
SELECT count(*) AS families, coalesce(max(documents), 0) AS largest FROM (
    SELECT count(*) AS documents FROM split GROUP BY family_id
)
"""
REPEATED_SOURCES = """
SELECT source, count(DISTINCT page_id) AS documents, count(*) AS lines, CAST(sum(characters) AS BIGINT) AS characters
FROM repeated WHERE kind != 'document' GROUP BY source ORDER BY source
"""
REPEATED_SITES = """
SELECT site, max(site_documents) AS site_documents, count(DISTINCT page_id) AS documents, count(*) AS lines
FROM repeated WHERE kind != 'document' GROUP BY site ORDER BY lines DESC, site LIMIT 20
"""
REPEATED_LINES = """
SELECT site, preview, count(*) AS removed, max(documents) AS documents
FROM repeated WHERE kind != 'document' GROUP BY site, preview
QUALIFY row_number() OVER (PARTITION BY site ORDER BY count(*) DESC, preview) <= 3
ORDER BY site, removed DESC, preview
"""
CONTAMINATED = """
SELECT task, source, count(DISTINCT page_id) AS documents, count(DISTINCT example_id) AS examples,
    count(DISTINCT page_id) FILTER (new_id IS NULL) AS dropped
FROM contamination JOIN ({pages}) USING (page_id) GROUP BY ALL ORDER BY ALL
"""
PAGES_JUDGED = """
SELECT page_id, source FROM decontaminate UNION ALL
SELECT page_id, source FROM dropped WHERE stage = 'decontaminate'
"""
SIDES = [{"axis": axis.name, "side": side.name} for axis in AXES for side in axis.sides]
TYPOGRAPHIC_APOSTROPHE = "\u2019"
MATCHED = """
CREATE OR REPLACE TEMP TABLE matched AS SELECT source, match, {side} AS side, n FROM (
    SELECT source, match, count(*) AS n FROM (
        SELECT source, unnest(list_concat(regexp_extract_all(t, $words), regexp_extract_all(t, $phrases))) AS match
        FROM (SELECT source, replace(lower(text), $apostrophe, '''') AS t FROM {texts})
    ) GROUP BY ALL
) WHERE NOT regexp_matches(match, $not_after)
"""
MATCHES_BY_SIDE = "SELECT side, source, CAST(sum(n) AS BIGINT) AS n FROM matched GROUP BY ALL ORDER BY ALL"
COMMONEST = """
SELECT side, match, CAST(sum(n) AS BIGINT) AS matches FROM matched GROUP BY side, match
QUALIFY row_number() OVER (PARTITION BY side ORDER BY sum(n) DESC, match) <= 3 ORDER BY side, matches DESC, match
"""
# A text whose language was not measured is not counted.
TEXTS_BEFORE = f"(SELECT source, text FROM clean JOIN signals USING (page_id) WHERE language = '{ENGLISH}')"
TEXTS_AFTER = f"(SELECT source, text FROM split WHERE language = '{ENGLISH}')"
WORDS_BEFORE = f"SELECT CAST(sum(n_words) AS BIGINT) AS words FROM signals WHERE language = '{ENGLISH}'"
WORDS_AFTER = f"""
SELECT source, CAST(sum(n_words) AS BIGINT) AS words FROM split WHERE language = '{ENGLISH}'
GROUP BY source ORDER BY source
"""
OCCUPATIONS = """
SELECT occupation, count(*) FILTER (pronoun IN ({she})) AS she, count(*) FILTER (pronoun NOT IN ({she})) AS he FROM (
    SELECT regexp_extract(match, $pattern, 1) AS occupation, regexp_extract(match, $pattern, 2) AS pronoun FROM (
        SELECT unnest(regexp_extract_all(lower(text), $pattern)) AS match FROM {texts}
    )
) GROUP BY occupation ORDER BY count(*) DESC, occupation
"""
MEASURED_ALL = """
CREATE TEMP TABLE measured AS SELECT {columns}, source, kept FROM signals
JOIN (SELECT page_id, source FROM clean) USING (page_id)
LEFT JOIN (SELECT page_id, true AS kept FROM filter) USING (page_id) WHERE failure IS NULL
"""
MEASURED_KEPT = "CREATE TEMP TABLE measured AS SELECT {columns}, source, true AS kept FROM filter"
AT_RANKS = """
SELECT value FROM (
    SELECT {signal} AS value, row_number() OVER (ORDER BY {signal}) AS rank FROM measured
    WHERE kept AND {signal} IS NOT NULL
) WHERE list_contains($ranks, rank) ORDER BY rank
"""
HISTOGRAM = """
SELECT coalesce(kept, false) AS kept, histogram({signal}, $edges) AS bins FROM measured
WHERE {signal} IS NOT NULL GROUP BY ALL ORDER BY ALL
"""


def count_all(database: Any, chain: CorpusChain, top_domains: int) -> Tables:
    """All tables except those of signals and terms."""
    return {
        "funnel": list(funnel(database, chain)),
        "dropped": rows(database, DROPPED),
        "sources": rows(database, SOURCES),
        "languages": rows(database, BY.format(columns="language")),
        "licences": rows(database, BY.format(columns="licence")),
        "licences_by_source": rows(database, LICENCES_BY_SOURCE),
        "media_types": rows(database, BY.format(columns="media_type, extractor")),
        "code_languages": [row for row in rows(database, BY.format(columns="code_language")) if row["code_language"]],
        "domains": rows(database, f"{DOMAINS} LIMIT {top_domains}"),
        "n_domains": rows(database, f"SELECT count(*) AS domains FROM ({DOMAINS})"),
        "splits": rows(database, SPLITS_BY_SOURCE),
        "pii": rows(database, PII),
        "masked": rows(database, MASKED),
        "word_fractions": rows(database, WORD_FRACTIONS),
        "cluster_sizes": rows(database, CLUSTER_SIZES),
        "largest_clusters": rows(database, LARGEST_CLUSTERS),
        "families": rows(database, FAMILIES),
        **removals(database, chain),
    }


def removals(database: Any, chain: CorpusChain) -> Tables:
    """What `dedup_lines` removed, with its `share` of the text of a source, and what `decontaminate` found."""
    measures = {
        name: value
        for folder in chain.folders.get("dedup_lines", ())
        for name, value in chain.records[folder]["measures"].items()
    }
    sites = rows(database, REPEATED_SITES)
    shown = {row["site"] for row in sites}
    of_sources = rows(database, REPEATED_SOURCES)
    judged = chain.there("decontaminate")
    return {
        "repeated_sources": [row | {"share": _rounded(measures[f"{REMOVED}_{row['source']}"])} for row in of_sources],
        "repeated_sites": sites,
        "repeated_lines": [row for row in rows(database, REPEATED_LINES) if row["site"] in shown],
        "contamination": rows(database, CONTAMINATED.format(pages=PAGES_JUDGED)) if judged else [],
    }


def funnel(database: Any, chain: CorpusChain) -> Iterator[Row]:
    """For every source at every stage: documents in, kept, dropped and unaccounted for.

    `unaccounted` is None if the output of the previous stage no longer exists.
    """
    before: Mapping[str, int] | None = _collected(chain) if chain.there("collect") else None
    for stage in document_stages():
        if chain.without(stage):
            continue
        if not chain.there(stage):
            before = None
            continue
        kept = _by_source(database, f"SELECT source, count(*) AS n FROM {stage} GROUP BY source")
        dropped = _by_source(
            database, f"SELECT source, count(*) AS n FROM dropped WHERE stage = '{stage}' GROUP BY source"
        )
        for source in sorted({*kept, *dropped, *(before or ())}):
            out = kept.get(source, 0) + dropped.get(source, 0)
            rows_in = out if before is None else before.get(source, 0)
            yield {
                "stage": stage,
                "source": source,
                "rows_in": rows_in,
                "kept": kept.get(source, 0),
                "dropped": dropped.get(source, 0),
                "unaccounted": None if before is None else rows_in - out,
            }
        before = kept


def _collected(chain: CorpusChain) -> dict[str, int]:
    """Number of pages that `collect` recorded, by source."""
    records = [chain.records[folder] for folder in chain.folders.get("collect", ())]
    seen: dict[str, int] = {}
    for record in records:
        name = record["config"]["source"]["name"]
        seen[name] = seen.get(name, 0) + record["counts"]["rows_in"]
    return seen


def _by_source(database: Any, query: str) -> dict[str, int]:
    return {row["source"]: row["n"] for row in rows(database, query)}


# Signals.


def signal_names() -> list[str]:
    """The columns of records.MEASURES with one number per document."""
    return [field.name for field in MEASURES if pa.types.is_integer(field.type) or pa.types.is_floating(field.type)]


def prepare_signals(database: Any, chain: CorpusChain) -> bool:
    """Create the table `measured`. Returns whether it also contains the dropped documents."""
    columns = ", ".join(["language", *signal_names()])
    complete = chain.there("signals") and chain.there("clean")
    database.execute((MEASURED_ALL if complete else MEASURED_KEPT).format(columns=columns))
    return complete


def signal_table(database: Any) -> list[Row]:
    """Quantiles of every signal over the documents that `filter` kept."""
    found = []
    for signal in signal_names():
        n = rows(database, f"SELECT count({signal}) AS n FROM measured WHERE kept")[0]["n"]
        ranks = {name: 1 + round(share * (n - 1)) for name, share in QUANTILES.items()}
        at = [row["value"] for row in rows(database, AT_RANKS.format(signal=signal), ranks=[*ranks.values()])]
        values = dict(zip(sorted({*ranks.values()}), at, strict=True)) if n else {}
        told = {name: _rounded(values[rank]) for name, rank in ranks.items()} if n else dict.fromkeys(ranks)
        found.append({"signal": signal, "documents": n, **told})
    return found


def histograms(database: Any, n_bins: int, cfg: FilterConfig) -> list[Row]:
    """Histograms of every signal, for kept and dropped documents, and the limits of the rule sets for it.

    Bins include their upper edge; values beyond the last edge are counted in a final bin.
    """
    rules = [rule for one in RULE_SETS for rule in rules_of(cfg, [one])]  # each set as if it were the only one
    is_whole = {field.name: pa.types.is_integer(field.type) for field in MEASURES}
    found = []
    for signal in signal_names():
        (bounds,) = rows(database, f"SELECT max({signal}) AS high FROM measured")
        if bounds["high"] is None:
            continue
        own = [rule for rule in rules if rule.signal == signal]
        low, high = ([float(n) for rule in own if (n := getattr(rule, end)) is not None] for end in ("low", "high"))
        edges = _edges(bounds["high"], n_bins, low + high, whole=is_whole[signal])
        counts = {False: [0] * (len(edges) + 1), True: [0] * (len(edges) + 1)}
        for row in rows(database, HISTOGRAM.format(signal=signal), edges=edges):
            for upper, n in row["bins"].items():
                place = edges.index(upper) if upper in edges else len(edges)
                counts[row["kept"]][place] += n
        told = {"whole": is_whole[signal], "low": low, "high": high, "edges": edges}
        found.append({"signal": signal, **told, "kept": counts[True], "dropped": counts[False]})
    return found


def _edges(high: float, n_bins: int, limits: list[float], *, whole: bool) -> list[float]:
    """Upper edges of the bins: powers of two for counts, else even steps. Exactly 0 has a bin of its own."""
    if whole:
        return [0.0, *(float(2**power) for power in range(max(1, math.ceil(math.log2(max(high, 1))) + 1)))]
    top = max([high, *(1.25 * limit for limit in limits)])
    step = _nice((min(top, 1.0) if high <= 1 else top) / n_bins)
    return [_rounded(step * place) for place in range(math.ceil(_rounded(top / step)) + 1)]


def _nice(step: float) -> float:
    """The next number in 1, 2, 5, 10, 20, 50 and so on, up or down."""
    power = 10.0 ** math.floor(math.log10(step)) if step else 0.01
    return _rounded(next(power * factor for factor in (1, 2, 5, 10) if power * factor >= step * (1 - 1e-9)))


def _rounded(value: float, digits: int = SIGNIFICANT_DIGITS) -> float:
    return value if isinstance(value, int) else float(f"{value:.{digits}g}")


def rule_set_table(database: Any, cfg: FilterConfig) -> list[Row]:
    """What each rule set alone would drop, by source and first reason. `reason` None = would be kept."""
    limits = {"max_profane_word_fraction": None, "max_adult_word_fraction": None}  # these belong to no set
    alone = replace(cfg, **limits)
    found: Counter[tuple[str, str, str | None]] = Counter()
    columns = ", ".join(["source", "language", *signal_names()])
    for batch in database.sql(f"SELECT {columns} FROM measured").to_arrow_reader(BATCH_ROWS):
        values = {name: batch[name].to_numpy(zero_copy_only=False) for name in batch.schema.names}
        for rule_set in RULE_SETS:
            reasons, _ = judge(values, alone, (), [rule_set])
            found.update(zip([rule_set] * len(reasons), values["source"], reasons, strict=True))
    order = sorted(found, key=lambda key: (RULE_SETS.index(key[0]), key[1], key[2] or ""))
    return [
        {"rule_set": rule_set, "source": source, "reason": reason, "documents": found[rule_set, source, reason]}
        for rule_set, source, reason in order
    ]


# Terms.


def term_tables(database: Any, chain: CorpusChain) -> Tables:
    """English words by source, and the matches of every side of every axis, before and after cleaning."""
    compared = chain.there("clean") and chain.there("signals")
    words_before = rows(database, WORDS_BEFORE)[0]["words"] if compared else None
    before = _matches(database, TEXTS_BEFORE) if compared else {}
    after = _matches(database, TEXTS_AFTER)
    commonest = [SIDES[row["side"]] | row | {"side": SIDES[row["side"]]["side"]} for row in rows(database, COMMONEST)]
    terms = [
        {
            **names,
            "count": sum(after.get(place, {}).values()),
            "before": sum(before.get(place, {}).values()) if compared else None,
            "by_source": after.get(place, {}),
        }
        for place, names in enumerate(SIDES)
    ]
    she = ", ".join(f"'{word}'" for word in PRONOUNS.sides[0].words.split())
    query = OCCUPATIONS.format(she=she, texts=TEXTS_AFTER)
    return {
        "terms": terms,
        "term_words": commonest,
        "english": [{"source": None, "words": words_before}, *rows(database, WORDS_AFTER)],
        "occupations": rows(database, query, pattern=occupation_pattern()),
    }


def _matches(database: Any, texts: str) -> dict[int, dict[str, int]]:
    """Index in SIDES -> source -> matches; the table `matched` then has them by word."""
    patterns = {f"side_{place}": side.pattern for place, side in enumerate(s for axis in AXES for s in axis.sides)}
    cases = "".join(f" WHEN regexp_full_match(match, ${name}) THEN {place}" for place, name in enumerate(patterns))
    fixed = {"apostrophe": TYPOGRAPHIC_APOSTROPHE, "not_after": NOT_AFTER}
    database.execute(
        MATCHED.format(side=f"CASE{cases} END", texts=texts),
        {**patterns, **fixed, "words": word_pattern(), "phrases": phrase_pattern()},
    )
    found: dict[int, dict[str, int]] = {}
    for row in rows(database, MATCHES_BY_SIDE):
        found.setdefault(row["side"], {})[row["source"]] = row["n"]
    return found
