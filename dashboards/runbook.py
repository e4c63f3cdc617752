"""The runbook as a dashboard: alerts and panels lead to it wherever Grafana is, with no site of ours behind it."""

import re
from pathlib import Path

from dashboards import links
from dashboards.board import page
from dashboards.panels import Json

SOURCE = Path(__file__).parents[1] / "docs" / "runbook.md"
LINE_CHARACTERS = 150
"""What fits into a line of a panel that is as wide as the page, about."""


def sections() -> dict[str, str]:
    """The sections of the page, by their titles; what stands before the first is under "".

    Raises:
        ValueError: They are not the sections that links lead to.
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
        "What each alert means, how to confirm it, and what to do. Of mcp-eventscope.",
        [
            (links.section(name) if name else 100, name or "Before anything else", text, _height(text))
            for name, text in texts.items()
        ],
    )


def _height(text: str) -> int:
    """Rows of the grid, of 38 pixels, for lines of 21."""
    paragraphs: list[str] = [" ".join(part.split("\n")) for part in re.split(r"\n\n|\n(?=\* )", text)]
    code: int = sum(block.count("\n") for block in re.findall(r"```.*?```", text, re.DOTALL))
    count = sum(len(part) // LINE_CHARACTERS + 1 for part in paragraphs) + code
    return 2 + (count * 21 + len(paragraphs) * 10) // 38
