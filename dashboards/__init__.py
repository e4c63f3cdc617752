"""The Grafana dashboards and Prometheus rules, built from the catalog: `python -m dashboards` writes the files."""
