"""The pages of the site, their order, and the links between them.

`zensical.toml` names pages by their paths in the repository, where they are read, too. A folder stands for its pages.
"""

import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import Any

ROOT = Path(__file__).parents[1]
CONFIGURATION = ROOT / "zensical.toml"
INDEX = "README.md"
"""The page that is the start of the site."""

_FENCE = re.compile(r"^ *(```+|~~~+).*?^ *\1 *$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`+[^`]+`+")
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*)\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Page:
    """A page of the site."""

    path: str
    """Its path in the repository."""
    title: str
    """Its title in the navigation."""
    section: str
    """The title of its section; "" for a page at the top."""

    @property
    def text(self) -> str:
        """Its Markdown."""
        return (ROOT / self.path).read_text("utf-8")

    @property
    def target(self) -> str:
        """Its path in the source of the site."""
        if self.path == INDEX:
            return "index.md"
        path = self.path.removeprefix("docs/")
        return path.removesuffix("README.md") + "index.md" if path.endswith("README.md") else path


def pages() -> list[Page]:
    """The pages of the navigation, in order."""
    return list(_pages(_configuration()["nav"], ""))


def _configuration() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads(CONFIGURATION.read_text("utf-8"))["project"]
    return project


def _pages(entries: list[dict[str, Any]], section: str) -> Iterator[Page]:
    for entry in entries:
        for title, target in entry.items():
            if isinstance(target, list):
                yield from _pages(target, title)
            elif target.endswith("/"):
                yield Page(f"{target}README.md", title, section)
                for path in sorted((ROOT / target).glob("[0-9]*.md")):
                    yield Page(f"{target}{path.name}", heading_of(path.read_text("utf-8")), section)
            else:
                yield Page(target, title, section)


def heading_of(text: str) -> str:
    """The first heading of a page."""
    heading: str = _HEADING.findall(without_code(text))[0]
    return heading


def summary_of(text: str) -> str:
    """The first sentence of a page, without links."""
    for block in without_code(text).split("\n\n"):
        if block.strip() and not re.match(r"\s*(#|<|\||\*|-|!|>|\d)", block):
            plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(block.split()))
            return re.split(r"(?<=[.:])\s", plain)[0].rstrip(":")
    return ""


def without_code(text: str, *, inline: bool = False) -> str:
    """Blank the code blocks of a page, and with `inline` the code within lines, so that offsets stay the same."""
    blank: Callable[[re.Match[str]], str] = lambda match: re.sub(r"[^\n]", " ", match[0])  # noqa: E731
    text = _FENCE.sub(blank, text)
    return _CODE.sub(blank, text) if inline else text


def links(text: str) -> list[str]:
    """The targets of the links and images of a page, without those in code."""
    return [target for match in _LINK.finditer(without_code(text, inline=True)) for target in _targets(match)]


def _targets(match: re.Match[str]) -> Iterator[str]:
    yield match[3]
    yield from (inner[3] for inner in _LINK.finditer(match[2]))


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: dict[str, int] = {}
    result = set(re.findall(r'<a id="([^"]+)">', text))
    for heading in _HEADING.findall(without_code(text)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        count = found[slug] = found.get(slug, -1) + 1
        result.add(f"{slug}-{count}" if count else slug)
    return result


def resolve(page: str, target: str) -> tuple[str, str]:
    """The path in the repository and the anchor to which a relative link of a page leads."""
    path, _, anchor = target.partition("#")
    return (normpath(PurePosixPath(page).parent / path) if path else page), anchor


def rewrite(text: str, change: Callable[[str, str, str], str]) -> str:
    """Replace the relative links of a page.

    Args:
        text: The page.
        change: Receives the mark of an image ("!" or ""), the text and the target of a link, and returns the link.
    """
    masked = without_code(text)
    parts: list[str] = []
    position = 0
    for match in _LINK.finditer(masked):
        if not re.match(r"https?:|#|mailto:", match[3]):
            inner = rewrite(match[2], change) if "](" in match[2] else match[2]
            parts += [text[position : match.start()], change(match[1], inner, match[3])]
            position = match.end()
    return "".join([*parts, text[position:]])


def relative(source: str, target: str) -> str:
    """The link from one path of the site to another."""
    return relpath(target, PurePosixPath(source).parent.as_posix())
