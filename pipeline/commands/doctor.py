"""`gristmill doctor`: finds what crashes and user errors left behind, and repairs what it can.

In: a layout. Out: findings, one per row: runs in Dagster and MLflow whose process is gone (repaired: they are closed
as failed or cancelled, so that nothing runs in the UI for ever), runs that wait for a daemon that is not running,
damaged files (doctor_files.py), invalid settings, ports, disk space, versions. One failing check does not keep the
others from running.
"""

import importlib.metadata
import sys
import tomllib
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.commands.doctor_files import (
    check_databases,
    check_disk,
    check_handles,
    check_journals,
    check_outputs,
)
from pipeline.commands.findings import BAD, MENDED, OK, WARNING, Finding, Visit
from pipeline.commands.tables import count_text, table_lines
from pipeline.store.errors import CorruptShard
from pipeline.store.faults import advised
from pipeline.store.layout import layout_from_environment
from pipeline.store.redaction import redacted
from pipeline.tracking.journal import journals
from pipeline.tracking.refusals import AWAY, LOGIN, REFUSED, reason_of

CURES = {  # what to do about events for MLflow, by the failure (pipeline/tracking/refusals.py)
    AWAY: "start that server or mend the fault, then run `gristmill doctor` again, which sends them",
    LOGIN: "correct MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or the login in MLFLOW_TRACKING_URI",
    REFUSED: "mend what it names, then run `gristmill doctor` again, which sends them",
    "part": "the rest of the run is recorded; delete refused.jsonl if this may be missing, in",
}


def run(args: Namespace) -> int:
    """Print the findings. Returns 1 if something is left that a person must fix."""
    asked = {name: getattr(args, name) for name in ("mend", "verify", "remove_damaged")}
    visit = Visit(layout=layout_from_environment(), **asked, closed_hosts=tuple(args.closed_host))
    findings = list(examine(visit))
    print("\n".join(table_lines(["check", "state", "what"], findings)))
    return int(any(finding.state == BAD for finding in findings))


def examine(visit: Visit) -> Iterator[Finding]:
    """All findings; each check returns at least one row."""
    checks: list[Callable[[Visit], Iterator[Finding]]] = [
        check_python,
        check_packages,
        check_disk,
        check_ports,
        check_handles,
        check_outputs,
        check_settings,
        check_databases,
        check_dagster_runs,
        check_journals,
        check_mlflow_addresses,
        check_mlflow_runs,
        check_champions,
    ]
    for check in checks:
        yield from (one._replace(detail=redacted(one.detail)) for one in _findings(check, visit))


def _findings(check: Callable[[Visit], Iterator[Finding]], visit: Visit) -> Iterator[Finding]:
    """What a check finds; an error ends only this check, because the next ones do not depend on it."""
    try:
        yield from check(visit)
    except Exception as error:
        name = check.__name__.removeprefix("check_").replace("_", " ")
        text = advised(f"{type(error).__name__}: {error}", visit.layout)
        yield Finding(name, BAD, text.removeprefix(f"{CorruptShard.__name__}: "))


def check_python(visit: Visit) -> Iterator[Finding]:
    from packaging.specifiers import SpecifierSet

    wanted = importlib.metadata.metadata("gristmill")["Requires-Python"]
    version = ".".join(map(str, sys.version_info[:3]))
    state = OK if SpecifierSet(wanted).contains(version) else BAD
    yield Finding("Python", state, f"{version}, wanted {wanted}")


def check_packages(visit: Visit) -> Iterator[Finding]:
    """Whether what pyproject.toml requires is installed; `pip check` does not know a file that changed since."""
    from packaging.requirements import Requirement

    requirements, is_right = [Requirement(text) for text in _dependencies()], True
    for one in requirements:
        found = next(iter(importlib.metadata.distributions(name=one.name)), None)
        if found is None or not one.specifier.contains(found.version, prereleases=True):
            is_right, version = False, found.version if found else "missing"
            detail = f"{version}, wanted {one.specifier}; run `make clean` and `make demo`"
            yield Finding(f"package {one.name}", BAD, detail)
    if is_right:
        yield Finding("packages", OK, f"{len(requirements)} as pyproject.toml requires them")


