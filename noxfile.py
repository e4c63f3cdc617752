"""Test on each Python, with the newest and the oldest dependencies, and on each supported SDK: `make matrix`.

`make packages` builds the distributions and uses them in clean environments, and lists licences and advisories.

`nox -s tests-3.13` runs one session, `nox --list` lists them. A Python that is not installed is skipped. Arguments
after `--` go to pytest: `nox -s oldest-3.11 -- tests/unit -x`.
"""

from pathlib import Path

import nox

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
# The ends of the two ranges in pyproject.toml.
SDKS_1 = (("mcp==1.23.0",), ("mcp<2", "fastmcp>=2.14,<3"), ("mcp<2", "fastmcp>=3.4,<4"))
SDKS_2 = ("mcp==2.2.0", "mcp>=2.2,<3")
PARALLEL = ("-n", "auto", "--maxprocesses", "4", "--dist", "loadfile")
PACKAGE = (".[embedded,grafana,testing]", "--group", "test")
# uv caches a build by pyproject.toml alone, and would install the package as it was before an edit of the sources.
REBUILT = ("--reinstall-package", "mcp-eventscope")
DIST = Path("build/dist").resolve()
"""Where `distributions` builds."""

nox.options.sessions = ["tests", "oldest", "sdk1", "sdk2"]
nox.options.default_venv_backend = "uv"
nox.options.download_python = "never"
nox.options.reuse_venv = "yes"


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests that start no servers, with the newest dependencies."""
    session.install(*REBUILT, "--upgrade", *PACKAGE)
    _test(session)


@nox.session(python=PYTHONS)
def oldest(session: nox.Session) -> None:
    """Run the same tests with the lowest version that pyproject.toml allows of each direct dependency."""
    session.install(*REBUILT, "--resolution", "lowest-direct", *PACKAGE)
    _test(session)


@nox.session(python=PYTHONS[0])
@nox.parametrize("sdk", SDKS_1, ids=("1.oldest", "1.fastmcp2", "1.newest"))
def sdk1(session: nox.Session, sdk: tuple[str, ...]) -> None:
    """Run the tests of mcp 1.x: store and decorator, and from 1.30 on sessions, with FastMCP 2 and 3 too."""
    session.install(*REBUILT, "--upgrade", ".[embedded]", "--group", "sdk1", *sdk)
    session.run("pytest", "tests/sdk1", *session.posargs)


@nox.session(python=PYTHONS[0])
@nox.parametrize("sdk", SDKS_2, ids=("2.oldest", "2.newest"))
def sdk2(session: nox.Session, sdk: str) -> None:
    """Run the tests that start no servers, and those of `http_app`, on mcp 2.x."""
    session.install(*REBUILT, "--upgrade", *PACKAGE, sdk)
    _test(session, "tests/e2e/test_http_app.py", "tests/e2e/test_resume.py")


@nox.session(python=PYTHONS[0])
def distributions(session: nox.Session) -> None:
    """Build wheel and source archive, and the wheel from the archive; check contents and metadata."""
    for old in (*DIST.glob("*.*"), *DIST.glob("again/*.*")):
        old.unlink()
    session.run("uv", "build", "--wheel", "--quiet", "--out-dir", str(DIST), external=True)
    session.run("uv", "build", "--sdist", "--quiet", "--out-dir", str(DIST), external=True)
    (archive,) = DIST.glob("*.tar.gz")
    session.run("uv", "build", "--wheel", "--quiet", "--out-dir", str(DIST / "again"), str(archive), external=True)
    session.run("python", "tests/support/distributions.py", str(DIST))
    session.install("twine>=6.1")
    session.run("twine", "check", "--strict", *map(str, (*DIST.glob("*.whl"), archive)))


@nox.session(python=PYTHONS, reuse_venv=False, requires=["distributions"])
@nox.parametrize("kind", ("whl", "tar.gz"), ids=("wheel", "sdist"))
def packages(session: nox.Session, kind: str) -> None:
    """Install a distribution in a clean environment; import it, run the command, store and replay."""
    (found,) = DIST.glob(f"*.{kind}")
    session.install(*REBUILT, f"mcp-eventscope[embedded] @ {found.as_uri()}")
    session.run("python", "-I", "tests/packages/use.py")


@nox.session(python=PYTHONS[0])
def licences(session: nox.Session) -> None:
    """List the licence of each distribution that an installation brings; fail on one that is not allowed."""
    session.install(*REBUILT, "--upgrade", ".[embedded,grafana,testing]", "packaging")
    session.run("python", "tests/support/licences.py")


@nox.session(python=PYTHONS[0])
def audit(session: nox.Session) -> None:
    """Look up known vulnerabilities of all that an installation brings; needs the advisory service of PyPI."""
    session.install(*REBUILT, "--upgrade", ".[embedded,grafana,testing]")
    freeze = ("uv", "pip", "freeze", "--quiet", "--exclude", "mcp-eventscope")
    installed = str(session.run(*freeze, silent=True, external=True))
    listed = Path(session.create_tmp()) / "requirements.txt"
    listed.write_text(installed, "utf-8")
    # Strict: without the service it would skip every dependency, and report that none is vulnerable.
    command = ("uvx", "pip-audit", "--strict", "--disable-pip", "--no-deps", "--requirement", str(listed))
    session.run(*command, external=True)


def _test(session: nox.Session, *slow: str) -> None:
    session.run("pytest", *(session.posargs or ("-m", "not slow", *PARALLEL)))
    if slow and not session.posargs:
        session.run("pytest", *PARALLEL, *slow)
