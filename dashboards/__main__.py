"""`python -m dashboards`: write the committed files, which the wheel contains."""

import json
from pathlib import Path

from dashboards.modern import MODERN
from dashboards.overview import OVERVIEW
from dashboards.redis import REDIS
from dashboards.resume import RESUME
from dashboards.rules import alert_file, recording_file
from dashboards.runbook import runbook

HERE = Path(__file__).parent
GRAFANA = HERE / "grafana"
PROMETHEUS = HERE / "prometheus"


def files() -> dict[Path, str]:
    """The files and their contents."""
    dashboards = (OVERVIEW.json(), RESUME.json(), REDIS.json(), MODERN.json(), runbook())
    return {
        GRAFANA / f"{dashboard['uid']}.json": json.dumps(dashboard, indent=1, ensure_ascii=False) + "\n"
        for dashboard in dashboards
    } | {
        PROMETHEUS / "eventscope-recording.yaml": recording_file(),
        PROMETHEUS / "eventscope-alerts.yaml": alert_file(),
    }


def main() -> None:
    """Write the files."""
    for path, text in files().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
