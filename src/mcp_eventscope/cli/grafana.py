"""Dashboards into a Grafana, over its HTTP API: the one module that imports grafana-client (the extra `grafana`)."""

import json
from collections.abc import Iterable
from typing import Any

from mcp_eventscope.errors import EventscopeError

FOLDER_UID = "mcp-event-store"
FOLDER_TITLE = "MCP event store"
_NOT_FOUND, _FORBIDDEN = 404, 403


class PushError(EventscopeError):
    """Grafana did not take a dashboard; the message says why, and what to do. It never holds the token."""


def push(url: str, token: str, dashboards: Iterable[tuple[str, str]], *, folder: str = FOLDER_TITLE) -> list[str]:
    """Import dashboards, into a folder of their own; those that are there are replaced.

    Args:
        url: Where Grafana is, with a path if it is served below one.
        token: Of a service account with the role Editor.
        dashboards: The name and the JSON of each.
        folder: The title of the folder, should it not be there yet.

    Returns:
        The addresses of the dashboards, in order.

    Raises:
        PushError: grafana-client is not installed, Grafana cannot be reached, or refuses.
    """
    try:
        from grafana_client.api import GrafanaApi  # noqa: PLC0415 - an extra
        from grafana_client.client import GrafanaClientError, GrafanaException, GrafanaUnauthorizedError  # noqa: PLC0415
    except ImportError as error:
        msg = "pushing needs grafana-client: pip install 'mcp-eventscope[grafana]'"
        raise PushError(msg) from error
    base = url.rstrip("/")
    grafana = GrafanaApi.from_url(f"{base}/", credential=token)  # The slash, or a path is run into the one behind it.
    try:
        try:
            grafana.folder.get_folder(FOLDER_UID)
        except GrafanaClientError as error:
            if error.status_code != _NOT_FOUND:
                raise
            grafana.folder.create_folder(folder, uid=FOLDER_UID)
        return [f"{base}{_path(_import(grafana, name, text))}" for name, text in dashboards]
    except GrafanaUnauthorizedError as error:
        msg = f"Grafana at {base} does not know this token: make one for a service account with the role Editor"
        raise PushError(msg) from error
    except GrafanaException as error:
        hint = ": the service account needs the role Editor" if error.status_code == _FORBIDDEN else ""
        msg = f"Grafana at {base} refused: {error.message}{hint}"
        raise PushError(msg) from error
    except (OSError, ValueError) as error:  # What its HTTP library raises is an OSError.
        msg = f"no Grafana answers at {base}: {type(error).__name__}. Is the address right, with its path?"
        raise PushError(msg) from error


def _import(grafana: Any, name: str, text: str) -> Any:
    dashboard = json.loads(text)
    return grafana.dashboard.update_dashboard(
        {
            # Found by its uid: an id would be that of another Grafana.
            "dashboard": {**dashboard, "id": None},
            "folderUid": FOLDER_UID,
            "overwrite": True,
            "message": f"mcp-eventscope: {name}",
        }
    )


def _path(answer: Any) -> str:
    """Where Grafana says that the dashboard is; below its own path if it is served below one, which the base has."""
    path = str(answer["url"])
    return path[path.index("/d/") :] if "/d/" in path else path
