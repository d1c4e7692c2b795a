"""A sweep's progress as a line for people and as a record for programs."""

from __future__ import annotations

from typing import Any

from dpexplore.experiments.sweep import SweepReport


def progress_text(report: SweepReport) -> str:
    """One line: how many problems are done, how fast, how long it will take."""
    of = f" (model {report.model_number} of {report.models})" if report.models > 1 else ""
    if not report.total:
        return f"{report.sweep}: preparing {report.model}{of}"
    rate = f", {report.per_minute:.1f} a minute" if report.per_minute else ""
    left = f", {duration(report.seconds_left)} left" if report.seconds_left is not None else ""
    return f"{report.sweep}, {report.model}{of}: {report.done:,} of {report.total:,} problems{rate}{left}"


def progress_event(report: SweepReport) -> dict[str, Any]:
    """The same for a program."""
    fields = (
        "sweep",
        "model",
        "model_number",
        "models",
        "total",
        "done",
        "before",
        "rows",
        "per_minute",
        "seconds_left",
    )
    return {"event": "progress", **{name: getattr(report, name) for name in fields}}


def duration(seconds: float) -> str:
    """Rounded the way a person would: 40 s, 12 min, 3.5 h, 2.1 days."""
    for limit, unit, size, digits in ((90, "s", 1, 0), (90 * 60, "min", 60, 0), (36 * 3600, "h", 3600, 1)):
        if seconds < limit:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds / 86400:.1f} days"
