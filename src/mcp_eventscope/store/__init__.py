"""The store protocol: results, events, the JSON codec, and the adapter for third-party stores."""

from mcp_eventscope.sdk_versions import STORES, require_sdk

require_sdk("mcp_eventscope", STORES)
