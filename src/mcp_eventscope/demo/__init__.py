"""The demo: cuts a stream, and kills a worker during a call (`mcp-eventscope demo`)."""
