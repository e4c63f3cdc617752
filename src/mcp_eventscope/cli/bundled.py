"""The dashboards and rules of the wheel, written in the forms that monitoring systems read."""

import json
import re
from collections.abc import Iterator, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from mcp_eventscope.errors import EventscopeError

_BUNDLED = "dashboards"
_LINK = '_url: "/d/'
"""The prefix of the links in the alerts, which are relative to Grafana's URL."""
_RUNBOOK = "grafana/eventscope-runbook.json"
_RUNBOOK_LINK = re.compile(r'"/d/eventscope-runbook\?[^"]*viewPanel=([^"]+)"')
"""A link of an alert or a panel to a section of the runbook, by the id of its panel, or by a column of the row."""
_RUNBOOK_COLUMN = re.compile(r'(?<=\\"section\\", \\")\d+(?=\\")')
"""That column, as a query sets it."""
CONFIGMAP_BYTES = 1_000_000
"""Maximum bytes of a ConfigMap: etcd refuses an object above 1 MiB, which includes its metadata."""
FORMATS = ("files", "provisioning", "kubernetes")
"""The formats of `export`."""
FOLDER_TITLE = "MCP event store"
"""The title of the dashboards' folder in Grafana."""
PROVISIONED = "/var/lib/grafana/dashboards/mcp-eventscope"
"""The directory from which Grafana reads provisioned dashboards, unless another one is given."""


class ExportError(EventscopeError):
    """The files could not be written; the message has the reason and the fix."""


def export(  # noqa: PLR0913 - the options of the command
    directory: Path,
    *,
    layout: str = "files",
    grafana_url: str | None = None,
    runbook_url: str | None = None,
    namespace: str | None = None,
    provisioned: str = PROVISIONED,
    force: bool = False,
) -> list[Path]:
    """Write the dashboards and rules.

    Args:
        directory: The directory, which is created if it does not exist.
        layout: One of `FORMATS`. `files`: `grafana/*.json` and `prometheus/*.yaml`. `provisioning`: the same, and a
            provider for Grafana's provisioning. `kubernetes`: a ConfigMap per dashboard with the label that Grafana's
            sidecar selects, and a PrometheusRule per file of rules.
        grafana_url: The URL of Grafana, for absolute links in the alerts.
        runbook_url: The URL of the runbook for the links of alerts and panels; see `bundled_files`.
        namespace: The namespace of the Kubernetes objects; None: that of `kubectl apply`.
        provisioned: The directory of the dashboards on Grafana's host, for `provisioning`.
        force: Whether to replace existing files with different content.

    Returns:
        The files, in order.

    Raises:
        ExportError: The files cannot be written, would replace others, or are not in this installation.
    """
    bundled = dict(bundled_files(runbook_url))
    if grafana_url is not None:
        base = grafana_url.rstrip("/")
        bundled = {
            name: text.replace(_LINK, f'_url: "{base}/d/') if name.endswith(".yaml") else text
            for name, text in bundled.items()
        }
    if layout == "kubernetes":
        bundled = dict(_objects(bundled, namespace))
    elif layout == "provisioning":
        bundled["grafana/provisioning/dashboards/mcp-eventscope.yaml"] = _provider(provisioned)
    texts = {directory / name: text for name, text in bundled.items()}
    try:
        changed = [path for path, text in texts.items() if path.exists() and path.read_text("utf-8") != text]
        if changed and not force:
            msg = f"{changed[0]} exists with different content ({len(changed)} in all); --force replaces it"
            raise ExportError(msg)
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = f"{error.strerror}: {error.filename}" if isinstance(error, OSError) else "a file in it is no text"
        msg = f"DIRECTORY must be one that can be written, got {directory} ({reason}); choose another one"
        raise ExportError(msg) from error
    return list(texts)


def bundled_files(runbook_url: str | None = None) -> Iterator[tuple[str, str]]:
    """The relative names and texts of the files in the wheel.

    Args:
        runbook_url: The URL of a page with a section per alert, whose anchor is the name of the alert in lower case,
            such as a rendered `docs/runbook.md`. Links of alerts and panels lead there. None: they lead to the runbook
            dashboard, relative to Grafana's URL.

    Raises:
        ExportError: This installation has none.
    """
    root = files("mcp_eventscope").joinpath(_BUNDLED)
    if not root.is_dir():
        msg = "this installation has no dashboards (an editable one has none); install the wheel"
        raise ExportError(msg)
    found = {
        f"{folder.name}/{file.name}": file.read_text("utf-8")
        for folder in sorted(root.iterdir(), key=_name)
        for file in sorted(folder.iterdir(), key=_name)
    }
    if runbook_url is not None:
        anchors = {f"{panel['id']}": panel["title"].lower() for panel in json.loads(found[_RUNBOOK])["panels"]}
        found = {name: _with_runbook(text, runbook_url, anchors) for name, text in found.items()}
    yield from found.items()


def _with_runbook(text: str, url: str, anchors: Mapping[str, str]) -> str:
    """Lead the links of a file to a runbook outside of Grafana.

    Args:
        text: The file.
        url: The URL of the runbook.
        anchors: The anchors of its sections by the ids of the dashboard's panels.
    """
    text = _RUNBOOK_COLUMN.sub(lambda section: anchors[section[0]], text)
    return _RUNBOOK_LINK.sub(lambda link: f'"{url}#{anchors.get(link[1], link[1])}"', text)


def _name(entry: Traversable) -> str:
    return entry.name


def _provider(provisioned: str) -> str:
    """A file for `/etc/grafana/provisioning/dashboards`."""
    return f"""apiVersion: 1
providers:
  - name: mcp-eventscope
    folder: {json.dumps(FOLDER_TITLE)}
    type: file
    allowUiUpdates: false
    options:
      path: {json.dumps(provisioned)}
"""


def _objects(bundled: Mapping[str, str], namespace: str | None) -> Iterator[tuple[str, str]]:
    """A Kubernetes object per file, as YAML."""
    for name, text in bundled.items():
        folder, _, file = name.partition("/")
        stem = file.rpartition(".")[0]
        where = "" if namespace is None else f"  namespace: {json.dumps(namespace)}\n"
        if folder == "grafana":
            # Without spaces it is half as large: `kubectl apply` keeps a copy in an annotation of at most 256 KiB.
            compact = json.dumps(json.loads(text), separators=(",", ":"))
            if len(compact) > CONFIGMAP_BYTES:
                msg = f"{file} must fit a ConfigMap, got {len(compact)} bytes; provision it as a file"
                raise ExportError(msg)
            folder_title = json.dumps(FOLDER_TITLE)
            manifest = _CONFIGMAP.format(
                name=stem, where=where, folder=folder_title, file=file, text=_indented(compact, 4)
            )
            yield f"configmap-{stem}.yaml", manifest
        else:
            groups = text.partition("\ngroups:\n")[2]
            yield f"prometheusrule-{stem}.yaml", _RULE.format(name=stem, where=where, groups=_indented(groups, 2))


_CONFIGMAP = """apiVersion: v1
kind: ConfigMap
metadata:
  name: {name}
{where}  labels:
    grafana_dashboard: "1"
    app.kubernetes.io/part-of: mcp-eventscope
  annotations:
    grafana_folder: {folder}
data:
  {file}: |
{text}"""
_RULE = """apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: {name}
{where}  labels:
    app.kubernetes.io/part-of: mcp-eventscope
spec:
  groups:
{groups}"""


def _indented(text: str, spaces: int) -> str:
    lines = (f"{' ' * spaces}{line}" if line else "" for line in text.rstrip("\n").split("\n"))
    return "\n".join(lines) + "\n"
