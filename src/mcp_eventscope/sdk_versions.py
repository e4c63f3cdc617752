"""The version of this package, the supported versions of the MCP SDK, and the check of the installed one."""

import re
from importlib.metadata import PackageNotFoundError, version

from mcp_eventscope.errors import IncompatibleSDKError


def version_of(package: str) -> str:
    """The version of an installed package; `unknown` without metadata, as in a frozen application.

    Reads files: call it at import, since stores are created in event loops.

    Args:
        package: The name of the distribution.
    """
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


VERSION = version_of("mcp-eventscope")
"""The version of this package."""

STORES = ((1, 23), (2, 2))
"""The first versions, one for each major version, with the interface of event stores: 1.23 brought priming events."""
SESSIONS = ((1, 30), (2, 2))
"""The first versions with the session manager that this package extends."""
MODERN = ((2, 2),)
"""The first versions with protocol revision 2026-07-28."""
TESTING = ((2, 2),)
"""The first versions whose messages the conformance suites pass to stores: without a wrapper."""

TESTED = "mcp 2.3.0, 2.2.0 or 1.30.0, with which this version of mcp-eventscope was tested"
"""For the errors of an installed SDK whose internals have changed."""


def require_sdk(part: str, first: tuple[tuple[int, int], ...]) -> None:
    """Check that a part of this package supports the installed SDK.

    2.0 and 2.1 are not supported, since each server that runs on them also runs on 2.2.

    Args:
        part: The part, which the message names.
        first: The first supported version of each supported major version.

    Raises:
        IncompatibleSDKError: It does not.
    """
    installed = _installed()
    if installed is None or any(each <= installed < (each[0] + 1, 0) for each in first):
        return
    supported = ", or ".join(f"{major}.{minor} or a later {major}.x" for major, minor in reversed(first))
    instead = ""
    if first != STORES and any(each <= installed < (each[0] + 1, 0) for each in STORES):
        instead = ", or use RedisEventStore and InstrumentedEventStore, which support this version"
    msg = f"mcp must be {supported} for {part}, got {version('mcp')}; run pip install 'mcp>=2.2,<3'{instead}"
    raise IncompatibleSDKError(msg)


def _installed() -> tuple[int, int] | None:
    """Major and minor version of the installed SDK; None: unknown."""
    found = re.match(r"(\d+)\.(\d+)", version_of("mcp"))
    return (int(found[1]), int(found[2])) if found else None
