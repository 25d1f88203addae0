"""`gristmill forget`: adds pages and their copies to the deny list, and reports which assets and models are affected.

In: parsed arguments. Out: text on stdout, the deny list (data/denied.jsonl) with new rows, and exit code 0; 1 if
nothing was denied because the user did not agree. The next materialisation leaves out what is denied.
"""

import time
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from pipeline.commands.tables import agreed, count_text, table_lines
from pipeline.commands.trace_lines import seen_steps
from pipeline.corpus.deny_list import Denial, change_denials, keys_of, read_denials
from pipeline.provenance.copies import CopyLimits
from pipeline.provenance.forget import (
    Findings,
    Known,
    Page,
    Relative,
    denials_of,
    find_pages,
    findings,
    holding_shards,
    known,
)
from pipeline.store.chain import BASE, OF_BASE, OF_PASSAGES, OF_SOURCE, OF_TOKENS, output_of
from pipeline.store.disk import size_text
from pipeline.store.engine import LocalProcesses
from pipeline.store.layout import Layout, all_current, all_entries, existing_layout, load_current
from pipeline.store.records import Checkpoint

if TYPE_CHECKING:
    from pipeline.provenance.purge import Holders
    from pipeline.provenance.quotations import Quotations

SHARDED = (OF_SOURCE, "documents")  # assets whose changing shards are counted
MOST_HOLDERS = 10  # pages with a part of the text that are listed
MOST_PAGES = 3  # pages in the message for an ambiguous address
MOST_STEPS = 5  # steps that are listed one by one


def run_forget(args: Namespace) -> int:
    layout = existing_layout()
    if args.list:
        print("\n".join(_list_lines(layout, read_denials(layout.denied))))
        return 0
    if args.purge:
        return _purge(layout, args)
    if args.containing is not None and not 0 < args.containing <= 1:
        raise ValueError(f"--containing is {args.containing:g}, expected a share above 0 to 1")
    if not args.what and args.new_tokenizer:
        print(_tokenizer_line(layout, new=True))
        return 0
    if not args.what:
        raise ValueError("nothing to forget: give a URL, a page id or a document id; --list shows what is denied")
    return _undo(layout, args) if args.undo else _forget(layout, args)


def _forget(layout: Layout, args: Namespace) -> int:
    denied = read_denials(layout.denied)
    outputs = known(all_current(layout))
    asked = _asked(outputs, denied, args)
    found = findings(outputs, asked, _limits(outputs), containing=args.containing, engine=LocalProcesses())
    rows = denials_of(
        outputs, found, date=time.strftime("%Y-%m-%d", time.gmtime()), reason=args.reason, asked_by=args.by
    )
    new = _new_rows(denied, rows)
    print("\n".join(_findings_lines(found, {row.page_id for row in new if row.page_id})))
    print("\n".join([*_model_lines(layout, found), *_assistant_lines(layout, found)]))
    if not new:
        print(f"\nAll of these are denied already, in {layout.denied}; nothing was changed.")
        if args.new_tokenizer and not args.dry_run:
            print(_tokenizer_line(layout, new=True))
        return 0
    print("\n".join(_next_run_lines(outputs, found, args.new_tokenizer)))
    pages = count_text(len(new), "page")
    if args.dry_run:
        print(f"\nNothing was changed; without --dry-run {pages} would be denied in {layout.denied}.")
        return 0
    if not (args.yes or agreed(f"\nDeny {pages}? [y/N] ")):
        print("\nNothing was changed; --yes denies without asking.")
        return 1
    told = _tokenizer_line(layout, new=args.new_tokenizer)  # first: after a kill a rerun finds rows to add
    change_denials(layout.denied, lambda rows: ([], _new_rows(rows, new)))
    print(f"\nDenied in {layout.denied}. {told}".rstrip())
    print("The next materialisation leaves them out; `gristmill plan` shows what that costs. After it,")
    print("`gristmill forget --purge` removes the older outputs, which still contain the texts. Your own files and")
    print("fetched packages are not touched.")
    return 0


