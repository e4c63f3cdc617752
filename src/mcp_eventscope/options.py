"""The types and ranges of options, and the errors for other values.

Each check takes the name under which the user gave the value: an argument, or an environment variable. No error repeats
a text that may be a secret.
"""

import inspect
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from math import inf

_NUMERIC = re.compile(r"[-+]?[0-9._]{1,20}|[-+]?(inf|infinity|nan)|", re.IGNORECASE)
"""A text that is meant as a number, or empty: an error may repeat it."""
_METHODS = ("info", "warning", "error")


@dataclass(frozen=True, slots=True)
class Number:
    """The type and range of a numeric option."""

    unit: str
    """The unit in the plural; "" for a number without one."""
    least: float
    """Minimum."""
    most: float = inf
    """Maximum; `inf` admits infinity, unless the number is whole."""
    whole: bool = False
    """Whether it must be an int."""
    none: str = ""
    """The meaning of None; "": None is refused."""
    fix: str = "leave it out for the default"
    """The remedy in the error for a value that is out of range."""

    @property
    def type(self) -> str:
        """The type in words."""
        return f"{'a whole number' if self.whole else 'a number'}{f' of {self.unit}' if self.unit else ''}"

    @property
    def range(self) -> str:
        """The range in words."""
        unit = f" {self.unit}" if self.unit else ""
        if self.most == inf:
            return f"at least {_shown(self.least)}{unit}"
        return f"between {_shown(self.least)} and {_shown(self.most)}{unit}"

    def check(self, option: str, value: object) -> None:
        """Validate a value.

        Args:
            option: The name in the error.
            value: The value.

        Raises:
            TypeError: It has another type.
            ValueError: It is out of range, or not a number (NaN).
        """
        if value is None and self.none:
            return
        otherwise = f" or None ({self.none})" if self.none else ""
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            msg = f"{option} must be {self.type}{otherwise}, got {given(value)}; {self._conversion(value)}"
            raise TypeError(msg)
        if not self.least <= value <= self.most:
            msg = f"{option} must be {self.range}{otherwise}, got {value!r}; {self.fix}"
            raise ValueError(msg)

    def _conversion(self, value: object) -> str:
        """The remedy for a value of another type."""
        convert = "int" if self.whole else "float"
        if isinstance(value, timedelta):
            return f"convert it with {convert}(….total_seconds())"
        if isinstance(value, str) and not _NUMERIC.fullmatch(value):
            return f"write a number{f' of {self.unit}' if self.unit else ''}, without a unit"
        return f"convert it with {convert}()"

    def expected(self) -> str:
        """The type and range in words, without those of None."""
        if not self.whole:
            return self.range
        return f"a whole number {'of ' if self.most == inf else ''}{self.range}"


def given(value: object) -> str:
    """A value as an error may repeat it: a number as it is, anything else by its type."""
    if value is None or isinstance(value, bool | int | float) or (isinstance(value, str) and _NUMERIC.fullmatch(value)):
        return repr(value)
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def check_type(option: str, value: object, kind: type, expected: str, fix: str) -> None:
    """Validate the type of a value.

    Args:
        option: The name in the error.
        value: The value.
        kind: The type.
        expected: The type in words.
        fix: The remedy.

    Raises:
        TypeError: It has another type.
    """
    if not isinstance(value, kind):
        msg = f"{option} must be {expected}, got {given(value)}; {fix}"
        raise TypeError(msg)


def check_flag(option: str, value: object) -> None:
    """Validate an option that is on or off.

    Args:
        option: The name in the error.
        value: The value.

    Raises:
        TypeError: It is not a bool.
    """
    check_type(option, value, bool, "True or False", "convert it with bool()")


def check_text(option: str, value: object, example: str, fix: str) -> None:
    """Validate a text, which must not be blank.

    Args:
        option: The name in the error.
        value: The value.
        example: A valid value, or a description of one.
        fix: The remedy for a blank one.

    Raises:
        TypeError: It is not a string.
        ValueError: It is blank, or no Unicode.
    """
    if not isinstance(value, str):
        msg = f"{option} must be a string such as {example}, got {given(value)}; convert it with str()"
        raise TypeError(msg)
    if not value.strip():
        msg = f"{option} must not be empty, got {value!r}; {fix}"
        raise ValueError(msg)
    check_unicode(option, value)


def check_unicode(option: str, text: str) -> None:
    """Validate that a text can be sent to Redis. A variable with bytes that are no UTF-8 has surrogates instead.

    Args:
        option: The name in the error.
        text: The value.

    Raises:
        ValueError: It has surrogates.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        msg = f"{option} must be valid Unicode, got bytes that are no UTF-8; correct the encoding of the text"
        raise ValueError(msg) from None


def check_logger(option: str, logger: object) -> None:
    """Validate that a logger has structlog's interface.

    Args:
        option: The name in the error.
        logger: The logger.

    Raises:
        TypeError: It lacks a method, or a method accepts no fields.
    """
    fix = (
        "pass structlog.get_logger(), structlog.wrap_logger(logger) around one of the standard library, "
        "or None for logging.getLogger('mcp_eventscope')"
    )
    for name in _METHODS:
        method = getattr(logger, name, None)
        if isinstance(logger, type) or not callable(method):
            msg = f"{option} must have the methods info, warning and error, got {given(logger)}; {fix}"
            raise TypeError(msg)
        if isinstance(logger, logging.Logger | logging.LoggerAdapter) or not _accepts_fields(method):
            msg = f"{option} must accept fields, as structlog loggers do, got {given(logger)}; {fix}"
            raise TypeError(msg)


def _accepts_fields(method: Callable[..., object]) -> bool:
    try:
        inspect.signature(method).bind("event", field="value")
    except TypeError:
        return False
    except ValueError:  # It has no signature.
        return True
    return True


def _shown(bound: float) -> str:
    return f"{bound:g}" if bound == inf or bound != int(bound) else f"{int(bound)}"
