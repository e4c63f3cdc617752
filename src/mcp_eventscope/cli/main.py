"""The command line `mcp-eventscope`: export dashboards and rules, or push them to Grafana."""

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

TOKEN_VARIABLE = "GRAFANA_TOKEN"  # noqa: S105 - the name of the variable
_BUNDLED = "dashboards"
_LINK = '_url: "/d/'
"""The prefix of the links in the alerts, which are relative to Grafana's URL."""


class ExportError(EventscopeError):
    """The files could not be written; the message has the reason and the fix."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: The arguments without the program name; None: `sys.argv`.

    Returns:
        The exit status: 0, or 1 with the reason on standard error. An invalid command line exits with 2.
    """
    parsed = _parser().parse_args(arguments)
    try:
        done = parsed.run(parsed)
    except EventscopeError as error:
        print(f"mcp-eventscope: {error}", file=sys.stderr)  # noqa: T201 - command-line output
        return 1
    for line in done:
        print(line)  # noqa: T201
    return 0


def _export(parsed: argparse.Namespace) -> list[Path]:
    return export(parsed.directory, grafana_url=parsed.grafana_url, force=parsed.force)


def _push(parsed: argparse.Namespace) -> list[str]:
    token = parsed.token or os.environ.get(TOKEN_VARIABLE)
    if not token:
        msg = f"--token must be given; or set {TOKEN_VARIABLE}, which no process list shows"
        raise PushError(msg)
    boards = [(name, text) for name, text in _bundled_files() if name.endswith(".json")]
    return push(parsed.grafana, token, boards, folder=parsed.folder)


def export(directory: Path, *, grafana_url: str | None = None, force: bool = False) -> list[Path]:
    """Write the dashboards and rules.

    Args:
        directory: The directory, which is created with the folders `grafana` and `prometheus`.
        grafana_url: The URL of Grafana, for absolute links in the alerts.
        force: Whether to replace existing files with different content.

    Returns:
        The files, in order.

    Raises:
        ExportError: The files cannot be written, would replace others, or are not in this installation.
    """
    texts = {directory / name: text for name, text in _bundled_files()}
    if grafana_url is not None:
        base = grafana_url.rstrip("/")
        texts = {
            path: text.replace(_LINK, f'_url: "{base}/d/') if path.suffix == ".yaml" else text
            for path, text in texts.items()
        }
    try:
        changed = [path for path, text in texts.items() if path.exists() and path.read_text("utf-8") != text]
        if changed and not force:
            msg = f"{changed[0]} exists with different content ({len(changed)} in all); --force replaces it"
            raise ExportError(msg)
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"cannot write to {directory}: {error}"
        raise ExportError(msg) from error
    return list(texts)


def _bundled_files() -> Iterator[tuple[str, str]]:
    """The relative names and texts of the files in the wheel."""
    root = files("mcp_eventscope").joinpath(_BUNDLED)
    if not root.is_dir():
        msg = "this installation has no dashboards (an editable one has none); install the wheel"
        raise ExportError(msg)
    for folder in sorted(root.iterdir(), key=_name):
        for file in sorted(folder.iterdir(), key=_name):
            yield f"{folder.name}/{file.name}", file.read_text("utf-8")


def _name(entry: Traversable) -> str:
    return entry.name


def _address(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.netloc or parts.query or parts.fragment:
        msg = f"must be a URL such as https://grafana.example.com, got {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mcp-eventscope", description="Operate MCP event stores.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    dashboards = commands.add_parser("dashboards", help="Grafana dashboards and Prometheus rules")
    actions = dashboards.add_subparsers(title="actions", required=True, metavar="ACTION")
    writing = actions.add_parser(
        "export",
        help="write dashboards and rules to a directory",
        description="Write the Grafana dashboards (grafana/*.json) and the Prometheus rules (prometheus/*.yaml).",
    )
    writing.add_argument(
        "directory", type=Path, metavar="DIR", help="the directory, which is created if it does not exist"
    )
    writing.add_argument(
        "--grafana-url",
        type=_address,
        metavar="URL",
        help="the URL of Grafana, for the links in the alerts; without it they are relative to Grafana",
    )
    writing.add_argument("--force", action="store_true", help="replace existing files with different content")
    writing.set_defaults(run=_export)
    pushing = actions.add_parser(
        "push",
        help="import the dashboards into Grafana",
        description="Import the dashboards into Grafana over its HTTP API, replacing earlier versions. The rules are "
        "for Prometheus: export them, and list them in its rule_files.",
    )
    pushing.add_argument("--grafana", type=_address, required=True, metavar="URL", help="the URL of Grafana")
    pushing.add_argument("--token", help=f"token of a service account with the role Editor; default: {TOKEN_VARIABLE}")
    pushing.add_argument(
        "--folder", default=FOLDER_TITLE, help=f"title of the folder if it does not exist yet (default: {FOLDER_TITLE})"
    )
    pushing.set_defaults(run=_push)
    return parser


if __name__ == "__main__":
    sys.exit(main())
