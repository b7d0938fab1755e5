"""Tables and figures: medians of the rounds, and how they compare with the goals."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

from .contest import Result
from .field import BARE, OURS

#: By contestant: one result per round, or the reason why it did not run.
Results = dict[str, list[Result] | str]

HEAD = ("", "tokens/s", "x ours", "first p50", "first p99", "gap p99", "CPU s/M", "memory", "")


def summary(results: Results) -> list[dict[str, Any]]:
    """Return a row for each contestant, with medians of its rounds."""
    rows: list[dict[str, Any]] = []
    ours = results.get(OURS)
    yardstick = _middle(ours, lambda one: one.rate) if isinstance(ours, list) else 0.0
    for name, got in results.items():
        if isinstance(got, str):
            rows.append({"name": name, "said": got})
            continue
        rate = _middle(got, lambda one: one.rate)
        rows.append(
            {
                "name": name,
                "rounds": len(got),
                "tokens_per_second": rate,
                "least": min(one.rate for one in got),
                "most": max(one.rate for one in got),
                "to_ours": rate / yardstick if yardstick else None,
                "first_p50": _middle(got, lambda one: one.seen.first_p50),
                "first_p99": _middle(got, lambda one: one.seen.first_p99),
                "gap_p99": _middle(got, lambda one: one.seen.gap_p99),
                "cpu_per_million": _middle(got, lambda one: one.cpu / one.seen.tokens * 1e6),
                "store_cpu_per_million": _middle(
                    got, lambda one: one.store_cpu / one.seen.tokens * 1e6
                ),
                "memory": _middle(got, lambda one: one.memory),
                "whole": sum(one.seen.whole for one in got),
                "cut": sum(one.seen.cut for one in got),
            }
        )
    return rows


def _middle(results: Iterable[Result], what: Callable[[Result], float]) -> float:
    return median(what(one) for one in results)


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [_line(HEAD), _line(["---", *["---:"] * 7, "---"])]
    for row in rows:
        if "said" in row:
            lines.append(_line([row["name"], *[""] * 7, row["said"]]))
            continue
        notes = []
        if row["store_cpu_per_million"]:
            notes.append(f"and {row['store_cpu_per_million']:.1f} s/M of Valkey's")
        if row["cut"]:
            notes.append(f"{row['cut']} of {row['cut'] + row['whole']} streams cut off at the cap")
        to_ours = row["to_ours"]
        lines.append(
            _line(
                [
                    row["name"],
                    f"{row['tokens_per_second']:,.0f}",
                    f"{to_ours:.2f}" if to_ours else "",
                    _time(row["first_p50"]),
                    _time(row["first_p99"]),
                    _time(row["gap_p99"]),
                    f"{row['cpu_per_million']:.1f}",
                    f"{row['memory'] / 1e6:.0f} MB",
                    "; ".join(notes),
                ]
            )
        )
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


#: The goals at 50 streams: flask_stream on Valkey compared with another contestant, by model.
GOALS = (
    ("fake", "fastapi-sse", 5.0),
    ("fake", "fastapi-resumable-stream", 25.0),
    ("fake", BARE, 0.75),
    ("openai", BARE, 0.90),
)


def goals(model: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the goals that can be judged from these rows."""
    rates = {row["name"]: row["tokens_per_second"] for row in rows if "said" not in row}
    found = []
    for of, name, least in GOALS:
        if of == model and name in rates and OURS in rates:
            what = f"{OURS} to {name}, {model} model"
            found.append(goal(what, rates[OURS] / rates[name], least, at_least=True))
    if model == "fake" and "ours-sqlite" in rates and OURS in rates:
        ratio = rates["ours-sqlite"] / rates[OURS]
        found.append(goal(f"ours-sqlite to {OURS}, fake model", ratio, 1.0, at_least=True))
    return found


def goal(what: str, figure: float, limit: float, *, at_least: bool) -> dict[str, Any]:
    """Return a figure, its limit, and whether it is met."""
    met = figure >= limit if at_least else figure <= limit
    return {"what": what, "figure": figure, "limit": limit, "at_least": at_least, "met": met}


def told(goals: list[dict[str, Any]]) -> str:
    """Return the goals as a Markdown list; those that are missed say by how much."""
    lines = []
    for one in goals:
        sign = ">=" if one["at_least"] else "<="
        verdict = "met"
        if not one["met"]:
            verdict = f"missed by {abs(one['figure'] / one['limit'] - 1):.0%}"
        lines.append(f"- {one['what']}: {one['figure']:,.2f} ({sign} {one['limit']:,g}): {verdict}")
    return "\n".join(lines)
