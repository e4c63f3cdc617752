"""Tasks of revision 2026-07-28 that outlive their connection."""
