"""The demo: a stream is cut and a worker is killed during a call. Run `make demo`."""
