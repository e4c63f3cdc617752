"""The documentation agrees with the code."""

import json
import re
from pathlib import Path

import pytest

import generate
import mcp_eventscope
import navigation
from mcp_eventscope import settings
from mcp_eventscope.cli.main import cli
from mcp_eventscope.cli.output import Exit
from mcp_eventscope.sessions.diagnosis import Verdict
from mcp_eventscope.telemetry import catalog
from support import drawn_paths

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
PAGES = navigation.pages()


@pytest.mark.parametrize("name", generate.PAGES)
def test_generated_page_is_current(name: str) -> None:
    """Each page is the one that `make docs` writes from the code."""
    assert (generate.FOLDER / name).read_text("utf-8") == generate.PAGES[name]()


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path)
def test_links_and_anchors_lead_somewhere(page: navigation.Page) -> None:
    """Each relative link of a page exists, and each anchor is a heading of the page to which it leads."""
    for target in navigation.links(page.text):
        if re.match(r"https?:|mailto:", target):
            continue
        path, anchor = navigation.resolve(page.path, target)
        assert (ROOT / path).exists(), target
        if anchor:
            assert anchor in navigation.anchors((ROOT / path).read_text("utf-8")), target


def test_navigation_names_every_page() -> None:
    """Each page is in the navigation once, whether under docs/ or at the top."""
    names = [page.path for page in PAGES]
    assert len(set(names)) == len({page.target for page in PAGES}) == len(names)
    written = {path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]}
    assert written <= set(names)
    assert [name for name in names if not (ROOT / name).is_file()] == []


def test_readme_lists_every_page() -> None:
    """The README links each page, except the decisions, which have an index, and the pages for contributors."""
    linked = {navigation.resolve("README.md", target)[0] for target in navigation.links(README)}
    listed = {page.path for page in PAGES if page.section != "Project" and not page.path.startswith("docs/decisions/0")}
    assert listed - linked == {"README.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path)
def test_page_has_the_form_that_the_site_needs(page: navigation.Page) -> None:
    """A page has one title, and a blank line before each list and fence, without which Python-Markdown sees none."""
    text = navigation.without_code(page.text)
    assert len(re.findall(r"^# ", text, re.MULTILINE)) == 1
    assert text.startswith("# ")
    assert re.findall(r"^[^\s*|#\d>-].*\n[*-] .*|^[^\s|#*\d>-].*\n1\. .*", text, re.MULTILINE) == []


def test_figures_of_failures_are_the_measured_ones() -> None:
    """The page and the README show the results in benchmarks/results."""
    page = (ROOT / "docs" / "failures.md").read_text("utf-8")
    results = ROOT / "benchmarks" / "results"
    cases = json.loads((results / "failures.json").read_text("utf-8"))["cases"]
    found = {
        (case, name): {(run["outcome"], run["last_status"], run["missing"]) for run in runs}
        for case, by in cases.items()
        for name, runs in by.items()
    }
    assert found == {
        ("same_worker", "memory"): {("result", "200", 0)},
        ("same_worker", "ours"): {("result", "200", 0)},
        ("same_worker", "persist"): {("result", "200", 0)},
        ("other_worker", "memory"): {("no response", "404", 15)},
        ("other_worker", "ours"): {("result", "200", 0)},
        ("other_worker", "persist"): {("no response", "200", 15)},
        ("killed_worker", "memory"): {("no response", "404", 15)},
        ("killed_worker", "ours"): {("error -32010", "200", 15)},
        ("killed_worker", "persist"): {("no response", "200", 15)},
    }
    seconds = sorted(run["seconds"] for run in cases["killed_worker"]["ours"])
    assert f"after {seconds[0]:.1f} to {seconds[-1]:.1f} s" in page
    for name, runs in json.loads((results / "end_to_end.json").read_text("utf-8"))["outage"].items():
        total = {key: sum(run[key] for run in runs) for key in runs[0]}
        lost = total["missing"] + total["missing_uncut"]
        for text in (page, README):
            assert f"{total['resumed']} of {total['cut']}" in text, name
            # The number of sent messages counts what arrived; lost ones never did.
            assert name == "memory" or f"{lost:,} of " in text, name


def test_figures_of_the_soak_are_the_measured_ones() -> None:
    """The page shows the sums of the runs, which found no violation."""
    page = (ROOT / "docs" / "failures.md").read_text("utf-8")
    soak = json.loads((ROOT / "benchmarks" / "results" / "soak.json").read_text("utf-8"))
    total, faults = soak["total"], soak["total"]["faults"]
    assert not any(total["violations"].values())
    workers = sum(count for name, count in faults.items() if name.startswith("worker"))
    redis = sum(count for name, count in faults.items() if name.startswith("redis"))
    for row in (
        f"| calls | {total['calls']:,} |",
        f"| … by the SDK's client | {total['by_the_sdk_client']:,} |",
        f"| … that were resumed | {total['resumes']:,} |",
        f"| streams that clients cut | {total['cuts']:,} |",
        f"| messages | {total['messages']:,} |",
        f"| … outside of calls | {total['standalone_messages']:,} |",
        f"| faults of workers | {workers} |",
        f"| faults of Redis | {redis} |",
    ):
        assert row in page
    assert f"Sums of {len(soak['runs'])} runs\n" in page


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


@pytest.mark.parametrize("reference", sorted(drawn_paths.references()), ids=" ".join)
def test_architecture_names_functions_that_exist(reference: drawn_paths.Reference) -> None:
    """Each function, class or constant is in the module that the architecture page names with it."""
    assert drawn_paths.exists(reference)


def test_architecture_names_modules_that_exist() -> None:
    """Each module and script on the architecture page is in the package."""
    named = drawn_paths.modules()
    assert {"sessions/manager.py", "redis/lua/commit.lua"} <= named
    assert [module for module in named if not (drawn_paths.PACKAGE / module).is_file()] == []