def check_ports(visit: Visit) -> Iterator[Finding]:
    from pipeline.commands.ui import require_free_port

    for name, port in zip(("dagster", "mlflow"), visit.ports, strict=True):
        try:
            require_free_port(name, port)
            yield Finding(f"port {port}", OK, f"free for {name}")
        except OSError as error:
            yield Finding(f"port {port}", WARNING, f"{error}, unless it is `gristmill ui`")


def check_settings(visit: Visit) -> Iterator[Finding]:
    """Whether sources.toml, tasks.toml and config.toml define a graph, and the files that they name exist."""
    try:
        from pipeline.commands.planning import plan
        from pipeline.definitions import definitions

        graph = definitions(visit.layout)
    except Exception as error:  # the doctor reports any error that keeps the graph from loading
        yield Finding("settings", BAD, " ".join(str(error).split()))
        return
    try:
        faults = [one.fault for one in plan(visit.layout, graph) if one.fault]
    except CorruptShard:  # `check_outputs` reports it
        faults = []
    yield from (Finding("settings", BAD, fault) for fault in faults)
    if not faults:
        n_assets = len(graph.resolve_asset_graph().materializable_asset_keys)
        yield Finding("settings", OK, f"a graph of {n_assets} assets")


def check_dagster_runs(visit: Visit) -> Iterator[Finding]:
    """Runs that can never end, because their process is gone."""
    if not (visit.layout.dagster_home / "dagster.yaml").exists():
        yield Finding("Dagster runs", OK, "none yet")
        return
    from pipeline.defs.instance import open_instance

    with open_instance(visit.layout) as instance:
        findings = list(_dagster_findings(instance, visit))
    yield from findings or [Finding("Dagster runs", OK, "none is stuck")]


def check_mlflow_addresses(visit: Visit) -> Iterator[Finding]:
    """Addresses in MLflow's database that name the folder from which this data folder was copied or moved."""
    from pipeline.tracking.relocation import moved_from, relocate

    former, check = moved_from(visit.layout), "MLflow addresses"
    if former is None:
        yield Finding(check, OK, "none points outside the data folder")
    elif visit.mend:
        n_changed = relocate(visit.layout)
        yield Finding(check, MENDED, f"{n_changed} named {former}; they now name {visit.layout.data}")
    else:
        detail = f"some name {former}, from where this folder was copied or moved; run `gristmill doctor`"
        yield Finding(check, BAD, detail)


def check_mlflow_runs(visit: Visit) -> Iterator[Finding]:
    """Runs whose build died, and events that builds could not deliver while the server was down."""
    from pipeline.tracking.delivery import dead_runs, end_dead_runs

    dead = dead_runs(visit.layout, visit.closed_hosts)
    if dead and visit.mend:
        end_dead_runs(visit.layout, closed_hosts=visit.closed_hosts)
    state, done = (MENDED, "closed as failed") if visit.mend else (BAD, "run `gristmill doctor` to close it")
    for fingerprint in dead:
        yield Finding(f"MLflow run of {fingerprint[:8]}", state, f"its process is gone; {done}")
    elsewhere = {one.fingerprint: host for one in journals(visit.layout) if (host := one.other_host())}
    for fingerprint, host in elsewhere.items():
        if fingerprint not in dead:
            yield Finding(f"MLflow run of {fingerprint[:8]}", WARNING, f"RUNNING {_elsewhere(host)}")
    if not (dead or elsewhere):
        yield Finding("MLflow runs", OK, "none is stuck")
    yield from _journal_findings(visit)


def _journal_findings(visit: Visit) -> Iterator[Finding]:
    """Events that wait for MLflow, by the reason, and events that MLflow refuses for good, which are tried again."""
    from pipeline.tracking.delivery import send_pending, waiting_events
    from pipeline.tracking.server import shown_uri

    found = send_pending(visit.layout, retry_refused=True) if visit.mend else waiting_events(visit.layout)
    waiting = list(found.values())
    for failure, reason in sorted({(one.failure, one.reason) for one in waiting}):
        n_events = [one.n_events for one in waiting if (one.failure, one.reason) == (failure, reason)]
        counted = f"{count_text(sum(n_events), 'event')} of {count_text(len(n_events), 'build')} wait and are kept"
        yield Finding("MLflow journal", WARNING, f"{counted}: {shown_uri(visit.layout)}: {reason}; {CURES[failure]}")
    for journal in journals(visit.layout):
        if refused := journal.refused():
            reasons = list(dict.fromkeys(reason for _, reason in refused))
            others = f" (and {len(reasons) - 1} other reasons)" if len(reasons) > 1 else ""
            name = journal.state().get("start", {}).get("name", journal.fingerprint[:8])
            detail = f"MLflow refuses {count_text(len(refused), 'event')}: {reasons[0]}{others}; {CURES['part']}"
            yield Finding(f"MLflow run {name}", WARNING, f"{detail} {journal.folder}")


