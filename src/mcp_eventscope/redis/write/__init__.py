"""The write path: accepting, batching, sending and acknowledging events."""
