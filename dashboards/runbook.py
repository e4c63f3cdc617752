"""The runbook as a dashboard, so that alerts and panels link to it within any Grafana."""

import re
from pathlib import Path

from dashboards import links
from dashboards.board import page
from dashboards.panels import Json

SOURCE = Path(__file__).parents[1] / "docs" / "runbook.md"
LINE_CHARACTERS = 150
"""Characters per line of a panel as wide as the page, approximately."""


def sections() -> dict[str, str]:
    """The sections of the page, by title; the text before the first is under "".

    Raises:
        ValueError: They differ from the sections that links name.
    """
    head, *parts = re.split(r"^## (.+)\n", SOURCE.read_text("utf-8"), flags=re.MULTILINE)
    found = dict(zip(parts[::2], parts[1::2], strict=True))
    if set(found) != set(links.SECTIONS):
        msg = f"docs/runbook.md and links.SECTIONS differ in {sorted(set(found) ^ set(links.SECTIONS))}"
        raise ValueError(msg)
    return {"": head.partition("\n")[2].strip()} | {name: text.strip() for name, text in found.items()}


def runbook() -> Json:
    """The dashboard: a panel of text for each section, in the order of the page."""
    texts = sections()
    return page(
        links.RUNBOOK,
        "MCP resumability: runbook",
        "Meaning, diagnosis and mitigation of each alert. Of mcp-eventscope.",
        [
            (links.section(name) if name else 100, name or "Introduction", text, _height(text))
            for name, text in texts.items()
        ],
    )


def _height(text: str) -> int:
    """The height in grid rows of 38 pixels, for text lines of 21."""
    paragraphs: list[str] = [" ".join(part.split("\n")) for part in re.split(r"\n\n|\n(?=\* )", text)]
    code: int = sum(block.count("\n") for block in re.findall(r"```.*?```", text, re.DOTALL))
    count = sum(len(part) // LINE_CHARACTERS + 1 for part in paragraphs) + code
    return 2 + (count * 21 + len(paragraphs) * 10) // 38
