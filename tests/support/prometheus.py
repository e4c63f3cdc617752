"""A real Prometheus, with whatever configuration a test gives it."""

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from support.binaries import program
from support.http_client import NO_TLS
from support.servers import HOST, free_port, text_of
from support.waiting import CEILING, eventually


@dataclass(frozen=True)
class Prometheus:
    """One that runs."""

    url: str
    http: httpx2.Client

    def ask(self, path: str, **parameters: str) -> Any:
        """What its HTTP API answers: the `data`.

        Args:
            path: Behind `/api/v1/`.
            **parameters: Of the query.
        """
        answer = self.http.get(f"{self.url}/api/v1/{path}", params=parameters).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of an instant query."""
        result: list[dict[str, Any]] = self.ask("query", query=expression)["result"]
        return result

    def value(self, expression: str) -> float | None:
        """The one value of an instant query; None where there is none."""
        samples = self.query(expression)
        assert len(samples) <= 1, samples
        return float(samples[0]["value"][1]) if samples else None

    def alerts(self, state: str = "firing") -> set[str]:
        """The names of the alerts that are in a state."""
        return {alert["labels"]["alertname"] for alert in self.ask("alerts")["alerts"] if alert["state"] == state}


@contextmanager
def prometheus(config: Path) -> Iterator[Prometheus]:
    """Run a Prometheus until the block ends.

    Args:
        config: Its configuration; other files that it names are beside it.
    """
    port = free_port()
    url = f"http://{HOST}:{port}"
    with tempfile.TemporaryDirectory(prefix="es-") as data, tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [
                program("prometheus", "prometheus"),
                f"--config.file={config}",
                f"--storage.tsdb.path={data}",
                f"--web.listen-address={HOST}:{port}",
                "--enable-feature=exemplar-storage",
            ],
            stdout=log,
            stderr=log,
        )
        try:
            with httpx2.Client(verify=NO_TLS, trust_env=False, timeout=CEILING) as http:

                def ready() -> bool:
                    assert process.poll() is None, text_of(log)
                    with contextlib.suppress(httpx2.TransportError):
                        return http.get(f"{url}/-/ready").status_code == 200
                    return False

                eventually(ready, otherwise=lambda: text_of(log))
                yield Prometheus(url, http)
        finally:
            process.terminate()
            process.wait(CEILING)
