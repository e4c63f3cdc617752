"""The output of commands: results as tables or JSON, errors without secrets, and progress."""

import dataclasses
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from itertools import zip_longest
from urllib.parse import unquote

TOKEN_VARIABLES = (
    "EVENTSCOPE_REDIS_URL",
    "EVENTSCOPE_METRICS_TOKEN",
    "EVENTSCOPE_CONSOLE_TOKEN",
    "GRAFANA_TOKEN",
    "MCP_TOKEN",
)
"""The environment variables with secrets."""
_SECRET_OPTIONS = ("--token", "--header", "-H", "--redis-url")
_LEAST_SECRET = 4
"""Characters of the shortest secret that is looked for: a shorter one occurs in any text."""
_USERINFO = re.compile(r"(://)\S*@")
_QUERY = re.compile(r"([?&][^\s=&]*(?:token|key|secret|passw|auth|sig)[^\s=&]*=)[^\s&#'\"]+", re.IGNORECASE)


class Exit(IntEnum):
    """The exit codes of all commands."""

    OK = 0
    """The command succeeded, and found nothing wrong."""
    FAILED = 1
    """It found something wrong, or could not do its work."""
    USAGE = 2
    """The command line or an environment variable is invalid."""
    UNREACHABLE = 3
    """Redis or the server could not be reached, or refused the credentials."""
    INTERRUPTED = 130
    """The operator interrupted it."""


def printable(text: str) -> str:
    """Escape characters that a terminal could interpret: texts of clients and servers are untrusted."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape", "surrogatepass").decode() for each in text
    )


def redacted(text: str, arguments: Sequence[str] = ()) -> str:
    """Remove the secrets of URLs, of the environment, and of the command line from a text.

    Args:
        text: The text.
        arguments: The command line.
    """
    for secret in sorted(_secrets(arguments), key=len, reverse=True):
        text = text.replace(secret, "***")
    return _QUERY.sub(r"\1***", _USERINFO.sub(r"\1***@", text))


def _secrets(arguments: Sequence[str]) -> Iterator[str]:
    values = [os.environ.get(name, "") for name in TOKEN_VARIABLES]
    values += [each for each in arguments if "://" in each]  # The URL of `doctor` has no option.
    for option, value in zip_longest(arguments, arguments[1:], fillvalue=""):
        name, equals, joined = option.partition("=")
        if name in _SECRET_OPTIONS:
            values.append(joined if equals else value)
    for value in values:
        secret = value
        if "://" in value:
            # Not by `urlsplit`, which refuses a list of nodes that has an IPv6 address.
            secret = re.split("[/?#]", value.partition("://")[2])[0].rpartition("@")[0].partition(":")[2]
        elif ":" in value:  # A header.
            secret = value.partition(":")[2].strip().rpartition(" ")[2]
        yield from (each for each in {secret, unquote(secret)} if len(each) >= _LEAST_SECRET)


def to_json(value: object) -> str:
    """Encode a result as one line of ASCII, so that no character acts on a terminal."""
    return json.dumps(value, default=_encoded).replace("\x7f", "\\u007f")


def _encoded(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, set | frozenset):
        return sorted(value)
    return str(value)


def print_json(command: str, **members: object) -> None:
    """Print the result of a command as one JSON object on one line."""
    sys.stdout.write(f"{to_json({'command': command, **members})}\n")
    sys.stdout.flush()


def print_lines(lines: Iterable[str]) -> None:
    """Print lines of text."""
    for line in lines:
        sys.stdout.write(f"{printable(line)}\n")
    sys.stdout.flush()


def print_error(text: str) -> None:
    """Print an error or a note, which has no secrets, on standard error."""
    sys.stderr.write("".join(f"{printable(line)}\n" for line in text.splitlines()))


_GAP = 2
"""The width between two columns."""
_READABLE = 12
"""The width from which the texts of a column are folded."""


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> None:
    """Print a table. Cells are texts without markup; None is an empty cell."""
    from rich.console import Console  # noqa: PLC0415 - JSON needs no table
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    if title:
        print_lines([title])
    table = Table(box=None, pad_edge=False)
    for place, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=place == 0)  # The first one is an id, to be copied.
    longest = [len(column) for column in columns]
    for row in rows:
        cells = [each if isinstance(each, Text) else Text(_cell(each)) for each in row]
        table.add_row(*cells)
        longest = [max(known, each.cell_len) for known, each in zip(longest, cells, strict=True)]
    console = Console(highlight=False)
    if sys.stdout.isatty():
        # On a narrower terminal rich would hide columns; the terminal itself wraps the lines.
        least = longest[0] + sum(_GAP + min(length, _READABLE) for length in longest[1:])
        console.width = max(console.width, least)
    else:
        console.width = 10_000  # A pipe has no width: rows stay whole there.
    with console.capture() as captured:
        console.print(table)
    # Cells are padded to the width of their column, also the last ones.
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines() if line.strip()))
    sys.stdout.flush()


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.1f}"
    return printable(str(value))


def duration(seconds: float | None) -> str:
    """Seconds in the largest units: `1d 2h`, `3m 4s`, `0.5s`; "" for None."""
    if seconds is None:
        return ""
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    parts = [("d", whole // 86400), ("h", whole // 3600 % 24), ("m", whole // 60 % 60), ("s", whole % 60)]
    return " ".join([f"{number}{unit}" for unit, number in parts if number][:2])


def size(number: float | None) -> str:
    """Bytes in a binary unit; "" for None."""
    if number is None:
        return ""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


class Progress:
    """One line on standard error that shows the progress of long work; nothing without a terminal."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._shown = False

    def update(self, text: str) -> None:
        """Replace the line."""
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{self._label}: {printable(text)}")
            sys.stderr.flush()
            self._shown = True

    def clear(self) -> None:
        """Remove the line."""
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


@contextmanager
def progress(label: str) -> Iterator[Progress]:
    """Show progress until the block ends."""
    shown = Progress(label)
    try:
        yield shown
    finally:
        shown.clear()
