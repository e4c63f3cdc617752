"""Sessions are refused before mcp 1.30."""

import pytest

import mcp_eventscope
from mcp_eventscope import IncompatibleSDKError


@pytest.mark.parametrize("name", ["http_app", "ResumableSessionManager"])
def test_sessions_before_1_30_are_refused_by_name(name: str) -> None:
    """The session manager of these versions cannot be extended."""
    with pytest.raises(IncompatibleSDKError, match=rf"1\.30 or a later 1\.x for {name}, got 1\."):
        getattr(mcp_eventscope, name)
