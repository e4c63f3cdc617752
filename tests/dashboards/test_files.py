"""Generated files: current, contained in the wheel, and exported by the command line."""

import json
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import yaml

from dashboards.__main__ import files
from dashboards.rules import alert_file
from mcp_eventscope.cli.bundled import FORMATS
from mcp_eventscope.cli.main import main
from support.boards import FOLDER, GRAFANA, PROMETHEUS

COMMITTED = {path.relative_to(FOLDER).as_posix(): path for folder in (GRAFANA, PROMETHEUS) for path in folder.iterdir()}


def test_committed_files_are_current() -> None:
    """The committed files are the generated ones; `make dashboards` writes them."""
    built = {path.relative_to(FOLDER).as_posix(): text for path, text in files().items()}
    assert set(built) == set(COMMITTED)
    assert [name for name, text in built.items() if COMMITTED[name].read_text("utf-8") != text] == []


def test_export_writes_what_is_committed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Export copies the files of the wheel into a new directory, and lists them."""
    target = tmp_path / "new" / "folder"
    assert main(["dashboards", "export", str(target)]) == 0
    for name, path in COMMITTED.items():
        assert (target / name).read_text("utf-8") == path.read_text("utf-8")
    assert capsys.readouterr().out.split() == [str(target / name) for name in sorted(COMMITTED)]


def test_export_again_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Identical existing files are no error."""
    for _ in range(2):
        assert main(["dashboards", "export", str(tmp_path)]) == 0
        assert capsys.readouterr().err.startswith("next: ")


def test_export_over_changed_file_needs_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A changed file is kept, and nothing is written, without --force."""
    (tmp_path / "grafana").mkdir()
    changed = tmp_path / "grafana" / "eventscope-overview.json"
    changed.write_text("{}", encoding="utf-8")
    assert main(["dashboards", "export", str(tmp_path)]) == 1
    printed = capsys.readouterr().err
    assert str(changed) in printed
    assert "--force" in printed
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [changed]
    assert main(["dashboards", "export", str(tmp_path), "--force"]) == 0
    assert changed.read_text("utf-8") == COMMITTED["grafana/eventscope-overview.json"].read_text("utf-8")


def test_export_leads_alerts_to_a_grafana(tmp_path: Path) -> None:
    """With an address the links of alerts are absolute; dashboards are unchanged."""
    assert main(["dashboards", "export", str(tmp_path), "--grafana-url", "https://grafana.example.com/sub/"]) == 0
    for name, path in COMMITTED.items():
        written = (tmp_path / name).read_text("utf-8")
        if name.endswith("alerts.yaml"):
            assert written.count('_url: "https://grafana.example.com/sub/d/') == path.read_text("utf-8").count("_url: ")
        else:
            assert written == path.read_text("utf-8")


@pytest.mark.parametrize("layout", FORMATS)
def test_export_with_a_runbook_url_leads_every_link_there(tmp_path: Path, layout: str) -> None:
    """The alerts are those that the generator writes for that URL; panels lead to the same sections."""
    url = "https://wiki.example.com/runbook"
    arguments = ["--format", layout, "--runbook-url", url, "--grafana-url", "https://grafana.example.com"]
    assert main(["dashboards", "export", str(tmp_path), *arguments]) == 0
    written = {path.name: path.read_text("utf-8") for path in tmp_path.rglob("*") if path.is_file()}
    (rules,) = (yaml.safe_load(text) for name, text in written.items() if name.endswith("-alerts.yaml"))
    (group,) = rules.get("spec", rules)["groups"]
    (expected,) = yaml.safe_load(alert_file(url))["groups"]
    for rule, wanted in zip(group["rules"], expected["rules"], strict=True):
        assert rule["annotations"]["runbook_url"] == wanted["annotations"]["runbook_url"]
        assert rule["annotations"]["dashboard_url"].startswith("https://grafana.example.com/d/eventscope-")
    assert not [name for name, text in written.items() if "/d/eventscope-runbook" in text]


@pytest.mark.parametrize("address", ["grafana.example.com", "ftp://grafana", "https://", "https://g/?orgId=1"])
def test_export_refuses_what_is_no_address(tmp_path: Path, address: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An invalid address is refused before any file is written."""
    assert main(["dashboards", "export", str(tmp_path / "new"), "--grafana-url", address]) == 2
    assert "https://www.example.com/path" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_export_that_fails_names_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A write error is one line, without a traceback."""
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert main(["dashboards", "export", str(tmp_path / "file")]) == 1
    expected = f"mcp-eventscope: DIRECTORY must be one that can be written, got {tmp_path / 'file'} (Not a directory: "
    assert capsys.readouterr().err.startswith(expected)


def test_export_for_kubernetes_writes_objects_that_can_be_applied(tmp_path: Path) -> None:
    """One ConfigMap per dashboard, small enough for client-side `kubectl apply`, and one PrometheusRule per file."""
    arguments = ["dashboards", "export", str(tmp_path), "--format", "kubernetes", "--namespace", "monitoring"]
    assert main(arguments) == 0
    written = {path.name: path for path in tmp_path.iterdir()}
    assert len(written) == len(COMMITTED)
    for name, path in COMMITTED.items():
        kind = "configmap" if name.endswith(".json") else "prometheusrule"
        manifest = yaml.safe_load(written[f"{kind}-{path.stem}.yaml"].read_text("utf-8"))
        assert manifest["metadata"]["namespace"] == "monitoring"
        if kind == "configmap":
            assert written[f"{kind}-{path.stem}.yaml"].stat().st_size < 256 << 10
            assert manifest["metadata"]["labels"]["grafana_dashboard"] == "1"
            assert json.loads(manifest["data"][path.name]) == json.loads(path.read_text("utf-8"))
        else:
            assert manifest["apiVersion"] == "monitoring.coreos.com/v1"
            assert manifest["spec"] == yaml.safe_load(path.read_text("utf-8"))


def test_export_for_provisioning_adds_a_provider(tmp_path: Path) -> None:
    """The provider names the directory on Grafana's host."""
    arguments = ["dashboards", "export", str(tmp_path), "--format", "provisioning", "--provisioned", "/d"]
    assert main(arguments) == 0
    provider = yaml.safe_load(
        (tmp_path / "grafana" / "provisioning" / "dashboards" / "mcp-eventscope.yaml").read_text("utf-8")
    )
    assert provider["providers"][0]["options"]["path"] == "/d"
    assert len(list((tmp_path / "grafana").glob("*.json"))) == len(list(GRAFANA.iterdir()))


def test_export_and_its_failure_have_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One object each."""
    assert main(["dashboards", "export", str(tmp_path / "d"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["files"]) == len(COMMITTED)
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert main(["dashboards", "export", str(tmp_path / "file"), "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert (result["command"], result["error"]["code"]) == ("dashboards export", "failed")


def test_entry_point_is_the_command_line() -> None:
    """`mcp-eventscope` is an entry point."""
    (script,) = entry_points(group="console_scripts", name="mcp-eventscope")
    assert script.load() is main
