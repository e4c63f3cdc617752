"""Build the documentation site: `python docs/build_site.py`. A broken link or anchor fails it."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from typing import Any

from navigation import CONFIGURATION, ROOT, Page, pages, relative, resolve, rewrite

BUILD = ROOT / "build" / "site"
_NAV = re.compile(r"^nav = \[.*?^\]$", re.MULTILINE | re.DOTALL)
_LOADED = re.compile(r"""<(?:script|img|link|iframe)\b[^>]*?\b(?:src|href)=["']?(https?://[^"' >]+)""")
"""What a browser requests from another server. Links that a reader follows are not."""


def main() -> int:
    """Build the site.

    Returns:
        The exit status: 0, or 1 with the reason on standard error.
    """
    source, html = BUILD / "source", BUILD / "html"
    shutil.rmtree(BUILD, ignore_errors=True)
    source.mkdir(parents=True)
    shutil.copy(ROOT / "docs" / "site.css", source)
    every = pages()
    _stage(every)
    configuration = BUILD / "zensical.toml"
    configuration.write_text(_configured(every), encoding="utf-8")
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "--config-file", str(configuration)]
    if subprocess.run(command, check=False, cwd=ROOT).returncode:  # noqa: S603 - a tool of ours
        return 1
    shutil.copytree(source, html, dirs_exist_ok=True)  # llms.txt leads to the Markdown of the pages.
    shutil.copy(ROOT / "docs" / "llms.txt", html)
    if found := sorted(_requests()):
        print(*found, "Pages must load nothing from other servers.", sep="\n", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _stage(every: list[Page]) -> None:
    """Write the source of the site: the pages under their names in the site, and the pictures that they show."""
    targets = {page.path: page.target for page in every}
    repository = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["metadata"]["hooks"]
    address: str = repository["custom"]["repository"]
    for page in every:

        def change(image: str, text: str, target: str, page: Page = page) -> str:
            path, anchor = resolve(page.path, target)
            suffix = f"#{anchor}" if anchor else ""
            if path in targets:
                return f"{image}[{text}]({relative(page.target, targets[path])}{suffix})"
            if not (ROOT / path).exists():
                sys.exit(f"{page.path} must link to files that exist, got {target}")
            if (ROOT / path).suffix in {".png", ".svg"}:
                copied = f"pictures/{(ROOT / path).name}"
                (BUILD / "source" / "pictures").mkdir(exist_ok=True)
                shutil.copyfile(ROOT / path, BUILD / "source" / copied)
                return f"{image}[{text}]({relative(page.target, copied)})"
            return f"[{text}]({address}/blob/main/{path}{suffix})" if address else text

        written = BUILD / "source" / page.target
        written.parent.mkdir(parents=True, exist_ok=True)
        written.write_text(rewrite(page.text, change), encoding="utf-8")


def _configured(every: list[Page]) -> str:
    """The configuration, with the navigation of the staged pages and paths relative to `BUILD`."""
    text = CONFIGURATION.read_text("utf-8")
    text = text.replace('"build/site/', '"')
    return re.sub(
        r"^nav = \[.*?^\]$", lambda _: f"nav = {_toml(_sections(every))}", text, flags=re.MULTILINE | re.DOTALL
    )


def _sections(every: list[Page]) -> list[dict[str, Any]]:
    sections: list[dict[str, Any]] = []
    for page in every:
        entry = {page.title: page.target}
        if not page.section:
            sections.append(entry)
        elif sections and page.section in sections[-1]:
            sections[-1][page.section].append(entry)
        else:
            sections.append({page.section: [entry]})
    return sections


def _toml(value: object) -> str:
    """A TOML value of tables, arrays and strings. JSON's strings are TOML's."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)} = {_toml(each)}" for name, each in value.items()) + "}"
    return f"[{', '.join(map(_toml, value))}]" if isinstance(value, list) else json.dumps(value)


def _requests() -> Iterator[str]:
    for path in sorted((BUILD / "html").rglob("*.html")):
        yield from (f"{path.relative_to(BUILD)}: {url}" for url in _LOADED.findall(path.read_text("utf-8")))


if __name__ == "__main__":
    sys.exit(main())
