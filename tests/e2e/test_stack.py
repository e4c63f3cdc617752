"""The example stack: run without containers, and checked as files."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
import yaml

from support.prometheus import prometheus
from support.servers import HOST, free_port
from support.waiting import CEILING, until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
STACK = ROOT / "examples" / "stack"
RULES = ROOT / "dashboards" / "prometheus"


def _read(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))


@contextmanager
def _served(redis_url: str, metrics: Path, metrics_port: int) -> Iterator[str]:
    """The server of the stack with the command line of the stack, on free ports; yields where."""
    port = free_port()
    command = _read(STACK / "compose.yaml")["services"]["server"]["command"].split()
    command[command.index("--host") + 1] = HOST
    command[command.index("--port") + 1] = str(port)
    server = subprocess.Popen(
        [sys.executable, "-m", *command, "--log-level", "warning"],
        cwd=STACK,
        env=os.environ
        | {
            "EVENTSCOPE_REDIS_URL": redis_url,
            "PROMETHEUS_MULTIPROC_DIR": str(metrics),
            "EVENTSCOPE_METRICS_PORT": str(metrics_port),
            "EVENTSCOPE_REDIS_STATS_INTERVAL": "1",
        },
    )
    try:
        yield f"http://{HOST}:{port}/mcp"
    finally:
        server.terminate()
        server.wait(CEILING)


async def test_stack_without_containers_serves_metrics_and_rules(valkey_url: str, tmp_path: Path) -> None:
    """Two workers, clients that are cut, and a Prometheus with the stack's configuration and rules."""
    config, metrics = tmp_path / "prometheus", tmp_path / "metrics"
    metrics.mkdir()
    shutil.copytree(RULES, config / "rules")
    shutil.copy(STACK / "prometheus.yml", config)
    # What differs is where the target is, and how long one has to wait to see it.
    metrics_port = free_port()
    (config / "targets.yaml").write_text(json.dumps([{"targets": [f"{HOST}:{metrics_port}"]}]), "utf-8")
    text = (config / "prometheus.yml").read_text("utf-8")
    (config / "prometheus.yml").write_text(re.sub(r"_interval: 15s", "_interval: 1s", text), "utf-8")
    with _served(valkey_url, metrics, metrics_port) as url, prometheus(config / "prometheus.yml") as server:
        async with await anyio.open_process([sys.executable, str(STACK / "load.py"), url, "4"]) as load:
            resumed = 'sum(eventscope_replay_duration_seconds_count{outcome="resumed"})'
            await until(lambda: (server.value(resumed) or 0) > 3)
            await until(lambda: server.query("eventscope_redis_db_keys"))
            load.terminate()
        groups = server.ask("rules")["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        assert {rule["type"] for rule in rules} == {"alerting", "recording"}
        assert [rule for rule in rules if rule["health"] == "err"] == []
        assert server.alerts() == set()
        assert server.value('count(eventscope_build_info or up{job="mcp-eventscope"} == 1)')


def test_stack_files_name_existing_paths_services_and_ports() -> None:
    """Every mounted path and named service exists, and the ports agree."""
    compose = _read(STACK / "compose.yaml")
    services = compose["services"]
    for name, service in services.items():
        assert ("image" in service) != ("build" in service), name
        assert not str(service.get("image", "x:1")).endswith(":latest"), name
        assert set(service.get("depends_on", ())) <= services.keys(), name
        for volume in service.get("volumes", ()):
            assert (STACK / volume.split(":")[0]).exists(), volume
        for published in service.get("ports", ()):
            assert published.startswith("127.0.0.1:"), published
        if build := service.get("build"):
            assert (STACK / build["context"] / build["dockerfile"]).is_file()
    for line in (STACK / "Dockerfile").read_text("utf-8").splitlines():
        if line.startswith("COPY"):
            assert all((ROOT / source).exists() for source in line.split()[1:-1]), line
    (targets,) = _read(STACK / "targets.yaml")
    host, _, port = targets["targets"][0].partition(":")
    assert host in services
    assert services["server"]["environment"]["EVENTSCOPE_METRICS_PORT"] == port
    assert services["server"]["environment"]["EVENTSCOPE_REDIS_URL"].split("/")[2].split(":")[0] in services


def test_stack_provisions_grafana_with_prometheus_and_dashboards() -> None:
    """One datasource, which is the stack's Prometheus, and the dashboards where they are mounted."""
    services = _read(STACK / "compose.yaml")["services"]
    provisioning = STACK / "grafana" / "provisioning"
    (datasource,) = _read(provisioning / "datasources" / "prometheus.yaml")["datasources"]
    assert (datasource["type"], datasource["isDefault"]) == ("prometheus", True)
    assert re.fullmatch(r"http://(\w+):9090", datasource["url"])[1] in services  # type: ignore[index]
    (provider,) = _read(provisioning / "dashboards" / "eventscope.yaml")["providers"]
    mounts = dict(volume.split(":")[:2][::-1] for volume in services["grafana"]["volumes"])
    boards = STACK / mounts[provider["options"]["path"]]
    uids = [json.loads(path.read_text("utf-8"))["uid"] for path in sorted(boards.glob("*.json"))]
    assert len(uids) == len(set(uids)) >= 3
    home = Path(services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (boards / home.name).is_file()
