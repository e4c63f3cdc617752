"""`mcp-eventscope`: what an operator does on a command line: dashboards and rules out of the wheel, or into Grafana."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from urllib.parse import urlsplit

from mcp_eventscope.cli.grafana import FOLDER_TITLE, PushError, push
from mcp_eventscope.errors import EventscopeError

TOKEN_VARIABLE = "GRAFANA_TOKEN"  # noqa: S105 - where it is, not what it is
_CARRIED = "dashboards"
_LINK = '_url: "/d/'
"""How the links of the alerts begin, which are relative to Grafana's address."""


class ExportError(EventscopeError):
    """The dashboards could not be written; the message says why, and what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for.

    Args:
        arguments: Without the name of the program; None: those that it was started with.

    Returns:
        The exit status: 0, or 1 with the reason on standard error; a wrong command line exits with 2.
    """
    parsed = _parser().parse_args(arguments)
    try:
        done = parsed.run(parsed)
    except EventscopeError as error:
        print(f"mcp-eventscope: {error}", file=sys.stderr)  # noqa: T201 - a program
        return 1
    for line in done:
        print(line)  # noqa: T201
    return 0


def _export(parsed: argparse.Namespace) -> list[Path]:
    return export(parsed.directory, grafana_url=parsed.grafana_url, force=parsed.force)


def _push(parsed: argparse.Namespace) -> list[str]:
    token = parsed.token or os.environ.get(TOKEN_VARIABLE)
    if not token:
        msg = f"a token is needed: --token, or the environment variable {TOKEN_VARIABLE}, which no process list shows"
        raise PushError(msg)
    boards = [(name, text) for name, text in _carried() if name.endswith(".json")]
    return push(parsed.grafana, token, boards, folder=parsed.folder)


def export(directory: Path, *, grafana_url: str | None = None, force: bool = False) -> list[Path]:
    """Write the dashboards and rules.

    Args:
        directory: Where to; it is made, and the folders `grafana` and `prometheus` in it.
        grafana_url: Where Grafana is, so that the links of the alerts lead there from outside of it.
        force: Whether files that are there, and are others, are replaced.

    Returns:
        The files, in order.

    Raises:
        ExportError: They cannot be written, would replace others, or are not in this installation.
    """
    texts = {directory / name: text for name, text in _carried()}
    if grafana_url is not None:
        base = grafana_url.rstrip("/")
        texts = {
            path: text.replace(_LINK, f'_url: "{base}/d/') if path.suffix == ".yaml" else text
            for path, text in texts.items()
        }
    try:
        others = [path for path, text in texts.items() if path.exists() and path.read_text("utf-8") != text]
        if others and not force:
            msg = f"{others[0]} is there, and is another: --force replaces it ({len(others)} in all)"
            raise ExportError(msg)
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"cannot write to {directory}: {error}"
        raise ExportError(msg) from error
    return list(texts)


def _carried() -> Iterator[tuple[str, str]]:
    """What the wheel carries: names below the directory, and texts."""
    root = files("mcp_eventscope").joinpath(_CARRIED)
    if not root.is_dir():
        msg = "this installation carries no dashboards (an editable one does not): install the wheel"
        raise ExportError(msg)
    for folder in sorted(root.iterdir(), key=_name):
        for file in sorted(folder.iterdir(), key=_name):
            yield f"{folder.name}/{file.name}", file.read_text("utf-8")


def _name(entry: Traversable) -> str:
    return entry.name


def _address(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.netloc or parts.query or parts.fragment:
        msg = f"{text!r} is no address such as https://grafana.example.com"
        raise argparse.ArgumentTypeError(msg)
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mcp-eventscope", description="Operate MCP event stores.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    dashboards = commands.add_parser("dashboards", help="Grafana dashboards and Prometheus rules")
    actions = dashboards.add_subparsers(title="actions", required=True, metavar="ACTION")
    writing = actions.add_parser(
        "export",
        help="write them into a directory",
        description="Write the Grafana dashboards (grafana/*.json) and the Prometheus rules (prometheus/*.yaml).",
    )
    writing.add_argument("directory", type=Path, metavar="DIR", help="where to; it is made if it is not there")
    writing.add_argument(
        "--grafana-url",
        type=_address,
        metavar="URL",
        help="where Grafana is, for the links in the alerts; without it they are relative to Grafana",
    )
    writing.add_argument("--force", action="store_true", help="replace files that are there and are others")
    writing.set_defaults(run=_export)
    pushing = actions.add_parser(
        "push",
        help="import them into a Grafana",
        description="Import the dashboards into a Grafana over its HTTP API, replacing those of before. The rules are "
        "Prometheus's: export them, and name them in its rule_files.",
    )
    pushing.add_argument("--grafana", type=_address, required=True, metavar="URL", help="where Grafana is")
    pushing.add_argument("--token", help=f"of a service account with the role Editor; else {TOKEN_VARIABLE} says it")
    pushing.add_argument("--folder", default=FOLDER_TITLE, help=f"the folder, if it is not there yet ({FOLDER_TITLE})")
    pushing.set_defaults(run=_push)
    return parser


if __name__ == "__main__":
    sys.exit(main())
