"""As much YAML as rules need: names, quoted text, and PromQL as blocks that can be read."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

Rule: TypeAlias = Mapping[str, str | Mapping[str, str]]


def groups(name: str, rules: Sequence[Rule]) -> str:
    """A file of one group of rules."""
    head = [
        "# Written by `make dashboards` from the catalog. Do not edit.",
        "groups:",
        f"  - name: {name}",
        "    rules:",
    ]
    return "\n".join([*head, *(line for rule in rules for line in _rule(rule))]) + "\n"


def _rule(rule: Rule) -> Iterator[str]:
    lead = "      - "
    for key, value in rule.items():
        if isinstance(value, str):
            yield from _text(lead, key, value)
        else:
            yield f"{lead}{key}:"
            for inner, text in value.items():
                yield from _text(" " * 10, inner, text)
        lead = " " * 8


def _text(lead: str, key: str, text: str) -> Iterator[str]:
    if key == "expr":
        yield f"{lead}{key}: |-"
        yield from (f"{' ' * (len(lead) + 2)}{line}" for line in text.splitlines())
    elif text.replace(":", "").isalnum() or key == "record":
        yield f"{lead}{key}: {text}"
    else:
        yield f"{lead}{key}: {json.dumps(text, ensure_ascii=False)}"  # A JSON string is a YAML string.
