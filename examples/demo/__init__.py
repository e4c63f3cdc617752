"""The demo: cuts a stream, and kills a worker during a call (`make demo`)."""
