"""The chart's dashboard and alerts ask only for series that the server has, and its YAML parses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from crishim.metrics.node import NodeMetrics

CHART = Path(__file__).resolve().parents[3] / "charts" / "crishim"
ALERTS = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())
DASHBOARD = json.loads((CHART / "files" / "dashboard.json").read_text())

EXPRESSIONS = {
    **{rule["alert"]: rule["expr"] for group in ALERTS["groups"] for rule in group["rules"]},
    **{panel["title"]: target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]},
}


def _series() -> set[str]:
    """Names of the node's series, whether or not they have a sample yet, and of the containers' that the chart uses."""
    page = NodeMetrics("0.1.0", lambda: [("attach", 1.0)]).render().decode()
    names = {"up", "crishim_container_execs_total"}
    for family in text_string_to_metric_families(page):
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}.get(family.type, ("",))
        names |= {family.name + suffix for suffix in suffixes}
    return names


@pytest.mark.parametrize("title", EXPRESSIONS)
def test_an_expression_asks_for_series_that_exist(title: str) -> None:
    used = set(re.findall(r"\b(?:crishim_[a-z_]+|up)(?=[\[{ )])", EXPRESSIONS[title]))
    assert used
    assert used <= _series()


def test_values_and_chart_agree_on_the_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == "0.1.0"
    assert values["image"]["tag"] == ""


def test_every_panel_has_a_place_of_its_own() -> None:
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]]
    assert len(set(places)) == len(places)


def test_templates_and_values_know_each_other() -> None:
    def leaves(tree: dict[str, Any], path: str = "") -> Iterator[str]:
        for key, value in tree.items():
            if isinstance(value, dict) and key not in ("resources", "labels", "nodeSelector"):
                yield from leaves(value, f"{path}{key}.")
            else:
                yield path + key

    text = "\n".join(path.read_text() for path in (CHART / "templates").iterdir())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert set(re.findall(r"\.Values\.([\w.]+)", text)) == set(leaves(values))
