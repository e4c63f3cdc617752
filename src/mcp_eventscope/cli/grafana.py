"""Import dashboards into Grafana over its HTTP API (the extra `grafana`)."""

import json
from collections.abc import Iterable
from typing import Any

from mcp_eventscope.cli.bundled import FOLDER_TITLE
from mcp_eventscope.errors import EventscopeError

FOLDER_UID = "mcp-event-store"
TOKEN_VARIABLE = "GRAFANA_TOKEN"  # noqa: S105 - the name of the variable
_NOT_FOUND, _FORBIDDEN = 404, 403
_REASON = 200
"""Characters of Grafana's reason."""


class PushError(EventscopeError):
    """A dashboard could not be imported. The message has the reason and fix, never the token."""


def push(url: str, token: str, dashboards: Iterable[tuple[str, str]], *, folder: str = FOLDER_TITLE) -> list[str]:
    """Import dashboards into a separate folder, replacing existing ones.

    Args:
        url: The URL of Grafana, with the path below which it is served.
        token: The token of a service account with the role Editor.
        dashboards: The name and the JSON of each dashboard.
        folder: The title of the folder if it does not exist yet.

    Returns:
        The URLs of the dashboards, in order.

    Raises:
        PushError: grafana-client is not installed, or Grafana is unreachable or refuses the import.
    """
    try:
        from grafana_client.api import GrafanaApi  # noqa: PLC0415 - an extra
        from grafana_client.client import GrafanaClientError, GrafanaException, GrafanaUnauthorizedError  # noqa: PLC0415
    except ImportError as error:
        msg = "push requires grafana-client; install it with: pip install 'mcp-eventscope[grafana]'"
        raise PushError(msg) from error
    base = url.rstrip("/")
    grafana = GrafanaApi.from_url(f"{base}/", credential=token)  # The slash separates a path from the API's.
    try:
        try:
            grafana.folder.get_folder(FOLDER_UID)
        except GrafanaClientError as error:
            if error.status_code != _NOT_FOUND:
                raise
            grafana.folder.create_folder(folder, uid=FOLDER_UID)
        return [f"{base}{_path(_import(grafana, name, text))}" for name, text in dashboards]
    except GrafanaUnauthorizedError as error:
        msg = f"Grafana at {base} rejected the token; create one for a service account with the role Editor"
        raise PushError(msg) from error
    except GrafanaException as error:
        reason = " ".join(str(error.message).split())[:_REASON]  # A proxy answers with a page.
        msg = f"Grafana at {base} refused the import: {reason}; {_fix_of(error.status_code)}"
        raise PushError(msg) from error
    except (OSError, ValueError) as error:  # Includes the errors of the HTTP library.
        fix = "check the URL and its path"
        if "SSL" in str(error):
            fix = "write http:// in the URL if this port has no TLS; else set REQUESTS_CA_BUNDLE to the file of its CA"
        msg = f"Grafana does not answer at {base}: {type(error).__name__}; {fix}"
        raise PushError(msg) from error


def _fix_of(status: int | None) -> str:
    """The remedy for a status."""
    if status == _FORBIDDEN:
        return "the service account needs the role Editor"
    if status is None or status >= 500:
        return "look at the log of Grafana, or of the proxy before it"
    return "check the URL, its path, and whether it begins with https://"


def _import(grafana: Any, name: str, text: str) -> Any:
    dashboard = json.loads(text)
    return grafana.dashboard.update_dashboard(
        {
            # Matched by uid, because ids differ between Grafana instances.
            "dashboard": {**dashboard, "id": None},
            "folderUid": FOLDER_UID,
            "overwrite": True,
            "message": f"mcp-eventscope: {name}",
        }
    )


def _path(answer: Any) -> str:
    """The path of a dashboard in Grafana's response, without the path of Grafana itself.

    Raises:
        ValueError: This is no answer of Grafana's API.
    """
    if not isinstance(answer, dict) or "url" not in answer:
        msg = "no answer of Grafana's API"
        raise ValueError(msg)
    path = str(answer["url"])
    return path[path.index("/d/") :] if "/d/" in path else path
