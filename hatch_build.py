"""A build hook that gives the package absolute links: in the README, and as `[project.urls]`.

A package index shows the README without the repository around it, where relative links lead nowhere. The option
`repository` of the hook in pyproject.toml is the only place that names the address. While it is empty, the README is
used unchanged and there are no URLs.
"""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

README = Path(__file__).with_name("README.md")


class Links(MetadataHookInterface):
    """Sets the metadata fields `readme` and `urls`."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add both fields to the metadata."""
        repository: str = self.config["repository"]
        tag = f"v{metadata['version']}"
        text = README.read_text("utf-8")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": absolute(text, repository, tag) if repository else text,
        }
        metadata["urls"] = urls(repository, tag) if repository else {}


def absolute(text: str, repository: str, tag: str) -> str:
    """Make relative links and images of a Markdown text absolute, to the files of a tag."""
    text = re.sub(r"(!\[[^\]]*\]\()(?!https?:|#)", rf"\g<1>{repository}/raw/{tag}/", text)
    return re.sub(r"((?<!!)\[[^\]]*\]\()(?!https?:|#)", rf"\g<1>{repository}/blob/{tag}/", text)


def urls(repository: str, tag: str) -> dict[str, str]:
    """The URLs of a project on a forge that names files as GitHub does."""
    return {
        "Repository": repository,
        "Documentation": f"{repository}/tree/{tag}/docs",
        "Changelog": f"{repository}/blob/{tag}/CHANGELOG.md",
        "Issues": f"{repository}/issues",
    }
