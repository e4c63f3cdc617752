"""The root store's paths: events that Redis acknowledges before `store_event` returns."""
