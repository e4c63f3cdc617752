"""Each code block of the documentation runs, or is checked as far as it can be.

Python blocks run in the order of their page, in one namespace. A block that imports from mcp_eventscope is complete;
others continue an earlier block, or have the names of `prelude`. A block that cannot run has a comment before it,
`<!-- not run: the reason -->`; it is compiled, and its imports and keywords are checked.
"""

import ast
import importlib
import importlib.util
import inspect
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from fastapi import FastAPI
from mcp.server import MCPServer
from mcp.server.transport_security import TransportSecuritySettings
from starlette.applications import Starlette
from starlette.routing import Mount, Route
from uvicorn.main import main as uvicorn_command

import mcp_eventscope
import navigation
from mcp_eventscope import settings
from mcp_eventscope.cli.main import cli
from mcp_eventscope.store import jsonrpc_errors
from mcp_eventscope.telemetry import catalog

ROOT = Path(__file__).parents[2]
SIGNATURES = "docs/api.md"
"""The page whose Python blocks are signatures, generated from the code."""
TARGETS = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]+) -->\n)?^(?P<indent> *)```(?P<language>\w+)\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Block:
    """A code block of a page."""

    page: str
    line: int
    language: str
    text: str
    reason: str | None
    """Why it does not run; None if it runs."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def _blocks() -> Iterator[Block]:
    for page in navigation.pages():
        text = page.text
        for found in _BLOCK.finditer(text):
            code = re.sub(rf"^{found['indent']}", "", found["text"], flags=re.MULTILINE)
            line = text.count("\n", 0, found.start("text")) + 1
            yield Block(page.path, line, found["language"], code, found["reason"])


BLOCKS = list(_blocks())
PYTHON = [block for block in BLOCKS if block.language == "python" and block.page != SIGNATURES]
SHELL = [block for block in BLOCKS if block.language in {"sh", "bash", "shell"}]


def prelude() -> dict[str, object]:
    """The names that a fragment may use: the public ones, and a server with its application."""
    mcp = MCPServer("example")
    return {
        **{name: getattr(mcp_eventscope, name) for name in mcp_eventscope.__all__},
        "FastAPI": FastAPI,
        "Mount": Mount,
        "Route": Route,
        "MCPServer": MCPServer,
        "Starlette": Starlette,
        "TransportSecuritySettings": TransportSecuritySettings,
        "mcp": mcp,
        "mcp_app": Starlette(),
        "token": "secret",
    }


def test_blocks_are_found() -> None:
    """The pattern finds the blocks, each with a language that a test below checks."""
    assert len(PYTHON) > 15
    assert len(SHELL) > 15
    assert {block.language for block in BLOCKS} <= {"python", "sh", "yaml", "json", "toml"}


@pytest.mark.parametrize("page", sorted({block.page for block in PYTHON}))
def test_python_blocks_of_a_page_run(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers are built, and connect to nothing, since they are not served."""
    monkeypatch.setenv(settings.URL_VARIABLE, "redis://127.0.0.1:1/0")
    monkeypatch.setenv("METRICS_TOKEN", "secret")
    monkeypatch.setenv("CONSOLE_TOKEN", "secret-of-a-viewer")
    namespace: dict[str, Any] = {"__name__": "example"}
    for block in PYTHON:
        if block.page != page or block.reason:
            continue
        complete = "from mcp_eventscope import" in block.text
        names = namespace if complete else {**prelude(), **namespace}
        code = compile(block.text, str(block), "exec")
        exec(code, names)  # noqa: S102 - it is ours
        namespace |= names if complete else {name: value for name, value in names.items() if name not in prelude()}


@pytest.mark.parametrize("block", [block for block in PYTHON if block.reason], ids=str)
def test_python_block_that_does_not_run_names_what_exists(block: Block) -> None:
    """It compiles; what it imports from us and what is installed exists; our functions have its keywords."""
    tree = ast.parse(block.text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and importlib.util.find_spec(node.module.split(".")[0]):
            try:
                module = importlib.import_module(node.module)
            except ModuleNotFoundError:  # The reason, most likely.
                assert node.module.split(".")[0] != "mcp_eventscope"
                continue
            assert [each.name for each in node.names if not hasattr(module, each.name)] == []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in mcp_eventscope.__all__:
            function = getattr(mcp_eventscope, node.func.id)
            known = inspect.signature(function).parameters
            assert {each.arg for each in node.keywords if each.arg} <= set(known)


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_shell_block_has_valid_commands(block: Block) -> None:
    """It parses, and its commands of ours, of make and of uvicorn exist with their options."""
    if bash := shutil.which("bash"):
        subprocess.run([bash, "-n", "-c", block.text], check=True)
    for words in _commands(block.text):
        _check(words)


def _commands(text: str) -> Iterator[list[str]]:
    """The words of each command, without assignments before it."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(re.sub(r"\$\([^)]*\)", "directory", line), comments=True)
        while words and re.match(r"\w+=|export$", words[0]):
            words.pop(0)
        command: list[str] = []
        for word in [*words, ";"]:
            if word in {"|", "&&", ";", "&"}:
                if command:
                    yield command
                command = []
            else:
                command.append(word)


def _check(words: list[str]) -> None:
    name, *arguments = words
    match name.rpartition("/")[2]:
        case "mcp-eventscope":
            _parse(cli, [re.sub(r"^\$\{?\w+\}?$", "http://localhost/mcp", each) for each in arguments])
        case "uvicorn":
            uvicorn_command.make_context("uvicorn", arguments)
        case "make":
            assert {each for each in arguments if "=" not in each and each != "--silent"} <= TARGETS
        case "pip" if any(each.startswith("mcp-eventscope") for each in arguments):
            (package,) = (each for each in arguments if each.startswith("mcp-eventscope"))
            assert set(re.findall(r"[\[,](\w+)", package)) <= EXTRAS.keys()
        case "python" | "python3" if arguments[:1] == ["-m"] and arguments[1] not in {"venv", "pip", "build", "twine"}:
            assert importlib.util.find_spec(arguments[1]), arguments[1]
        case "python" | "python3" if arguments[0].endswith(".py") and "/" in arguments[0]:
            assert (ROOT / arguments[0]).is_file()
        case _:
            pass


def _parse(command: click.Command, arguments: list[str]) -> None:
    """Parse the arguments of a command, without running it."""
    while isinstance(command, click.Group):
        name, found, arguments = command.resolve_command(click.Context(command), arguments)
        assert found is not None, name
        command = found
    command.make_context(command.name, arguments)


def test_named_commands_exist() -> None:
    """Each command in backticks is one of the command line."""
    text = "\n".join(page.text for page in navigation.pages())
    named = re.findall(r"`mcp-eventscope ([a-z]+(?: [a-z]+)?)", text)
    assert len(named) > 10
    for words in named:
        first, _, second = words.partition(" ")
        command = cli.commands[first]
        if second and isinstance(command, click.Group):
            assert second in command.commands


