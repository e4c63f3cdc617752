"""The write path: what is accepted, batched, sent and acknowledged."""
