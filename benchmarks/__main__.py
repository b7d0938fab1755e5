"""`python -m benchmarks`: how fast it is, beside others, in one run.

The server has one core, the client, the provider and Valkey the other. Every figure is the
median of the rounds; in each round every contestant is started anew, one after another. A row
whose text was not the model's, word for word, is an error and not a figure.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any

from .contest import Terms
from .fanout import fanout
from .field import FIELD, OURS
from .processes import raise_limits
from .race import ceilings, race
from .replay import replay
from .report import goal, goals, summary, table, told
from .viewers import viewers


def main() -> None:
    """Measure, print tables, write JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", default="1,50,200", help="how many are kept open at once")
    parser.add_argument("--tokens", type=int, default=500, help="of each stream")
    parser.add_argument("--cap", type=float, default=8.0, help="seconds of one measurement")
    parser.add_argument(
        "--models",
        default="fake,openai,alone",
        help="fake: prompt | model | parser; openai: ChatOpenAI in the model's place; "
        "alone: the fake model as the whole chain",
    )
    parser.add_argument("--only", default="", help="names of contestants, separated by commas")
    parser.add_argument("--parts", default="race,viewers,replay,fanout")
    parser.add_argument("--quick", action="store_true", help="one round, 50 streams")
    parser.add_argument("--json", default="benchmarks.json", help="where to write all figures")
    given = parser.parse_args()
    if given.quick:
        given.rounds, given.streams = 1, "50"
    raise_limits()
    only = [name for name in given.only.split(",") if name]
    field = [one for one in FIELD if not only or one.name in only]
    streams = [int(count) for count in given.streams.split(",")]
    parts = given.parts.split(",")
    report: dict[str, Any] = {"python": platform.python_version(), "rounds": given.rounds}
    reached: list[dict[str, Any]] = []

    if "race" in parts:
        report["client"] = ceilings(given.tokens, 50)
        say(f"The client alone reads, in tokens/s: {rounded(report['client'])}\n")
        for model in given.models.split(","):
            found = race(field, model, given.rounds, Terms(given.tokens, streams, given.cap))
            for count, results in found.items():
                rows = summary(results)
                report[f"{model}, {count} streams"] = rows
                head = f"## {model}, {count} streams of {given.tokens} tokens"
                say(f"{head}\n\n{table(rows)}\n")
                if count == 50:
                    reached += goals(model, rows)
    if "viewers" in parts:
        report["viewers"] = figures = viewers()
        say(f"Memory of an open viewer of a silent run, in KB: {rounded(figures)}\n")
        reached.append(goal("KB of an open viewer", figures[OURS], 30, at_least=False))
    if "replay" in parts:
        report["replay"] = figures = replay()
        say(f"Replay of finished runs of 1,000 events, in events/s: {rounded(figures)}\n")
        least = min(figures.values())
        reached.append(goal("events/s of a replay", least, 100_000, at_least=True))
    if "fanout" in parts:
        report["fanout"] = figures = fanout()
        say(f"CPU of a viewer and event, 2,000 viewers, in µs: {rounded(figures)}\n")
        reached.append(goal("µs of a viewer and event", figures[OURS], 40, at_least=False))
    report["goals"] = reached
    say(f"## What was to be reached\n\n{told(reached)}")
    Path(given.json).write_text(json.dumps(report, indent=1) + "\n")


def rounded(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {figure:,.1f}" for name, figure in figures.items())


def say(text: str) -> None:
    print(text, flush=True, file=sys.stdout)


if __name__ == "__main__":
    main()
