"""Checks of what a user gives. Each raises with the name, what was expected, what came and what to do.

Imports no NumPy: those of arrays are in `array_checks`.
"""

import math
import numbers
from collections.abc import Sequence
from typing import Any

from tfp_cvae.archive import one_line

# Longest name of a class or a data set.
LONGEST_NAME = 200


def integer(name: str, value: Any, minimum: int, below: int = 2**63) -> int:
    """Returns `value` if it is an integer in [minimum, below), else raises TypeError or ValueError."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}: expected an integer >= {minimum}, got {shown(value)} of type {type(value).__name__}")
    if int(value) < minimum:
        raise ValueError(f"{name}: expected an integer >= {minimum}, got {shown(value)}")
    if int(value) >= below:
        most = "2**63" if below == 2**63 else below
        raise ValueError(f"{name}: expected an integer >= {minimum} and < {most}, got {shown(value)}")
    return int(value)


def choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raises ValueError if `value` is not one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {shown(value)}")


def number(name: str, value: Any, minimum: float, below: float = math.inf, *, above: bool = False) -> float:
    """Returns `value` if it is a finite number in [minimum, below), else raises likewise; `above` excludes minimum."""
    expected = f"a number {'>' if above else '>='} {minimum:g}" + (f" and < {below:.10g}" if below < math.inf else "")
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected {expected}, got {shown(value)} of type {type(value).__name__}")
    try:
        given = float(value)
    except OverflowError:
        given = math.inf
    if not minimum <= given < below or (above and given == minimum):
        if given == math.inf:
            expected = expected.replace("a number", "a finite number")
        raise ValueError(f"{name}: expected {expected}, got {shown(value)}")
    return given


def seed(name: str, value: Any) -> int:
    """Returns `value` if it is an integer in [0, 2**31), else raises TypeError or ValueError."""
    return integer(name, value, 0, below=2**31)


def num_samples(name: str, value: Any) -> int:
    """Returns a number of samples for each image if it is an integer in [1, 2**31), else raises likewise."""
    return integer(name, value, 1, below=2**31)


def kind(name: str, value: Any, expected: type) -> None:
    """Raises TypeError if `value` is not an instance of `expected`."""
    if not isinstance(value, expected):
        raise TypeError(f"{name}: expected a {expected.__name__}, got {shown(value)} of type {type(value).__name__}")


def class_name(source: str, value: str) -> None:
    """Checks that the name of a class can be printed, and is not endless."""
    if not value.isprintable() or not 1 <= len(value) <= LONGEST_NAME:
        raise ValueError(
            f"{source}: class_names: expected 1 to {LONGEST_NAME} printable characters, "
            f"got {one_line(repr(value), 100)}; rename the class"
        )


def shown(value: Any) -> str:
    """What came, for a message."""
    if type(value).__module__.startswith("numpy") and getattr(value, "size", 0) > 9:
        return f"an array of {value.dtype} {list(value.shape)}"
    try:
        return one_line(repr(value))
    except ValueError:  # An integer of more digits than Python prints.
        return "one of thousands of digits"