def _asked(outputs: Known, denied: Sequence[Denial], args: Namespace) -> list[Page]:
    """The pages that the arguments match. Raises ValueError when one matches none, or many without the user's
    consent."""
    if not outputs.folders:
        raise ValueError(
            "nothing has been collected yet, so there is nothing to forget; materialise `pages/<source>`"
        )
    asked: dict[Page, None] = {}
    for query in args.what:
        pages = find_pages(outputs, query) if query.strip() else []
        if not pages:
            raise ValueError(_unknown(query, denied))
        by_ending = not any(query in (page.url, page.page_id, page.document_id) for page in pages)
        if by_ending and len(pages) > 1 and not args.all:
            first = ", ".join(page.url for page in pages[:MOST_PAGES])
            question = f"{query!r} is the end of {len(pages)} addresses, such as {first}"
            if args.yes or args.dry_run or not agreed(f"{question}. Forget all of them? [y/N] "):
                raise ValueError(f"{question}; give more of it, or --all for all of them")
        asked.update(dict.fromkeys(pages))
    return list(asked)


def _unknown(query: str, denied: Sequence[Denial]) -> str:
    told = f"{query!r} is not a URL, the end of one, a page id or a document id of the data"
    if rows := _rows_of(query, denied):
        return f"{told}; it is denied already ({rows[0].told()})"
    return f"{told}; to deny an address before it is collected, add a row to denied.jsonl (docs/your-data.md)"


def _rows_of(query: str, denied: Sequence[Denial]) -> list[Denial]:
    return [row for row in denied if query in (row.url, row.address, row.page_id, row.document_id)]


def _limits(outputs: Known) -> CopyLimits:
    """Limits as strict as those of the current corpus, or stricter."""
    limits = CopyLimits()
    for folder in outputs.of_stage("dedup"):
        config = outputs.folders[folder]["config"]
        limits = CopyLimits(
            n_words=config["shingle_words"],
            min_similarity=max(limits.min_similarity, config["min_similarity"]),
            min_containment=max(limits.min_containment, config["min_containment"]),
        )
    return limits


def _new_rows(denied: Iterable[Denial], rows: Iterable[Denial]) -> list[Denial]:
    """The `rows` that deny something that is not denied yet."""
    there = {key for row in denied for key in _keys(row)}
    return [row for row in rows if not _keys(row) <= there]


def _keys(row: Denial) -> set[tuple[str | None, str, str]]:
    return {(row.source, kind, value) for kind, value in row.denies()}


def _findings_lines(found: Findings, new: set[str]) -> Iterator[str]:
    yield f"{count_text(len(found.pages), 'page')} to be forgotten:"
    yield ""
    why = {page.page_id: "asked for" for page in found.asked}
    why |= {copy.page.page_id: copy.why for copy in found.copies}
    rows = [
        [
            page.url,
            page.source,
            "no text" if page.document_id is None else f"{page.n_words or 0:,}",
            why[page.page_id] + ("" if page.page_id in new else " (denied already)"),
        ]
        for page in found.pages
    ]
    yield from table_lines(["page", "source", "words", "why"], rows, right=(2,))
    yield from _holder_lines(found.holders)
    for asset, ids in found.examples.items():
        yield f"\n{asset}: {len(ids)} labelled rows have such a text; the next run drops them as `denied`."
    for asset, n_rows in found.near_examples.items():
        yield f"\n{asset}: {n_rows} labelled rows repeat a part of these texts; they are kept."


def _holder_lines(holders: Sequence[Relative]) -> Iterator[str]:
    if not holders:
        return
    told = "1 other page contains" if len(holders) == 1 else f"{len(holders):,} other pages contain"
    yield f"\n{told} a part of the texts and will be kept, unless `--containing SHARE` denies them too:"
    yield ""
    rows = [[f"{one.held:.0%}", one.page.url, one.page.source] for one in holders[:MOST_HOLDERS]]
    yield from table_lines(["held", "page", "source"], rows, right=(0,))
    if len(holders) > MOST_HOLDERS:
        yield f"and {len(holders) - MOST_HOLDERS:,} more"


