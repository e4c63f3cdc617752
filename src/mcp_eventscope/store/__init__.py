"""The store protocol: results, events, the JSON codec, and the adapter for third-party stores."""

from mcp_eventscope.sdk_versions import require_stores

require_stores()
