"""Checks of a wheel and a source archive, with the standard library alone; as a program: of those in a folder."""

import csv
import email.message
import email.parser
import io
import re
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGE = "mcp_eventscope"
PRIVATE = re.compile(
    r"(^|/)(\.git|\.env[^/]*|\.venv[^/]*|\.nox|\.hypothesis|\.[a-z]+_cache|__pycache__|\.ssh|\.netrc|\.pypirc)(/|$)"
    r"|\.(pyc|pyo|pem|key|p12|pfx|rdb|aof|log|sock|swp|orig|rej|whl|gz)$|~$"
)
"""Names of caches, environments, credentials, logs and data, which belong in no distribution."""
SCATTERED = {"dashboards/grafana": "dashboards/grafana", "dashboards/prometheus": "dashboards/prometheus"}
"""Folders of the repository that the wheel has inside of the package."""


def project() -> dict[str, Any]:
    """The table `project` of pyproject.toml."""
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return found


def files_of(folder: Path) -> dict[str, bytes]:
    """The files below a folder by relative name, without caches."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if "__pycache__" not in name}


def expected_of_wheel() -> dict[str, bytes]:
    """The files that the wheel must have, beside its metadata."""
    expected = {f"{PACKAGE}/{name}": data for name, data in files_of(ROOT / "src" / PACKAGE).items()}
    for source, target in SCATTERED.items():
        expected |= {f"{PACKAGE}/{target}/{name}": data for name, data in files_of(ROOT / source).items()}
    return expected


def read_wheel(path: Path) -> dict[str, bytes]:
    """The files of a wheel."""
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None, f"{path.name} is damaged"
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}


def read_sdist(path: Path) -> dict[str, bytes]:
    """The files of a source archive, without its top folder."""
    found: dict[str, bytes] = {}
    with tarfile.open(path) as archive:
        for member in archive:
            assert member.isfile() or member.isdir(), f"{member.name} is a link or a device"
            top, _, name = member.name.partition("/")
            assert top == f"{PACKAGE}-{project()['version']}", f"{member.name} is not in the archive's folder"
            assert ".." not in name.split("/"), member.name
            file = archive.extractfile(member)
            if file is not None:
                found[name] = file.read()
    return found


def check_wheel(path: Path) -> None:
    """Check the contents, the record and the metadata of a wheel.

    Raises:
        AssertionError: It has a file too many or too few, or wrong metadata.
    """
    files = read_wheel(path)
    info = f"{PACKAGE}-{project()['version']}.dist-info"
    expected = expected_of_wheel()
    metadata = {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")}
    _same_names(path.name, files, expected.keys() | metadata)
    assert {name for name, data in expected.items() if files[name] != data} == set(), "files differ from the source"
    assert f"{PACKAGE}/py.typed" in files
    assert files[f"{info}/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    recorded = {row[0] for row in csv.reader(io.StringIO(files[f"{info}/RECORD"].decode()))}
    assert recorded == files.keys()
    assert b"Tag: py3-none-any" in files[f"{info}/WHEEL"]
    scripts = project()["scripts"]
    assert all(f"{name} = {target}" in files[f"{info}/entry_points.txt"].decode() for name, target in scripts.items())
    check_metadata(files[f"{info}/METADATA"])
    check_private(files)


def check_sdist(path: Path) -> None:
    """Check the contents and the metadata of a source archive.

    Raises:
        AssertionError: It lacks a file of the wheel, has one that is private, or wrong metadata.
    """
    files = read_sdist(path)
    hatch = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]["targets"]["sdist"]
    tops = {each.strip("/") for each in hatch["include"]} | {"PKG-INFO", "pyproject.toml", ".gitignore"}
    assert {name for name in files if name.partition("/")[0] not in tops} == set(), "files outside of `include`"
    for folder in ("src", *SCATTERED):
        wanted = {f"{folder}/{name}": data for name, data in files_of(ROOT / folder).items()}
        assert {name for name, data in wanted.items() if files.get(name) != data} == set(), f"files of {folder} differ"
    assert {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "hatch_build.py"} <= files.keys()
    check_metadata(files["PKG-INFO"])
    check_private(files)


def check_private(files: Iterable[str]) -> None:
    """Check that no name is that of a private file.

    Raises:
        AssertionError: One is.
    """
    assert [name for name in files if PRIVATE.search(name)] == []


def check_metadata(text: bytes) -> None:
    """Check the metadata against pyproject.toml and the README.

    Raises:
        AssertionError: They differ, or an index could not show them.
    """
    found = email.parser.Parser().parsestr(text.decode("utf-8"))
    declared = project()
    assert not found.defects
    single = {
        "Name": declared["name"],
        "Version": declared["version"],
        "Summary": declared["description"],
        "License-Expression": declared["license"],
        "Requires-Python": declared["requires-python"],
        "Description-Content-Type": "text/markdown",
    }
    assert {name: found.get_all(name) for name in single} == {name: [value] for name, value in single.items()}
    assert found.get_all("License-File") == declared["license-files"]
    assert found.get_all("Classifier") == declared["classifiers"]
    assert "\n" not in declared["description"], "an index refuses a summary of several lines"
    extras: Mapping[str, list[str]] = declared["optional-dependencies"]
    assert sorted(found.get_all("Provides-Extra", [])) == sorted(extras)
    wanted = [*declared["dependencies"], *(f"{each}; extra == '{name}'" for name in extras for each in extras[name])]
    assert sorted(map(_normalized, found.get_all("Requires-Dist", []))) == sorted(map(_normalized, wanted))
    _check_description(found)


def _check_description(found: email.message.Message) -> None:
    """The description begins as the README does, and ends as it does; its links may be absolute."""
    readme = (ROOT / "README.md").read_text("utf-8").strip()
    description = str(found.get_payload()).strip()
    assert description.splitlines()[0] == readme.splitlines()[0]
    assert len(description.splitlines()) == len(readme.splitlines())
    assert re.sub(r"\]\([^)]*\)", "]()", description) == re.sub(r"\]\([^)]*\)", "]()", readme)


def _normalized(requirement: str) -> tuple[str, frozenset[str], str]:
    """The name, the specifiers and the marker of a requirement, however they are written."""
    text, _, marker = requirement.partition(";")
    name = re.match(r"[A-Za-z0-9._-]+(\[[^\]]*\])?", text.strip())
    assert name is not None, requirement
    specifiers = text.strip()[name.end() :].replace(" ", "").strip("()")
    return name[0].lower(), frozenset(filter(None, specifiers.split(","))), marker.replace('"', "'").replace(" ", "")


def _same_names(title: str, found: Iterable[str], wanted: Iterable[str]) -> None:
    surplus, missing = sorted(set(found) - set(wanted)), sorted(set(wanted) - set(found))
    assert (surplus, missing) == ([], []), f"{title} has {surplus}, and lacks {missing}"


def main(folder: Path) -> None:
    """Check the distributions in a folder, and the wheel in its folder `again`, which was built from the archive."""
    (wheel,), (sdist,), (again,) = folder.glob("*.whl"), folder.glob("*.tar.gz"), (folder / "again").glob("*.whl")
    check_wheel(wheel)
    check_sdist(sdist)
    assert read_wheel(again) == read_wheel(wheel), "the archive builds another wheel than the repository"
    print(f"{wheel.name}: {len(read_wheel(wheel))} files; {sdist.name}: {len(read_sdist(sdist))} files")  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]))
