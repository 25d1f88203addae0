"""`gristmill gc` removes delivered journals, and keeps what somebody may still need."""

from pipeline.cli import main
from pipeline.store.layout import Layout
from pipeline.store.records import Counts, Shards
from pipeline.store.shards import write_text
from pipeline.store.store import Outcome, Stage, Store
from pipeline.tracking.journal import FINISHED, KILLED, Journal, journals
from pipeline.tracking.pruning import prune_tracking
from pipeline.tracking.server import run_id_of, run_url
from pipeline.tracking.tracker import Tracker

GONE, KEPT, OPEN, WAITING, REFUSED = (letter * 32 for letter in "abcde")


def track(layout: Layout, fingerprint: str) -> None:
    tracker = Tracker(layout=layout, asset="moods_model", group="fine_tuning")
    tracker.started(fingerprint, {}, [])
    (layout.tracking / fingerprint / "curve.png").write_bytes(b"png" * 100)
    tracker.close(FINISHED)


def test_delivered_journals_are_pruned_and_their_links_work(layout):
    """The folder data/tracking grew for ever, and every tick of a sensor read all of it."""
    for fingerprint in (GONE, KEPT, OPEN, WAITING, REFUSED):
        track(layout, fingerprint)
    (layout.store / "finetune" / KEPT).mkdir(parents=True)
    Journal(layout, OPEN).update(status="RUNNING")
    Journal(layout, WAITING).append([{"do": "describe", "text": "x"}])
    Journal(layout, REFUSED).set_aside({"do": "describe", "text": "x"}, "refused")
    run, url = run_id_of(layout, GONE), run_url(layout, GONE, "http://host")
    assert prune_tracking(layout) > 600
    assert {journal.fingerprint for journal in journals(layout)} == {KEPT, OPEN, WAITING, REFUSED}
    pictures = {path.parent.name for path in layout.tracking.glob("*/curve.png")}
    assert pictures == {OPEN, WAITING, REFUSED}
    assert (run_id_of(layout, GONE), run_url(layout, GONE, "http://host")) == (run, url)
    assert prune_tracking(layout) == 0


def test_gc_prunes_nothing_before_it_is_told_to_remove(layout, monkeypatch, capsys):
    """Journals were removed, and the last line said "Nothing was removed" (own trials)."""
    monkeypatch.setenv("GRISTMILL_DATA", str(layout.data))
    write_text(layout.sources_toml, '[rye]\nkind = "files"\npath = "rye"\nlicence = "mine"\n')
    write_text(layout.tasks_toml, "")
    write_text(layout.data / "rye" / "field.txt", "Rye.")
    outcome = Outcome(rows=0, counts=Counts(rows_in=0, kept=0))
    for version in range(6):  # the newest outputs of a stage may be kept
        stage = Stage(name="grind", version=version, function=lambda *_: outcome, handle=Shards)
        Store(root=layout.store).build(stage, {})
    track(layout, GONE)
    assert main(["gc"]) == 0
    assert "Nothing was removed" in capsys.readouterr().out
    assert GONE in {journal.fingerprint for journal in journals(layout)}
    assert main(["gc", "--yes"]) == 0
    assert "of delivered journals" in capsys.readouterr().out
    assert GONE not in {journal.fingerprint for journal in journals(layout)}


def test_pruned_run_is_continued_by_a_build_of_the_same_fingerprint(layout):
    track(layout, GONE)
    before = run_id_of(layout, GONE)
    prune_tracking(layout)
    tracker = Tracker(layout=layout, asset="moods_model", group="fine_tuning")
    tracker.started(GONE, {}, [])
    tracker.close(KILLED)
    assert run_id_of(layout, GONE) == before
