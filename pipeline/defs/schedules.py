"""Schedules, both off until they are switched on under "Automation" in the Dagster UI."""

from collections.abc import Mapping

import dagster as dg

from pipeline.defs.jobs import Job

NIGHTLY = "0 2 * * *"
WEEKLY = "0 4 * * 0"  # Sunday; two hours after the nightly one, when the sources are collected


def schedules(jobs: Mapping[str, Job]) -> list[dg.ScheduleDefinition]:
    off = dg.DefaultScheduleStatus.STOPPED
    return [
        dg.ScheduleDefinition(
            name="nightly_corpus",
            job=jobs["build_corpus"],
            cron_schedule=NIGHTLY,
            default_status=off,
            description="At 2:00 UTC: collect all sources; unchanged outputs are not rebuilt.",
        ),
        dg.ScheduleDefinition(
            name="weekly_demo",
            job=jobs["demo"],
            cron_schedule=WEEKLY,
            default_status=off,
            description="On Sundays at 4:00 UTC: everything, up to the evaluations.",
        ),
    ]
