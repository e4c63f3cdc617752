"""Programs that measure what the library costs, on this machine, with real servers."""
