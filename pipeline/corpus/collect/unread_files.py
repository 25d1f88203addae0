"""The check that a page was made of every file that should have some: data sets, tables, dumps, mailboxes, archives.

In: the output of `collect`. Out: a verdict whose details name the first of the other files, with what was found in
them. Pictures, programs and the like are not among them: no page is expected of these.
"""

from pipeline.store.records import FAILED_AGAIN, Shards
from pipeline.store.shards import DROPPED_FOLDER, read_table, shard_paths
from pipeline.store.store import read_record
from pipeline.store.verdict import Verdict

# reasons of a file of which no page could be made although its name promises some
FAULTS = ("unreadable", "no_text_key", "too_large", "broken_archive", "timeout", "crash", "out_of_memory", "error")
MEASURE = "files_without_pages"
MOST_NAMED = 5


def unread_files(pages: Shards) -> Verdict:
    n_unread = ((read_record(pages.directory) or {})["measures"]).get(MEASURE, 0)
    named: dict[str, str] = {}
    for path in shard_paths(pages.directory, DROPPED_FOLDER) if n_unread else []:
        for row in read_table(path, columns=["url", "reason", "preview"]).to_pylist():
            if row["reason"].removeprefix(FAILED_AGAIN) in FAULTS and len(named) < MOST_NAMED:
                named.setdefault(row["url"].partition("#")[0], f"{row['reason']}: {row['preview']}")
    return Verdict(passed=not n_unread, rule="files without a page = 0", observed=n_unread, limit=0, details=named)
