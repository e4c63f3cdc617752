"""`mcp-eventscope dashboards push`, against a stub of Grafana's HTTP API."""

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from dashboards import links
from mcp_eventscope.cli.grafana import FOLDER_UID
from mcp_eventscope.cli.main import main
from support.servers import HOST, free_port

TOKEN = "glsa_hunter2"


class Grafana(ThreadingHTTPServer):
    """Folders and dashboards behind `POST /api/dashboards/db` and `/api/folders`."""

    def __init__(self) -> None:
        super().__init__((HOST, 0), _Handler)
        self.folders: dict[str, str] = {}
        self.dashboards: dict[str, dict[str, Any]] = {}
        self.path = ""
        self.role = "Editor"
        self.other: tuple[int, str, bytes] | None = None
        """The answer of another server at this address."""

    @property
    def url(self) -> str:
        """The address, with a path."""
        return f"http://{HOST}:{self.server_address[1]}{self.path}"


class _Handler(BaseHTTPRequestHandler):
    server: Grafana

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _refused(self) -> bool:
        if self.server.other is not None:
            status, content_type, body = self.server.other
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        elif self.headers["Authorization"] != f"Bearer {TOKEN}":
            self._answer(401, {"message": "Invalid API key"})
        elif self.server.role == "Viewer" and self.command == "POST":
            self._answer(403, {"message": "You'll need additional permissions to perform this action."})
        else:
            return False
        return True

    def do_GET(self) -> None:
        """Look up a folder."""
        uid = self.path.removeprefix(f"{self.server.path}/api/folders/")
        if self._refused():
            return
        if uid in self.server.folders:
            self._answer(200, {"uid": uid, "title": self.server.folders[uid]})
        else:
            self._answer(404, {"message": "folder not found"})

    def do_POST(self) -> None:
        """Create a folder or a dashboard."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._refused():
            return
        if self.path == f"{self.server.path}/api/folders":
            self.server.folders[body["uid"]] = body["title"]
            self._answer(200, {"uid": body["uid"], "title": body["title"]})
        elif self.path == f"{self.server.path}/api/dashboards/db":
            uid = body["dashboard"]["uid"]
            if uid in self.server.dashboards and not body["overwrite"]:
                self._answer(412, {"status": "version-mismatch", "message": "it has been changed by someone else"})
                return
            self.server.dashboards[uid] = body
            url = f"{self.server.path}/d/{uid}/slug"
            self._answer(200, {"id": 1, "uid": uid, "url": url, "status": "success", "version": 1, "slug": "slug"})
        else:
            self._answer(404, {"message": "Not found"})


@pytest.fixture
def grafana() -> Iterator[Grafana]:
    """An empty Grafana."""
    with Grafana() as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        yield server
        server.shutdown()
        serving.join()


@pytest.mark.parametrize("path", ["", "/grafana"])
def test_push_imports_all_dashboards_and_replaces_them(
    grafana: Grafana, capsys: pytest.CaptureFixture[str], path: str
) -> None:
    """All dashboards are imported into a folder, below any path; a second push replaces them."""
    grafana.path = path
    for _ in range(2):
        assert main(["dashboards", "push", "--grafana", grafana.url, "--token", TOKEN]) == 0
    assert grafana.folders == {FOLDER_UID: "MCP event store"}
    assert len(grafana.dashboards) >= 3
    output, note = capsys.readouterr()
    assert TOKEN not in output
    assert "select your Prometheus in the variable 'Data source'" in note
    for uid, imported in grafana.dashboards.items():
        assert imported["folderUid"] == FOLDER_UID
        assert imported["overwrite"] is True
        assert imported["dashboard"]["id"] is None
        assert f"{grafana.url}/d/{uid}/slug" in output


def test_push_with_a_runbook_url_leads_panels_there(grafana: Grafana) -> None:
    """The links of panels, and of the rows of the table of problems, lead to sections of that page."""
    url = "https://wiki.example.com/runbook"
    assert main(["dashboards", "push", "--grafana", grafana.url, "--token", TOKEN, "--runbook-url", url]) == 0
    sections = {name.lower() for name in links.SECTIONS}
    text = json.dumps([imported["dashboard"] for imported in grafana.dashboards.values()])
    anchors = set(re.findall(rf'"{re.escape(url)}#([^"]+)"', text))
    assert "${__data.fields.section}" in anchors
    assert anchors - {"${__data.fields.section}"} <= sections
    of_rows = re.findall(r'\\"section\\", \\"([^"\\]+)', text)
    assert of_rows
    assert set(of_rows) <= sections
    assert "/d/eventscope-runbook" not in text


def test_token_of_the_environment(
    grafana: Grafana, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The token can come from the environment; without one nothing is sent."""
    monkeypatch.delenv("GRAFANA_TOKEN", raising=False)
    assert main(["dashboards", "push", "--grafana", grafana.url]) == 2
    assert "GRAFANA_TOKEN" in capsys.readouterr().err
    monkeypatch.setenv("GRAFANA_TOKEN", f"{TOKEN}\n")  # As of a file.
    assert main(["dashboards", "push", "--grafana", grafana.url]) == 2
    refused = capsys.readouterr().err
    assert "remove line breaks" in refused
    assert TOKEN not in refused
    monkeypatch.setenv("GRAFANA_TOKEN", TOKEN)
    assert main(["dashboards", "push", "--grafana", grafana.url, "--folder", "Ours"]) == 0
    assert grafana.folders == {FOLDER_UID: "Ours"}


