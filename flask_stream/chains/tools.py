"""The agent's tools: a calculator, the time anywhere, and the user's own documents.

None of them needs the network. What goes wrong in one is told to the model as its result.
"""

from __future__ import annotations

import ast
import difflib
import math
import operator
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo, available_timezones

from langchain_core.tools import BaseTool, StructuredTool, tool

from ..errors import ConfigError
from .documents_index import Index

#: Characters of an expression, and digits of a number that a tool works with.
_LONGEST, _DIGITS = 500, 300

_BINARY: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_UNARY: dict[type[ast.unaryop], Callable[[float], float]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
_FUNCTIONS: dict[str, Callable[..., float]] = {
    name: getattr(math, name)
    for name in ("sqrt", "exp", "log", "log10", "log2", "sin", "cos", "tan", "floor", "ceil")
} | {"abs": abs, "round": round, "min": min, "max": max}
_NAMES = {"pi": math.pi, "e": math.e}


class _NoResult(ValueError):
    """What cannot be calculated, and why."""


@tool
def calculator(expression: str) -> str:
    """Calculate: numbers, + - * / // % **, brackets, sqrt, exp, log, sin, round, min, max, pi."""
    try:
        if len(expression) > _LONGEST:
            raise _NoResult(f"the expression has more than {_LONGEST} characters")
        return f"{_value(ast.parse(expression.strip(), mode='eval').body):.15g}"
    except (SyntaxError, ValueError, ArithmeticError, TypeError, RecursionError, MemoryError) as no:
        return f"This cannot be calculated: {no}."


def _value(node: ast.expr) -> float:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return _small(number)
        case ast.Name(id=name) if name in _NAMES:
            return _NAMES[name]
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            return _UNARY[type(op)](_value(operand))
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _power(_value(left), _value(right))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _small(_BINARY[type(op)](_value(left), _value(right)))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            return _small(_FUNCTIONS[name](*map(_value, args)))
    raise _NoResult("only numbers, their operators and the named functions are known")


def _power(base: float, exponent: float) -> float:
    if base and abs(exponent) * math.log10(abs(base) + 1) > _DIGITS:
        raise _NoResult("the result has too many digits")
    power = base**exponent
    if isinstance(power, complex):
        raise _NoResult("the result is no real number")
    return _small(power)


def _small(number: float) -> float:
    if isinstance(number, int) and number.bit_length() > _DIGITS * 4:
        raise _NoResult("a number has too many digits")
    return number


@tool
def time_in(zone: str = "UTC") -> str:
    """Tell the date and time now in a zone of the IANA database, such as Europe/Berlin."""
    zones = sorted(available_timezones())
    wanted = zone.strip().replace(" ", "_").lower()
    # By its whole name, or, as people say it, by its city.
    cities = {found.rpartition("/")[2].lower(): found for found in zones}
    name = {found.lower(): found for found in zones}.get(wanted) or cities.get(wanted)
    if name is None:
        likely = difflib.get_close_matches(wanted.rpartition("/")[2], cities, n=3)
        hint = f" Did you mean {', '.join(cities[city] for city in likely)}?" if likely else ""
        return f"There is no zone named {zone!r}.{hint}"
    now = datetime.now(ZoneInfo(name))
    return f"{now:%A, %d %B %Y, %H:%M:%S} ({name}, UTC{now:%z})"


def search_in(folder: str) -> BaseTool:
    """A tool that searches the Markdown and text files of a folder. Raises ConfigError."""
    path = Path(folder)
    if not path.is_dir():
        raise ConfigError("STREAM_DOCUMENTS", f"is {folder!r}, which is no folder")
    index = Index(path)

    def search(query: str) -> str:
        """Search the user's own documents for words. Answers with passages and their files."""
        found = index.search(query)
        if not found:
            return "Nothing was found. Try other words."
        return "\n\n".join(f"{hit.file} ({hit.title}):\n{hit.passage}" for hit in found)

    return StructuredTool.from_function(search, name="search_documents")
