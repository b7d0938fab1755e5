"""The agent's tools: a calculator, the time in any zone, and a search of the user's documents.

None of them needs the network. Their errors are results for the model, not exceptions.
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

#: The maximum characters of an expression, and bits of an integer: those of the largest float.
_MAX_LENGTH, _MAX_BITS = 500, 1024
#: The maximum decimal places of `round`. More would not change any possible number.
_MAX_PLACES = 400
#: The maximum characters of an unknown zone's name that are compared and repeated.
_MAX_NAME = 60

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


class _CalculationError(ValueError):
    """An expression cannot be calculated. The message says why."""


def _round(number: float, places: float | None = None) -> float:
    if places is None:
        return round(number)
    if places != math.floor(places):
        raise _CalculationError("round needs a whole number of places")
    return round(number, max(-_MAX_PLACES, min(int(places), _MAX_PLACES)))


#: Function name → the function, and the minimum and maximum number of its arguments.
_FUNCTIONS: dict[str, tuple[Callable[..., float], int, int]] = {
    name: (getattr(math, name), 1, 1)
    for name in ("sqrt", "exp", "log10", "log2", "sin", "cos", "tan", "floor", "ceil")
} | {
    "log": (math.log, 1, 2),
    "abs": (abs, 1, 1),
    "round": (_round, 1, 2),
    "min": (lambda *numbers: min(numbers), 1, _MAX_LENGTH),
    "max": (lambda *numbers: max(numbers), 1, _MAX_LENGTH),
}


@tool
def calculator(expression: str) -> str:
    """Calculate: numbers, + - * / // % **, brackets, sqrt, exp, log, sin, round, min, max, pi."""
    try:
        number = _value(_parsed(expression))
    except _CalculationError as error:
        return f"This cannot be calculated: {error}."
    except ZeroDivisionError:
        return "This cannot be calculated: it divides by zero."
    except OverflowError:
        return "This cannot be calculated: a number is too large."
    except ValueError:  # raised by a function of `math` that is not defined there
        return "This cannot be calculated: a function has no real value there."
    except RecursionError:
        return "This cannot be calculated: the expression is nested too deeply."
    return str(number) if isinstance(number, int) else f"{number:.15g}"


def _parsed(expression: str) -> ast.expr:
    if len(expression) > _MAX_LENGTH:
        raise _CalculationError(f"the expression has more than {_MAX_LENGTH} characters")
    try:
        return ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise _CalculationError("it is not a valid expression") from error
    except (RecursionError, MemoryError) as error:  # raised by the parser
        raise _CalculationError("the expression is nested too deeply") from error


def _value(node: ast.expr) -> float:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return _checked(number)
        case ast.Name(id=name) if name in _NAMES:
            return _NAMES[name]
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            return _UNARY[type(op)](_value(operand))
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _power(_value(left), _value(right))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _checked(_BINARY[type(op)](_value(left), _value(right)))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            function, minimum, maximum = _FUNCTIONS[name]
            if not minimum <= len(args) <= maximum:
                raise _CalculationError(f"{name} does not accept {len(args)} numbers")
            return _checked(function(*map(_value, args)))
    raise _CalculationError("only numbers, operators and the named functions are allowed")


def _power(base: float, exponent: float) -> float:
    whole = isinstance(base, int) and isinstance(exponent, int)
    # Only integers can become arbitrarily large, which would take a long time.
    if whole and abs(base) > 1 and exponent * (int(abs(base)).bit_length() - 1) > _MAX_BITS:
        raise _CalculationError("the result has too many digits")
    power = base**exponent
    if isinstance(power, complex):
        raise _CalculationError("the result is not a real number")
    return _checked(power)


def _checked(number: float) -> float:
    """Return the number. Raise _CalculationError if it is infinite, not a number, or too large."""
    if isinstance(number, int):
        if number.bit_length() > _MAX_BITS:
            raise _CalculationError("a number has too many digits")
    elif not math.isfinite(number):
        raise _CalculationError("a number is too large")
    return number


@tool
def time_in(zone: str = "UTC") -> str:
    """Return the current date and time in a zone of the IANA database, such as Europe/Berlin."""
    zones = sorted(available_timezones())
    wanted = zone.strip().replace(" ", "_").lower()
    # Accepts the full name, or the city alone.
    cities = {name.rpartition("/")[2].lower(): name for name in zones}
    found = {name.lower(): name for name in zones}.get(wanted) or cities.get(wanted)
    if found is None:
        # Shortened: a very long name resembles no zone and would take a long time to compare.
        likely = difflib.get_close_matches(wanted.rpartition("/")[2][:_MAX_NAME], cities, n=3)
        hint = f" Did you mean {', '.join(cities[city] for city in likely)}?" if likely else ""
        return f"There is no zone named {zone[:_MAX_NAME]!r}.{hint}"
    now = datetime.now(ZoneInfo(found))
    return f"{now:%A, %d %B %Y, %H:%M:%S} ({found}, UTC{now:%z})"


def search_in(folder: str) -> BaseTool:
    """Return a tool that searches a folder. Raises ConfigError if the folder does not exist."""
    path = Path(folder)
    if not path.is_dir():
        raise ConfigError("STREAM_DOCUMENTS", f"is {folder!r}, which is not a folder")
    index = DocumentIndex(path)

    def search(query: str) -> str:
        """Search the user's own documents for words. Returns passages and their files."""
        hits = index.search(query)
        if not hits:
            return "Nothing was found. Try other words."
        return "\n\n".join(f"{hit.file} ({hit.title}):\n{hit.passage}" for hit in hits)

    return StructuredTool.from_function(search, name="search_documents")
