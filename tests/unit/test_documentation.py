"""The documentation agrees with the code."""

import re
from collections.abc import Callable
from inspect import signature
from pathlib import Path

import pytest

import generate
import mcp_eventscope
from mcp_eventscope import settings
from mcp_eventscope.cli.main import cli
from mcp_eventscope.cli.output import Exit
from mcp_eventscope.sessions.diagnosis import Verdict
from mcp_eventscope.telemetry import catalog
from support import drawn_paths

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def test_telemetry_page_is_current() -> None:
    """docs/telemetry.md is generated from the catalog, by `make docs`."""
    assert generate.TARGET.read_text("utf-8") == generate.telemetry()


def test_settings_page_is_current() -> None:
    """docs/settings.md is generated from the settings class, by `make docs`."""
    assert generate.SETTINGS_TARGET.read_text("utf-8") == generate.settings_page()


def test_command_line_page_is_current() -> None:
    """docs/cli_reference.md is generated from the declarations of the commands, by `make docs`."""
    assert generate.CLI_TARGET.read_text("utf-8") == generate.cli_page()


def test_command_line_page_describes_each_command_and_exit_code() -> None:
    """docs/cli.md has a section about each command, and the exit codes of the code."""
    page = (ROOT / "docs" / "cli.md").read_text("utf-8")
    assert {name for name in cli.commands if f"mcp-eventscope {name}" not in page} == set()
    assert re.findall(r"^\| (\d+) \|", page, re.MULTILINE) == [str(each.value) for each in Exit]
    assert {each.value for each in Verdict} <= set(re.findall(r"`([a-z_]+)`", page))


def test_questions_are_answered_by_what_is_there() -> None:
    """The metrics and log events in the questions of the telemetry page are declared."""
    declared = {each.name for each in catalog.METRICS} | {each.name for each in catalog.LOG_EVENTS}
    parts = "event_store|subscriptions|request_state|task_store"
    named = re.findall(rf"`((?:eventscope_|(?:{parts})\.)[a-z_]+)`", generate.QUESTIONS)
    assert len(named) > 20
    assert {name for name in named if name.removesuffix("_count") not in declared} == set()


def test_quickstart_is_the_file() -> None:
    """The quickstart in the README is identical to the file that a test runs."""
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert (ROOT / "examples" / "quickstart.py").read_text("utf-8") in blocks


@pytest.mark.parametrize("page", sorted(path.name for path in (ROOT / "docs").glob("*.md")))
def test_links_lead_somewhere(page: str) -> None:
    """Relative links of the pages and of the README exist, and every page is reached from the README."""
    assert f"docs/{page}" in README
    for base, text in ((ROOT, README), (ROOT / "docs", (ROOT / "docs" / page).read_text("utf-8"))):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            assert (base / target).exists(), target


def test_readme_names_what_exists() -> None:
    """Metrics, log events and public names that the README uses are declared."""
    exposed = (ROOT / "docs" / "telemetry.md").read_text("utf-8")
    for name in re.findall(r"\beventscope_[a-z_]+|\bevent_store\.[a-z_]+", README):
        assert name.removesuffix("_count") in exposed, name
    imported = re.findall(r"from mcp_eventscope import ([^\n]+)", README)
    assert {name for line in imported for name in line.split(", ")} <= set(mcp_eventscope.__all__)
    assert settings.URL_VARIABLE in README


@pytest.fixture(autouse=True)
def patience() -> None:
    """Leave the defaults as they are documented."""


@pytest.mark.parametrize(("table", "function"), [(0, mcp_eventscope.http_app), (1, mcp_eventscope.RedisEventStore)])
def test_readme_options_are_those_of_the_code(table: int, function: Callable[..., object]) -> None:
    """Each table of options names every option of its function, in order, with the default."""
    tables = README.split("| option | default | unit | meaning |\n")[1:]
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \|", tables[table].partition("\n\n")[0], re.MULTILINE)
    options = [each for each in signature(function).parameters.values() if each.kind is not each.VAR_KEYWORD][1:]
    assert [name for name, _ in rows] == [each.name for each in options]
    for (name, default), option in zip(rows, options, strict=True):
        expected = option.default
        if function is mcp_eventscope.http_app and name in settings.Settings.model_fields:
            assert expected in {None, settings.UNSET}, f"{name} would hide its environment variable"
            expected = settings.Settings.model_fields[name].default
        if isinstance(expected, int | float):
            assert float(default) == expected, name
        else:
            assert expected in {None, default.strip("`")}, name


@pytest.mark.parametrize("reference", sorted(drawn_paths.references()), ids=" ".join)
def test_architecture_names_functions_that_exist(reference: drawn_paths.Reference) -> None:
    """Each function, class or constant is in the module that the architecture page names with it."""
    assert drawn_paths.exists(reference)


def test_architecture_names_modules_that_exist() -> None:
    """Each module and script on the architecture page is in the package."""
    named = drawn_paths.modules()
    assert {"sessions/manager.py", "redis/lua/commit.lua"} <= named
    assert [module for module in named if not (drawn_paths.PACKAGE / module).is_file()] == []


def test_architecture_links_lead_to_its_sections() -> None:
    """Links within the architecture page lead to its headings."""
    anchors = {
        heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", drawn_paths.PAGE, re.MULTILINE)
    }
    linked = set(re.findall(r"\]\(#([^)]+)\)", drawn_paths.PAGE))
    assert linked
    assert linked <= anchors


def test_subscriptions_example_runs() -> None:
    """The example creates a server, as it stands; it connects to Redis only when it is served."""
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "subscriptions.md").read_text("utf-8"), re.DOTALL)
    namespace: dict[str, object] = {}
    exec(compile(example, "example", "exec"), namespace)  # noqa: S102 - it is ours
    assert namespace["app"]
