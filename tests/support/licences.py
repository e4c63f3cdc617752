"""The licences of all that an installation brings: `python tests/support/licences.py` lists them."""

import re
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRAS = ("embedded", "grafana", "testing")

ALLOWED = {
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "MIT",
    "MIT-0",
    "MPL-2.0",
    "PSF-2.0",
}
"""By SPDX. A dependency with another one needs a decision, then an entry here."""

NAMES = {
    "apache 2.0": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "bsd": "BSD-3-Clause",
    "bsd 3-clause": "BSD-3-Clause",
    "bsd license": "BSD-3-Clause",
    "isc license (iscl)": "ISC",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "psf-2.0": "PSF-2.0",
    "python software foundation license": "PSF-2.0",
}
"""Names in the metadata of older distributions, in lower case."""

UNNAMED = {"verlib2": "BSD-2-Clause"}
"""Distributions whose metadata names no licence, by name, with that of the file that they bring."""


def installed_with(project: str, extras: tuple[str, ...] = EXTRAS) -> list[metadata.Distribution]:
    """The distributions that a project needs with its extras, directly or indirectly, by name."""
    found: dict[str, metadata.Distribution] = {}
    queue = [(project, frozenset(extras))]
    seen: set[tuple[str, frozenset[str]]] = set()
    while queue:
        name, wanted = queue.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        found[name] = distribution = metadata.distribution(name)
        for text in distribution.requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or any(
                requirement.marker.evaluate({"extra": extra}) for extra in ("", *wanted)
            ):
                queue.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    del found[project]
    return [found[name] for name in sorted(found)]


def licences_of(distribution: metadata.Distribution) -> set[str]:
    """The SPDX identifiers that the metadata of a distribution names; unknown texts as they are."""
    fields: Any = distribution.metadata
    if (known := UNNAMED.get(canonicalize_name(fields.get("Name") or "-"))) is not None:
        return {known}
    if expression := fields.get("License-Expression"):
        return set(re.split(r"\s+(?:AND|OR|WITH)\s+|[()]", expression)) - {""}
    classifiers = [
        each.rpartition(" :: ")[2] for each in fields.get_all("Classifier", []) if each.startswith("License ::")
    ]
    texts = [each for each in classifiers if each != "OSI Approved"] or [fields.get("License") or "none named"]
    return {spdx for text in texts for spdx in _spdx(text)}


def _spdx(text: str) -> Iterator[str]:
    """The identifiers in the text of a field, which may have the whole licence instead."""
    line = text.strip().partition("\n")[0]
    yield from (NAMES.get(each.lower(), each) for each in re.split(r"\s+(?:AND|OR)\s+", line))


def main() -> int:
    """Print each distribution with its licences; return 1 if one is not allowed."""
    status = 0
    for distribution in installed_with("mcp-eventscope"):
        licences = licences_of(distribution)
        mark = "" if licences <= ALLOWED else "  NOT ALLOWED"
        status |= bool(mark)
        print(f"{distribution.name} {distribution.version}: {', '.join(sorted(licences))}{mark}")  # noqa: T201
    return status


if __name__ == "__main__":
    sys.exit(main())