def test_push_that_is_refused_names_a_remedy_and_no_token(grafana: Grafana, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong token, a missing role, and an unreachable Grafana: each error has a remedy, and no token."""
    assert main(["dashboards", "push", "--grafana", grafana.url, "--token", "glsa_wrong"]) == 1
    wrong = capsys.readouterr().err
    assert "rejected the token" in wrong
    assert "glsa_wrong" not in wrong
    grafana.role = "Viewer"
    assert main(["dashboards", "push", "--grafana", grafana.url, "--token", TOKEN]) == 1
    assert "Editor" in capsys.readouterr().err
    assert main(["dashboards", "push", "--grafana", f"http://{HOST}:{free_port()}", "--token", TOKEN]) == 1
    assert "Grafana does not answer" in capsys.readouterr().err
    assert grafana.dashboards == {}


@pytest.mark.parametrize(
    ("status", "content_type", "body", "fix"),
    [
        (200, "text/html", b"<html>log in</html>", "check the URL and its path"),
        (200, "application/json", b"[]", "check the URL and its path"),
        (200, "application/json", b'{"status": "ok"}', "check the URL and its path"),
        (400, "text/html", b"The plain HTTP request was sent to HTTPS port", "whether it begins with https://"),
        (404, "text/html", b"<html>" + b"x" * 5000, "check the URL, its path"),
        (502, "text/plain", b"bad gateway", "look at the log of Grafana"),
    ],
)
def test_push_to_another_server_names_the_fix(  # noqa: PLR0913, PLR0917 - an answer and the fix
    grafana: Grafana, capsys: pytest.CaptureFixture[str], status: int, content_type: str, body: bytes, fix: str
) -> None:
    """A page of a proxy or a log-in, or another API, is no traceback, and is not repeated at length."""
    grafana.other = status, content_type, body
    assert main(["dashboards", "push", "--grafana", grafana.url, "--token", TOKEN]) == 1
    printed = capsys.readouterr().err
    assert fix in printed
    assert len(printed) < 500
    assert TOKEN not in printed
    assert "Traceback" not in printed


def test_push_over_tls_to_a_port_without_names_the_fix(grafana: Grafana, capsys: pytest.CaptureFixture[str]) -> None:
    """https:// instead of http:// is the URL's mistake, not Grafana's."""
    url = grafana.url.replace("http://", "https://")
    assert main(["dashboards", "push", "--grafana", url, "--token", TOKEN]) == 1
    assert "write http:// in the URL if this port has no TLS" in capsys.readouterr().err
