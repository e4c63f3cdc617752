"""The store on Redis: keys, scripts, payloads, following. It imports no telemetry."""
