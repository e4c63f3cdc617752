"""The pages for contributors name files, targets and tests that exist."""

import re
import tomllib
from pathlib import Path

import pytest

import hatch_build

ROOT = Path(__file__).parents[2]
RECORDS = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
PAGES = [
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "CHANGELOG.md",
    ROOT / "docs" / "decisions" / "README.md",
    *RECORDS,
]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):.*## ", MAKEFILE, re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_exist(page: Path) -> None:
    """Each relative link leads to a file."""
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), target


def test_contributing_names_existing_paths() -> None:
    """Each path in backticks exists, in the repository, in a folder of the package, or among the tests."""
    folders = (ROOT, ROOT / "src" / "mcp_eventscope", ROOT / "tests" / "dashboards")
    paths = re.findall(r"`([\w./-]+(?:/|\.(?:py|md|toml|json|yaml)))`", CONTRIBUTING)
    assert len(paths) > 30
    assert [path for path in paths if not any((folder / path).exists() for folder in folders)] == []


def test_contributing_names_existing_tests() -> None:
    """Each test that a recipe names is defined."""
    defined = "".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", CONTRIBUTING)
    assert named
    assert [name for name in named if f"def {name}(" not in defined] == []


def test_names_of_tests_begin_with_the_unit() -> None:
    """Each has at least three words and begins with no article or question; a file of tests has a name of its own."""
    paths = sorted((ROOT / "tests").rglob("test_*.py"))
    assert len({path.name for path in paths}) == len(paths) > 100
    vague = {"a", "an", "the", "it", "that", "this", "what", "who", "when", "where", "how", "whether"}
    named = [name for path in paths for name in re.findall(r"def test_(\w+)\(", path.read_text("utf-8"))]
    assert [name for name in named if len(words := name.split("_")) < 3 or words[0] in vague] == []


def test_pages_name_existing_identifiers() -> None:
    """Each name with an underscore that a page has in backticks is one of the code, of a module or of a folder."""
    folders = [ROOT / name for name in ("src", "tests", "dashboards")]
    sources = [path for folder in folders for path in folder.rglob("*.py") if path != Path(__file__)]
    known = {part.removesuffix(".py") for path in sources for part in path.relative_to(ROOT).parts}
    for path in sources:
        known.update(re.findall(r"\w*_\w*", path.read_text("utf-8")))
    for page in (ROOT / "CONTRIBUTING.md", ROOT / "tests" / "README.md"):
        spans = re.findall(r"`([A-Za-z_][\w.]*)(?:\([^`]*\))?`", page.read_text("utf-8"))
        named = {part for span in spans for part in span.split(".") if "_" in part}
        assert named
        assert sorted(named - known) == []


def test_pages_name_existing_targets() -> None:
    """Each `make` target that a page or a hook names is one that `make help` lists, and help lists every target."""
    names = ("CONTRIBUTING.md", "docs/releasing.md", ".pre-commit-config.yaml")
    text = "\n".join((ROOT / name).read_text("utf-8") for name in names)
    commands = re.findall(r"(?:`|^|entry: )make ((?:--silent )?[a-z][a-z -]*)", text, re.MULTILINE)
    named = {word for command in commands for word in command.split() if not word.startswith("--")}
    assert len(named) > 8
    assert named <= TARGETS
    (phony,) = re.findall(r"^\.PHONY: (.+)$", MAKEFILE, re.MULTILINE)
    assert set(phony.split()) == TARGETS


def test_index_lists_every_record() -> None:
    """The index has a row for each record, in order, and each record has the same parts."""
    index = (ROOT / "docs" / "decisions" / "README.md").read_text("utf-8")
    assert re.findall(r"\]\((\d{4}-[a-z-]+\.md)\)", index) == [path.name for path in RECORDS]
    for path in RECORDS:
        text = path.read_text("utf-8")
        assert text.startswith(f"# {path.name[:4]}: ")
        assert re.search(r"^\* \*\*Status:\*\* .+\n\* \*\*Date:\*\* \d{4}-\d\d-\d\d$", text, re.MULTILINE), path.name
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences"]


def test_readme_links_become_absolute() -> None:
    """With an address, no link of the README stays relative; links within the page and absolute ones are kept."""
    repository = "https://forge.example.com/owner/name"
    text = hatch_build.absolute((ROOT / "README.md").read_text("utf-8"), repository, "v1.2.3")
    assert re.findall(r"\]\((?!https?:|#)", text) == []
    assert hatch_build.absolute("[a](b.md#c) ![d](e.png) [f](#g) [h](https://i.example)", repository, "v1") == (
        f"[a]({repository}/blob/v1/b.md#c) ![d]({repository}/raw/v1/e.png) [f](#g) [h](https://i.example)"
    )


def test_repository_is_an_address_or_empty() -> None:
    """The option that makes links absolute is empty, or an address without a slash at its end."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    repository = pyproject["tool"]["hatch"]["metadata"]["hooks"]["custom"]["repository"]
    assert re.fullmatch(r"(https://\S+[^/])?", repository)