def _model_lines(layout: Layout, found: Findings) -> Iterator[str]:
    """Every finished model that was trained on one of the pages, with its names for people."""
    from pipeline.provenance.exposure import models_of, unexplained_models
    from pipeline.tracking.registry import registered_names

    assets = {layout.store / entry["folder"]: entry["asset"] for entry in all_entries(layout)}
    for directory, reason in unexplained_models(layout.store):
        name = assets.get(directory, f"{directory.parent.name}/{directory.name[:8]}")
        yield f"\nIt is unknown whether {name} was trained on them: {reason}."
    page_ids = [page.page_id for page in found.pages]
    models = [model for model in models_of(layout.store, page_ids=page_ids) if model.was_trained_on]
    if not models:
        yield "\nNo existing model was trained on them."
        return
    registered, rows = {}, []
    try:
        registered = registered_names(layout)
    except OSError as error:  # the deny list does not depend on MLflow
        yield f"\n{error}."
    what = "it" if len(found.pages) == 1 else "them"
    yield f"\nModels that were trained on {what}, and keep what they learned until they are trained again:"
    yield ""
    for model in models:
        steps = seen_steps(model).tolist()
        listed = ", ".join(f"{step:,}" for step in steps[:MOST_STEPS]) + (", ..." if len(steps) > MOST_STEPS else "")
        names = [assets.get(model.directory, f"{model.stage}/{model.fingerprint[:8]}")]
        names += registered.get(model.fingerprint, [])
        base = " (of its base)" if model.base else ""
        rows.append([", ".join(names), f"{len(steps):,} of {model.n_steps:,}: {listed}{base}"])
    yield from table_lines(["model", "training steps with a token of them"], rows)


def _assistant_lines(layout: Layout, found: Findings) -> Iterator[str]:
    """Every model that answers from one of the pages, and the copies of it that MLflow has."""
    from pipeline.provenance.assistants import holding_models
    from pipeline.tracking.registry import registered_names

    holding = holding_models(layout.store, [page.page_id for page in found.pages])
    if not holding:
        return
    assets = {layout.store / entry["folder"]: entry["asset"] for entry in all_entries(layout)}
    rows, registered = [], dict[str, list[str]]()
    with suppress(OSError):  # told above
        registered = registered_names(layout)
    for one in holding:
        names = [assets.get(one.directory, f"{one.directory.parent.name}/{one.fingerprint[:8]}")]
        rows.append([", ".join([*names, *registered.get(one.fingerprint, [])]), f"{one.n_passages:,}"])
    what, denied = ("it", "it is denied") if len(found.pages) == 1 else ("them", "they are denied")
    yield f"\nModels that answer from {what}. Their answers leave {what} out as soon as {denied},"
    yield "before anything is built again; copies that MLflow has keep the passages until they are registered anew:"
    yield ""
    yield from table_lines(["model", "passages"], rows, right=(1,))


def _next_run_lines(outputs: Known, found: Findings, new_tokenizer: bool) -> Iterator[str]:
    page_ids = [page.page_id for page in found.pages]
    rows = []
    for stage in map(output_of, SHARDED):
        for asset, handle in outputs.handles.items():
            n_shards, n_all = holding_shards(handle.directory, page_ids) if handle.stage == stage else (0, 0)
            if n_shards:
                rows.append([asset, f"{n_shards} of {n_all} shards; the others are cached"])
    if not rows:
        return
    later = {
        "corpus": "compared again, with cached signatures of the other documents",
        "tokenizer": "trained again" if new_tokenizer else "kept; it contains only counts of pairs from the texts",
        "token_shards": "encoded again" if new_tokenizer else "shuffled again",
    }
    later |= {asset: "shuffled again" for asset in outputs.handles if asset.startswith(OF_TOKENS.replace(BASE, ""))}
    rows += [[asset, text] for asset, text in later.items() if asset in outputs.handles]
    rows += [
        [asset, "without them; the vectors of all other passages are kept"]
        for asset, handle in outputs.handles.items()
        if handle.stage == output_of(OF_PASSAGES) and holding_shards(handle.directory, page_ids)[0]
    ]
    trained = [a for a, h in outputs.handles.items() if isinstance(h, Checkpoint) and h.stage != output_of(OF_BASE)]
    if trained:
        rows.append([", ".join(trained), "if the corpus changes"])
    yield "\nThe next run rebuilds:"
    yield ""
    yield from table_lines(["asset", "what"], rows)


def _tokenizer_line(layout: Layout, *, new: bool) -> str:
    """Keep the current tokenizer, or let the next run train a new one. Returns a description of what was done."""
    from pipeline.corpus.tokens.kept_tokenizer import keep_tokenizer, release_tokenizer

    if new:
        release_tokenizer(layout.kept_tokenizer)
        return "The next run trains a new tokenizer."
    if not any(entry["asset"] == "tokenizer" for entry in all_entries(layout)):
        return ""
    keep_tokenizer(layout.kept_tokenizer, layout.store, load_current(layout, "tokenizer"))
    return "The tokenizer is kept; with `gristmill forget --new-tokenizer` the next run trains a new one."


