"""The wheel and the source archive: what they contain, and that the archive builds the same wheel."""

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from support.distributions import PRIVATE, ROOT, check_sdist, check_wheel, project, read_wheel

TITLE = f"mcp_eventscope-{project()['version']}"


def build(source: Path, target: Path, kind: str) -> Path:
    """Build a distribution of a source tree with the build backend, which the tests have."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(target)],
        cwd=source,
        check=True,
        capture_output=True,
        timeout=120,
    )
    (found,) = target.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the repository."""
    return build(ROOT, tmp_path_factory.mktemp("wheel"), "wheel")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive of the repository."""
    return build(ROOT, tmp_path_factory.mktemp("sdist"), "sdist")


def test_wheel_contains_the_package_and_nothing_else(wheel: Path) -> None:
    """It has each file of the package, the dashboards, the rules and the licence; no test, no private file."""
    assert wheel.name == f"{TITLE}-py3-none-any.whl"
    check_wheel(wheel)


def test_source_archive_contains_what_it_names(sdist: Path) -> None:
    """It has the files that pyproject.toml includes, and no private one."""
    assert sdist.name == f"{TITLE}.tar.gz"
    check_sdist(sdist)


def test_source_archive_builds_the_same_wheel(wheel: Path, sdist: Path, tmp_path: Path) -> None:
    """Those who build from the archive install the same files."""
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    again = build(tmp_path / "source" / TITLE, tmp_path / "again", "wheel")
    assert read_wheel(again) == read_wheel(wheel)


@pytest.mark.parametrize(
    "name",
    [".env", "src/.env.local", "a/__pycache__/b.py", "x.pyc", "tests/ca.pem", "dump.rdb", ".git/config", "a.log", "b~"],
)
def test_private_name_is_recognized(name: str) -> None:
    """A name of a cache, a credential, a log or data."""
    assert PRIVATE.search(name)