def test_named_variables_exist() -> None:
    """Each variable with our prefix is one of ours; one is a mistyped name, as an example."""
    known = {settings.variable(option) for option in settings.Settings.model_fields} | {
        *settings.REQUEST_STATE_VARIABLES,
        "EVENTSCOPE_TEST_SERVER",
    }
    text = "\n".join(page.text for page in navigation.pages() if page.path != "CHANGELOG.md")
    named = set(re.findall(r"\bEVENTSCOPE_[A-Z_]*[A-Z]\b", text))
    assert named - known == {"EVENTSCOPE_TLL"}


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language in {"yaml", "json", "toml"}], ids=str)
def test_data_block_is_valid(block: Block) -> None:
    """YAML, JSON and TOML blocks can be read."""
    readers: dict[str, Callable[[str], Any]] = {"yaml": yaml.safe_load, "json": json.loads, "toml": tomllib.loads}
    assert readers[block.language](block.text)


def test_troubleshooting_has_every_problem() -> None:
    """Each warning and error in the log, and each error code, is on the page of its fixes."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    absent = [each.name for each in catalog.LOG_EVENTS if each.level != "info" and f"`{each.name}`" not in page]
    assert absent == [], "each has a row in docs/troubleshooting.md"
    errors = (ROOT / "docs" / "errors.md").read_text("utf-8")
    codes = [value for name, value in vars(jsonrpc_errors).items() if name.isupper() and isinstance(value, int)]
    assert len(codes) == 4
    assert [code for code in codes if f"| {code} |" not in errors] == []