def check_champions(visit: Visit) -> Iterator[Finding]:
    """Registered models whose code imports modules of this repository, which may have moved since."""
    from pipeline.tracking.registry import outdated_champions, register_again
    from pipeline.tracking.server import has_database

    try:
        found = list(outdated_champions(visit.layout)) if has_database(visit.layout) else []
    except Exception as error:  # of the server, the network or a damaged artifact
        yield Finding("registered models", WARNING, f"could not be checked: {reason_of(error)}")
        return
    for one in found:
        check = f"registered model {one.name} {one.version.version}"
        detail = "its code imports modules of an earlier version of gristmill"
        if not visit.mend:
            yield Finding(check, BAD, f"{detail}; run `gristmill doctor` to register it again")
            continue
        try:
            number = register_again(visit.layout, one)
            yield Finding(check, MENDED, f"{detail}; registered again as version {number}")
        except ValueError as error:
            yield Finding(check, BAD, f"{detail}; {error}")
    if not found:
        yield Finding("registered models", OK, "every champion has its own code")


def _elsewhere(host: str | None) -> str:
    return (
        f"on {host}, which is not this machine, so that its process cannot be seen; if that machine or container is"
        f" gone, `gristmill doctor --closed-host {host}` closes its runs"
    )


def _dagster_findings(instance: Any, visit: Visit) -> Iterator[Finding]:
    from dagster import DagsterRunStatus, RunsFilter

    from pipeline.defs.run_process import (
        HOST_TAG,
        PID_TAG,
        free_slots_of_dead_runs,
        is_elsewhere,
        is_gone,
        is_recorded,
        never_began,
    )

    status = DagsterRunStatus
    active = [status.STARTING, status.STARTED, status.CANCELING]
    for run in instance.get_runs(RunsFilter(statuses=active)):
        tags, check = run.tags, f"Dagster run {run.run_id[:8]}"
        if is_gone(tags, visit.closed_hosts):
            detail = f"{run.status.value}, but its process {tags[PID_TAG]} is gone"
        elif is_elsewhere(tags):
            yield Finding(check, WARNING, f"{run.status.value} {_elsewhere(tags.get(HOST_TAG))}")
            continue
        elif is_recorded(tags):
            continue
        elif never_began(instance, run.run_id):
            detail = f"{run.status.value}, but its process ended before it recorded itself"
        else:
            detail = f"{run.status.value}, and its process was not recorded; if it is stuck, terminate it in the UI"
            yield Finding(check, WARNING, detail)
            continue
        if not visit.mend:
            yield Finding(check, BAD, f"{detail}; run `gristmill doctor` to close it")
            continue
        cancelled = run.status == status.CANCELING
        report = instance.report_run_canceled if cancelled else instance.report_run_failed
        report(run, f"gristmill doctor: {detail}")
        done = "closed as cancelled" if cancelled else "closed as failed; start it again"
        yield Finding(check, MENDED, f"{detail}; {done}")
    if visit.mend:
        free_slots_of_dead_runs(instance)
    queued = instance.get_runs(RunsFilter(statuses=[status.QUEUED]))
    if queued and not _daemon_lives(instance):
        detail = f"{len(queued)} QUEUED, and no daemon runs to start them; `make ui` starts one, or cancel them there"
        yield Finding("Dagster queue", WARNING, detail)


def _daemon_lives(instance: Any) -> bool:
    statuses = instance.get_daemon_statuses(["QUEUED_RUN_COORDINATOR"])
    return all(status.healthy for status in statuses.values())


def _dependencies() -> list[str]:
    """The requirements in pyproject.toml of the checkout, else those of the installed package."""
    path = Path(__file__).resolve().parents[2] / "pyproject.toml"
    if path.exists():
        return tomllib.loads(path.read_text("utf-8"))["project"]["dependencies"]
    return [text for text in importlib.metadata.requires("gristmill") or [] if "extra ==" not in text]
