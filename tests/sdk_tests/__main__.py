"""Run the SDK's own tests with the parts of this package in the SDK's place: `make test-sdk`.

    python -m sdk_tests [sdk|manager|redis …] [--pytest="ARGUMENTS"]

The tests come from the SDK's source distribution, which pip downloads once into `build/sdk-tests`, by version and hash.
Exits 0 if every test passed, or failed as `differences.py` expects. Needs the dependency group `sdk-tests`.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from sdk_tests.differences import Parts

ROOT = Path(__file__).parents[2]
DIRECTORY = ROOT / "build" / "sdk-tests"
NAME = "mcp-2.3.0"
"""The release whose tests are run; the dependency group installs the same one."""
SHA256 = "8b147a50441cf059dc88c684e0aeed3687f0aa0f39c6cde7b90330effd2b34d8"
TESTS = (
    "interaction",
    "client/test_http_unicode.py",
    "client/test_streamable_http.py",
    "docs_src/test_asgi.py",
    "docs_src/test_deploy.py",
    "docs_src/test_legacy_clients.py",
    "issues/test_1363_race_condition_streamable_http.py",
    "server/test_streamable_http_manager.py",
    "server/test_streamable_http_modern.py",
    "server/test_streamable_http_router.py",
    "server/test_streamable_http_security.py",
    "shared/test_streamable_http.py",
)
"""The SDK's tests of streamable HTTP, sessions and resumption, below its folder `tests`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tests; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m sdk_tests", description=(__doc__ or "").partition("\n")[0])
    names = [part.value for part in Parts]
    parser.add_argument("parts", nargs="*", metavar="PARTS", help=f"of {', '.join(names)}; all by default")
    parser.add_argument("--pytest", default="", help="further arguments of pytest")
    options = parser.parse_args(arguments)
    source = sources()
    failed = False
    for part in [Parts(name) for name in options.parts or names]:
        print(f"== {part.value}", flush=True)
        failed |= run(source, part, options.pytest.split()) != 0
    return int(failed)


def sources() -> Path:
    """The directory of the SDK's sources, downloaded and unpacked where that has not been done."""
    archive = DIRECTORY / f"{NAME}.tar.gz"
    unpacked = DIRECTORY / NAME
    if not archive.exists():
        package = NAME.replace("-", "==")
        command = ["pip", "download", "--quiet", "--no-deps", "--no-binary", "mcp", "--dest", str(DIRECTORY), package]
        subprocess.run([sys.executable, "-m", *command], check=True)
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != SHA256:
        msg = f"{archive} must have the SHA-256 {SHA256}, got {found}; delete it to download it again"
        raise SystemExit(msg)
    if not unpacked.exists():
        with tarfile.open(archive) as files:
            files.extractall(DIRECTORY, filter="data")
    return unpacked


def run(source: Path, parts: Parts, arguments: Sequence[str]) -> int:
    """Run the SDK's tests with some parts; returns the exit status of pytest."""
    environment = {
        **os.environ,
        "EVENTSCOPE_SDK_TESTS": parts.value,
        "PYTHONPATH": os.pathsep.join((str(ROOT / "tests"), str(ROOT))),
    }
    settings = ["-o", "log_cli=false", "-o", "addopts=-p anyio", "--timeout", "120"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "sdk_tests.plugin", *settings, *arguments]
    tests = [f"tests/{each}" for each in TESTS]
    return subprocess.run([*command, *tests], cwd=source, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
