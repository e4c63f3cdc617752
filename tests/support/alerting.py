"""Cases for `promtool test rules`: what Prometheus has scraped, and the alerts that follow."""

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dashboards.rules import alerts, dashboard_url, description_of, runbook_url
from support.binaries import program
from support.boards import PROMETHEUS

ALERTS = {alert.name: alert for alert in alerts()}
WHO = {"job": "mcp", "store": "default"}
JSON = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One alert, in one situation.

    `series` are values in promtool's notation, by selector without `job` and `store`. `fires` are the labels of the
    alerts that fire, beside these two; empty: none fires. `value` and `rate` are the numbers in
    its annotations. `when`, `every`: durations.
    """

    alert: str
    why: str
    series: Mapping[str, str]
    when: str
    fires: Sequence[Mapping[str, str]] = ()
    value: str = ""
    rate: str = ""
    every: str = "1m"
    labels: Mapping[str, str] = field(default_factory=lambda: dict(WHO))

    def json(self) -> JSON:
        """What promtool reads."""
        alert = ALERTS[self.alert]
        return {
            "interval": self.every,
            "input_series": [
                {"series": _labelled(series, self.labels), "values": values} for series, values in self.series.items()
            ],
            "alert_rule_test": [
                {
                    "alertname": self.alert,
                    "eval_time": self.when,
                    "exp_alerts": [
                        {
                            "exp_labels": {"severity": alert.severity, **self._labels_of(labels)},
                            "exp_annotations": {
                                "summary": self._rendered(alert.summary, labels),
                                "description": self._rendered(description_of(alert), labels),
                                "runbook_url": runbook_url(alert),
                                "dashboard_url": self._rendered(dashboard_url(alert), labels),
                            },
                        }
                        for labels in self.fires
                    ],
                }
            ],
        }

    def _labels_of(self, labels: Mapping[str, str]) -> dict[str, str]:
        return {name: value for name, value in (*self.labels.items(), *labels.items()) if value and self._keeps(name)}

    def _keeps(self, label: str) -> bool:
        return label in ALERTS[self.alert].of

    def _rendered(self, template: str, labels: Mapping[str, str]) -> str:
        """The template as Prometheus fills it in, as far as ours go."""
        known = self._labels_of(labels)
        text = re.sub(
            r"\{\{ with \$labels\.(\w+) \}\}(.*?)\{\{ \. \}\}\{\{ end \}\}",
            lambda found: found[2] + known[found[1]] if found[1] in known else "",
            template,
        )
        text = re.sub(r"\{\{ with printf .*?\{\{ end \}\}", self.rate, text)
        text = re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda found: known.get(found[1], ""), text)
        return re.sub(r"\{\{ \$value[^}]*\}\}", self.value, text)


def _labelled(series: str, labels: Mapping[str, str]) -> str:
    name, _, rest = series.partition("{")
    own = "".join(f', {label}="{value}"' for label, value in labels.items())
    instance = "" if "instance=" in rest else 'instance="a", '
    return f"{name}{{{instance}{rest.removesuffix('}')}{own}}}".replace(", ,", ",").replace("{, ", "{")


def failures_of_promtool(cases: Sequence[Case], folder: Path) -> str:
    """What promtool finds wrong; "" when all is as expected."""
    promtool = program("promtool", "prometheus")
    failures = ""
    # To evaluate is what takes the time: days are looked at every half an hour only, and each alert without the others.
    for every, alert in sorted({(case.every, case.alert) for case in cases}):
        rules, file = folder / f"{alert}.yaml", folder / f"{alert}-every-{every}.yaml"
        rules.write_text(json.dumps({"groups": _groups_for(alert)}), encoding="utf-8")  # JSON is YAML.
        tests = {
            "rule_files": [str(rules)],
            "evaluation_interval": every,
            # Else an alert sees what was recorded at the time before.
            "group_eval_order": ["eventscope-recording", "eventscope-alerts"],
            "tests": [case.json() for case in cases if (case.every, case.alert) == (every, alert)],
        }
        file.write_text(json.dumps(tests), encoding="utf-8")
        done = subprocess.run([promtool, "test", "rules", str(file)], capture_output=True, text=True, check=False)
        failures += "" if done.returncode == 0 else done.stdout + done.stderr
    return failures


def _groups_for(alert: str) -> list[JSON]:
    """The groups of the rules, with one alert, and with the recordings that it depends on."""
    files = [yaml.safe_load(path.read_text("utf-8")) for path in sorted(PROMETHEUS.glob("*.yaml"))]
    groups: list[JSON] = [group for file in files for group in file["groups"]]
    rules = {rule.get("record") or rule["alert"]: rule for group in groups for rule in group["rules"]}
    wanted = [alert]
    for name in wanted:  # It grows.
        used = re.findall(r"[A-Za-z_:][\w:]*", rules[name]["expr"])
        wanted += [each for each in dict.fromkeys(used) if each in rules and each not in wanted]
    return [
        {**group, "rules": [rule for rule in group["rules"] if (rule.get("record") or rule["alert"]) in wanted]}
        for group in groups
    ]
