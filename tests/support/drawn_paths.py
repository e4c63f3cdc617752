"""The names in docs/architecture.md: each module with a function, and the steps of its two paths."""

import importlib
import re
from pathlib import Path
from typing import NamedTuple

import mcp_eventscope

PACKAGE = Path(mcp_eventscope.__file__).parent
PAGE = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text("utf-8")

_MODULE = r"`((?:\w+/)*\w+\.(?:py|lua))`"
_REFERENCE = re.compile(rf"{_MODULE}\s+`([A-Za-z_][\w.]*)`")
_STEP = re.compile(rf"^(\d+)\. {_REFERENCE.pattern}", re.MULTILINE)
_SECTION = re.compile(r"^#{2,3} (.+)$", re.MULTILINE)


class Reference(NamedTuple):
    """A module of the package, or a Lua script, and a qualified name in it."""

    module: str
    name: str


def references() -> set[Reference]:
    """Every module that the page names together with a function, class or constant."""
    return {Reference(*found) for found in _REFERENCE.findall(PAGE)}


def modules() -> set[str]:
    """Every module and script of the package that the page names, alone or with a function."""
    return {module for module in re.findall(_MODULE, PAGE) if not module.startswith("tests/")}


def path(section: str) -> list[Reference]:
    """The steps of the path that a section draws, in order.

    Args:
        section: The heading of the section.
    """
    parts = _SECTION.split(PAGE)
    steps = _STEP.findall(parts[parts.index(section) + 1])
    assert [int(number) for number, *_ in steps] == list(range(1, len(steps) + 1))
    return [Reference(module, name) for _, module, name in steps]


def exists(reference: Reference) -> bool:
    """Whether the package has the name where the page names it."""
    if reference.module.endswith(".lua"):
        return f"local function {reference.name}(" in (PACKAGE / reference.module).read_text("utf-8")
    dotted = reference.module.removesuffix(".py").replace("/", ".")
    found: object = importlib.import_module(f"{mcp_eventscope.__name__}.{dotted}")
    for name in reference.name.split("."):
        if not hasattr(found, name):
            return False
        found = getattr(found, name)
    return True
