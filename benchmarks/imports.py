"""CPU time of imports: of the store, and of `http_app`, beside the MCP SDK and redis-py alone.

    python -m benchmarks.imports [--rounds N]

Each import runs in a process of its own, in turns. The minimum counts, since other load only adds to it. The garbage
collector is off: a full collection takes a tenth of the time, and falls to whichever import happens to cross its
threshold. Exits 1 above the limit.
"""

import argparse
import subprocess
import sys

LIMIT = 1.15
"""Times the CPU time of the SDK and redis-py together."""

BASE = "SDK and redis-py"
CODES = {
    BASE: (
        "from mcp.server import MCPServer; from mcp.server.streamable_http_manager import StreamableHTTPSessionManager;"
        " import redis.asyncio, redis.asyncio.cluster"
    ),
    "RedisEventStore": (
        "from mcp.server import MCPServer; from mcp.server.streamable_http_manager import StreamableHTTPSessionManager;"
        " from mcp_eventscope import RedisEventStore"
    ),
    "http_app": "from mcp.server import MCPServer; from mcp_eventscope import http_app",
}
"""What an application imports. Each has the SDK's server, which it needs in any case."""
_TIMED = "import gc, time\ngc.disable()\nbegan = time.process_time()\n{}\nprint(time.process_time() - began)"
_DETAILS = 25


def cpu_seconds(code: str) -> float:
    """The CPU time of one import in a new process, without the start of the interpreter."""
    command = [sys.executable, "-c", _TIMED.format(code)]
    return float(subprocess.run(command, capture_output=True, check=True, text=True).stdout)  # noqa: S603 - ours


def measure(rounds: int) -> dict[str, float]:
    """The minimum of each import.

    Args:
        rounds: How often each is measured.

    Returns:
        CPU seconds.
    """
    taken: dict[str, list[float]] = {name: [] for name in CODES}
    for _ in range(rounds):
        for name, code in CODES.items():
            taken[name].append(cpu_seconds(code))
    return {name: min(seconds) for name, seconds in taken.items()}


def details(name: str) -> list[str]:
    """The modules that an import loads beside those of the base, slowest first, as `-X importtime` prints them."""
    found: dict[str, dict[str, str]] = {}
    for each in (BASE, name):
        command = [sys.executable, "-X", "importtime", "-c", CODES[each]]
        lines = subprocess.run(command, capture_output=True, check=True, text=True).stderr.splitlines()[1:]  # noqa: S603
        found[each] = {line.rpartition("|")[2].strip(): line.partition(":")[2].strip() for line in lines}
    further = [line for module, line in found[name].items() if module not in found[BASE]]
    return sorted(further, key=lambda line: -int(line.partition("|")[0]))[:_DETAILS]


def main() -> int:
    """Measure and print; return 1 if an import takes too long."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.imports", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=9, help="how often each import is measured")
    parser.add_argument("--details", action="store_true", help="print the slowest further modules, in microseconds")
    options = parser.parse_args()
    seconds = measure(max(1, options.rounds))
    for name, least in seconds.items():
        print(f"{name}: {least:.3f} s, {least / seconds[BASE]:.3f}x")
    if options.details:
        for name in list(CODES)[1:]:
            print(f"\n{name}, self | cumulative | module:", *details(name), sep="\n")
    return int(max(seconds.values()) > LIMIT * seconds[BASE])


if __name__ == "__main__":
    sys.exit(main())
