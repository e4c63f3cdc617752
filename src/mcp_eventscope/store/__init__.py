"""The store protocol: results, events, the JSON codec, and the adapter for third-party stores."""
