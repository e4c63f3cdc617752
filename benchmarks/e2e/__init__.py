"""The end-to-end benchmark: four MCP servers as a client experiences them."""

CONTESTANT = "BENCHMARK_CONTESTANT"
REDIS_URL = "BENCHMARK_REDIS_URL"
FAST = "BENCHMARK_FAST"
"""Environment variables of a server: its contestant, its Redis, and whether it may use hiredis."""
