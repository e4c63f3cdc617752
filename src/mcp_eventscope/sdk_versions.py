"""The supported versions of the MCP SDK, and the check of the installed one."""

import re
from importlib.metadata import PackageNotFoundError, version

from mcp_eventscope.errors import IncompatibleSDKError

_STORES = "1.23 or a later 1.x, or 2.2 or a later 2.x"
_SESSIONS = "2.2 or a later 2.x"
_INSTALL = "run pip install 'mcp>=2.2,<3'"


def require_stores() -> None:
    """Check that the installed SDK has the interface of event stores.

    Priming events came with 1.23. 2.0 and 2.1 lack parts that sessions need, and a store alone does not need those
    versions: each server that runs on them also runs on 2.2.

    Raises:
        IncompatibleSDKError: It has another interface.
    """
    installed = _installed()
    if installed and not ((1, 23) <= installed < (2, 0) or _has_sessions(installed)):
        msg = f"mcp must be {_STORES}, got {version('mcp')}; {_INSTALL}"
        raise IncompatibleSDKError(msg)


def require_sessions(name: str) -> None:
    """Check that the installed SDK has the session manager on which a part of this package relies.

    Args:
        name: The part, which the message names.

    Raises:
        IncompatibleSDKError: It has another session manager.
    """
    require_stores()
    installed = _installed()
    if installed and not _has_sessions(installed):
        msg = (
            f"mcp must be {_SESSIONS} for {name}, got {version('mcp')}; {_INSTALL}, or use RedisEventStore and "
            "InstrumentedEventStore, which support this version"
        )
        raise IncompatibleSDKError(msg)


def _has_sessions(installed: tuple[int, int]) -> bool:
    return (2, 2) <= installed < (3, 0)


def _installed() -> tuple[int, int] | None:
    """Major and minor version of the installed SDK; None: unknown, as in a frozen application without metadata."""
    try:
        found = re.match(r"(\d+)\.(\d+)", version("mcp"))
    except PackageNotFoundError:
        return None
    return (int(found[1]), int(found[2])) if found else None
