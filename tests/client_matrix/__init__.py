"""MCP clients of other projects, on two workers behind a router that is never sticky: `make test-clients`."""