def _purge(layout: Layout, args: Namespace) -> int:
    """Remove everything that still contains texts of the deny list."""
    from pipeline.provenance.purge import find_holders
    from pipeline.provenance.quotations import find_quotations, remove_quotations
    from pipeline.store.disk import remove_garbage

    if args.what:
        raise ValueError(
            "--purge removes everything that contains a denied text; run it without URL_OR_ID, after a"
            " materialisation"
        )
    holders = find_holders(layout, keys_of(read_denials(layout.denied)))
    quotations = find_quotations(layout, holders.forgotten)
    print("\n".join(_purge_lines(layout, holders, quotations)))
    if not (holders.garbage.folders or quotations):
        return int(bool(holders.current))
    if args.dry_run or not (args.yes or agreed("\nRemove them? [y/N] ")):
        print("\nNothing was removed" + ("." if args.dry_run else "; --yes removes without asking."))
        return 0 if args.dry_run else 1
    remove_quotations(quotations, holders.forgotten)  # first: they are found by the texts in the outputs
    if kept := remove_garbage(layout, holders.garbage, even_for_retries=True):
        names = ", ".join(str(folder.relative_to(layout.data)) for folder in kept)
        raise ValueError(f"a running build uses {names}; the rest was removed; purge again when it has ended")
    print("\nRemoved. Your own files, fetched packages and trained models were not changed.")
    return int(bool(holders.current))


def _purge_lines(layout: Layout, holders: "Holders", quotations: "Quotations") -> Iterator[str]:
    from pipeline.tracking.server import is_local, shown_uri

    for folder, asset in holders.current.items():
        yield f"kept  {folder.relative_to(layout.data)}: current output of {asset} until that is materialised again"
    for path in (*holders.garbage.outputs, *holders.garbage.unfinished, *quotations.files):
        yield f"remove {path.relative_to(layout.data)}"
    for path, n_values in quotations.values.items():
        yield f"clear {count_text(n_values, 'quotation')} in {path.relative_to(layout.data)}"
    if holders.garbage.folders:
        n_parts = len(holders.garbage.parts)
        yield f"and {n_parts:,} cached shards; {size_text(holders.garbage.n_bytes)} in all"
    elif not quotations:
        yield "Nothing to remove" + ("; materialise the assets above first." if holders.current else ".")
    if not holders.forgotten.texts and holders.forgotten.ids:
        yield "No output contains the texts any more, so MLflow and Dagster were searched for ids of their documents."
    if not is_local(layout):
        yield f"{shown_uri(layout)} was not searched: delete there what quotes the texts, such as samples.md."


def _undo(layout: Layout, args: Namespace) -> int:
    """Remove rows from the deny list by address or id, with those that were denied because of them."""
    denied = read_denials(layout.denied)
    back: list[Denial] = []
    for query in args.what:
        if not (named := _rows_of(query, denied)):
            raise ValueError(f"no row of {layout.denied} has the address or id {query!r}; --list shows them")
        ids = {row.page_id for row in named if row.page_id}
        back += [row for row in denied if row in named or row.duplicate_of in ids]
    print("\n".join(_list_lines(layout, [row for row in denied if row in back])))
    if args.dry_run or not (args.yes or agreed(f"\nTake back {len(set(back))} of {len(denied)} rows? [y/N] ")):
        print("\nNothing was changed" + ("." if args.dry_run else "; --yes takes them back without asking."))
        return 0 if args.dry_run else 1
    change_denials(layout.denied, lambda rows: ([row for row in rows if row in back], []))
    print("\nTaken back; the next materialisation collects them again if they still exist.")
    return 0


def _list_lines(layout: Layout, denied: Sequence[Denial]) -> list[str]:
    if not denied:
        return [f"Nothing is denied in {layout.denied}."]
    what = [row.url or row.address or row.page_id or f"text {row.document_id}" for row in denied]
    rows = [[row.date, one, row.source or "every", row.reason] for row, one in zip(denied, what, strict=True)]
    return table_lines(["denied on", "page", "source", "why"], rows)
