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
from .document_search import DocumentIndex

#: Characters of an expression, and bits of a whole number: as many as the largest float has.
_LONGEST, _BITS = 500, 1024
#: Decimal places beyond which rounding changes no number that there can be here.
_PLACES = 400
#: Characters of a zone's name that are looked for, where there is none of that name.
_NAME = 60

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
_NAMES = {"pi": math.pi, "e": math.e}


class _NoResult(ValueError):
    """What cannot be calculated, and why."""


def _round(number: float, places: float | None = None) -> float:
    if places is None:
        return round(number)
    if places != math.floor(places):
        raise _NoResult("round takes a whole number of places")
    return round(number, max(-_PLACES, min(int(places), _PLACES)))


#: What a name calculates, and of how many numbers: at least, and at most.
_FUNCTIONS: dict[str, tuple[Callable[..., float], int, int]] = {
    name: (getattr(math, name), 1, 1)
    for name in ("sqrt", "exp", "log10", "log2", "sin", "cos", "tan", "floor", "ceil")
} | {
    "log": (math.log, 1, 2),
    "abs": (abs, 1, 1),
    "round": (_round, 1, 2),
    "min": (lambda *numbers: min(numbers), 1, _LONGEST),
    "max": (lambda *numbers: max(numbers), 1, _LONGEST),
}


@tool
def calculator(expression: str) -> str:
    """Calculate: numbers, + - * / // % **, brackets, sqrt, exp, log, sin, round, min, max, pi."""
    try:
        number = _value(_parsed(expression))
    except _NoResult as no:
        return f"This cannot be calculated: {no}."
    except ZeroDivisionError:
        return "This cannot be calculated: it divides by zero."
    except OverflowError:
        return "This cannot be calculated: a number is too large."
    except ValueError:  # math's own, where a function has no value
        return "This cannot be calculated: a function has no real value there."
    except RecursionError:
        return "This cannot be calculated: the expression is nested too deeply."
    return str(number) if isinstance(number, int) else f"{number:.15g}"


def _parsed(expression: str) -> ast.expr:
    if len(expression) > _LONGEST:
        raise _NoResult(f"the expression has more than {_LONGEST} characters")
    try:
        return ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise _NoResult("it is no expression that can be read") from error
    except (RecursionError, MemoryError) as error:  # so the parser says that it is too deep
        raise _NoResult("the expression is nested too deeply") from error


def _value(node: ast.expr) -> float:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return _sound(number)
        case ast.Name(id=name) if name in _NAMES:
            return _NAMES[name]
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            return _UNARY[type(op)](_value(operand))
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _power(_value(left), _value(right))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _sound(_BINARY[type(op)](_value(left), _value(right)))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            function, least, most = _FUNCTIONS[name]
            if not least <= len(args) <= most:
                raise _NoResult(f"{name} does not take {len(args)} numbers")
            return _sound(function(*map(_value, args)))
    raise _NoResult("only numbers, their operators and the named functions are known")


def _power(base: float, exponent: float) -> float:
    whole = isinstance(base, int) and isinstance(exponent, int)
    # Whole numbers alone can grow without end, and be long on the way.
    if whole and abs(base) > 1 and exponent * (int(abs(base)).bit_length() - 1) > _BITS:
        raise _NoResult("the result has too many digits")
    power = base**exponent
    if isinstance(power, complex):
        raise _NoResult("the result is no real number")
    return _sound(power)


def _sound(number: float) -> float:
    """The number, if it is one that the next step can work with, and at once."""
    if isinstance(number, int):
        if number.bit_length() > _BITS:
            raise _NoResult("a number has too many digits")
    elif not math.isfinite(number):
        raise _NoResult("a number is too large")
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
        # What is much longer than any name is like none, and would take long to compare.
        likely = difflib.get_close_matches(wanted.rpartition("/")[2][:_NAME], cities, n=3)
        hint = f" Did you mean {', '.join(cities[city] for city in likely)}?" if likely else ""
        return f"There is no zone named {zone[:_NAME]!r}.{hint}"
    now = datetime.now(ZoneInfo(name))
    return f"{now:%A, %d %B %Y, %H:%M:%S} ({name}, UTC{now:%z})"


def search_in(folder: str) -> BaseTool:
    """A tool that searches the Markdown and text files of a folder. Raises ConfigError."""
    path = Path(folder)
    if not path.is_dir():
        raise ConfigError("STREAM_DOCUMENTS", f"is {folder!r}, which is no folder")
    index = DocumentIndex(path)

    def search(query: str) -> str:
        """Search the user's own documents for words. Answers with passages and their files."""
        found = index.search(query)
        if not found:
            return "Nothing was found. Try other words."
        return "\n\n".join(f"{hit.file} ({hit.title}):\n{hit.passage}" for hit in found)

    return StructuredTool.from_function(search, name="search_documents")
