"""The official conformance suite of MCP, on two workers behind a router: `make test-conformance`."""
