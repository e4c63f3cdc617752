"""Test on each supported Python, with the newest and the oldest dependencies: `make matrix`.

`nox -s tests-3.13` runs one session, `nox --list` lists them. A Python that is not installed is skipped. Arguments
after `--` go to pytest: `nox -s oldest-3.11 -- tests/unit -x`.
"""

import nox

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PARALLEL = ("-n", "auto", "--maxprocesses", "4", "--dist", "loadfile")
PACKAGE = (".[embedded,grafana,testing]", "--group", "test", "--group", "demo")
# uv caches a build by pyproject.toml alone, and would install the package as it was before an edit of the sources.
REBUILT = ("--reinstall-package", "mcp-eventscope")

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


def _test(session: nox.Session) -> None:
    session.run("pytest", *(session.posargs or ("-m", "not slow", *PARALLEL)))
