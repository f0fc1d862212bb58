"""The chart as Helm renders it, with everything on and with the defaults."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e import tools

CHART = Path(__file__).resolve().parents[2] / "charts" / "crishim"


@pytest.fixture(scope="module")
def helm() -> Path:
    path = tools.find("helm")
    if path is None:
        pytest.skip("helm is not built: make e2e-tools TOOLS=helm")
    return path


def render(helm: Path, *settings: str) -> list[dict[str, Any]]:
    flags = [word for setting in settings for word in ("--set", setting)]
    # helm would take itself for a very old cluster
    where = ("--namespace", "kube-system", "--kube-version", "1.37.0")
    command = [str(helm), "template", "node", str(CHART), *where, *flags]
    rendered = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [document for document in yaml.safe_load_all(rendered) if document]


def kinds(documents: list[dict[str, Any]]) -> list[str]:
    return sorted(document["kind"] for document in documents)


def test_the_chart_passes_lint(helm: Path) -> None:
    assert subprocess.run([helm, "lint", "--strict", CHART], stdout=subprocess.DEVNULL).returncode == 0


def test_by_default_it_installs_and_offers_metrics(helm: Path) -> None:
    assert kinds(render(helm)) == ["DaemonSet", "Service"]


def test_with_everything_on_each_object_is_there_and_selects_the_pods(helm: Path) -> None:
    metrics = "metrics.podMonitor.enabled=true,metrics.alerts.enabled=true,metrics.dashboard.enabled=true"
    documents = render(helm, metrics, "config=[network]")
    assert kinds(documents) == ["ConfigMap", "ConfigMap", "DaemonSet", "PodMonitor", "PrometheusRule", "Service"]
    by_kind = {document["kind"]: document for document in documents}
    labels = by_kind["DaemonSet"]["spec"]["template"]["metadata"]["labels"]
    assert by_kind["Service"]["spec"]["selector"] == labels
    assert by_kind["PodMonitor"]["spec"]["selector"]["matchLabels"] == labels
    assert [group["name"] for group in by_kind["PrometheusRule"]["spec"]["groups"]] == ["crishim"]
    assert by_kind["PrometheusRule"]["spec"]["groups"][0]["rules"][0]["annotations"]["summary"].count("{{") == 1


def test_a_configuration_reaches_the_installer_and_changes_the_pods(helm: Path) -> None:
    first, second = (
        next(each for each in render(helm, f"config={text}") if each["kind"] == "DaemonSet") for text in ("a", "b")
    )
    mounts = first["spec"]["template"]["spec"]["initContainers"][0]["volumeMounts"]
    assert [mount["name"] for mount in mounts] == ["host", "config"]
    assert first["spec"]["template"]["metadata"] != second["spec"]["template"]["metadata"]
