"""Alert rules, dashboard and scrape configuration: they ask only for figures that there are."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from blackroad.cli.main import main
from blackroad.metrics.names import HISTOGRAM, METRICS
from tests.tidy.source import ROOT

PROMETHEUS = ROOT / "configs/prometheus"
RULES = PROMETHEUS / "blackroad.rules.yml"
TESTS = PROMETHEUS / "blackroad.rules.test.yml"
DASHBOARD = ROOT / "configs/grafana-blackroad.json"
PROMTOOL = shutil.which("promtool") or os.environ.get("PROMTOOL", "")
needs_promtool = pytest.mark.skipif(not PROMTOOL, reason="promtool is not installed")

# What Prometheus itself adds, and what /sd gives to all figures of a node.
ADDED_LABELS = {"job", "instance", "node_name"}
ADDED = {"up": set(), "scrape_duration_seconds": set()}
FUNCTIONS = {
    *("sum", "max", "min", "count", "topk", "rate", "increase", "changes", "histogram_quantile"),
    *("by", "on", "and", "or", "unless", "bool"),
}
TOKEN = re.compile(
    r"""(?P<text>"(?:[^"\\]|\\.)*")|(?P<span>\[[0-9]+[smhd]\])|(?P<number>[0-9.]+)"""
    r"""|(?P<name>[A-Za-z_:][A-Za-z0-9_:]*)"""
    r"""|(?P<sign>==|!=|<=|>=|=~|!~|[-+*/<>=(){},])|(?P<gap>\s+)"""
)
PAIRS = {"(": ")", "{": "}"}


def known() -> dict[str, set[str]]:
    """All figures by name, with their labels."""
    names: dict[str, set[str]] = dict(ADDED)
    for metric in METRICS.values():
        labels = set(metric.labels)
        if metric.kind == HISTOGRAM:
            names[f"{metric.name}_bucket"] = {*labels, "le"}
            names |= {f"{metric.name}_{end}": labels for end in ("sum", "count")}
        else:
            names[metric.name] = labels
    return names


def tokens(expression: str) -> list[tuple[str, str]]:
    found, at = [], 0
    while at < len(expression):
        match = TOKEN.match(expression, at)
        assert match, f"what is {expression[at : at + 20]!r} in {expression!r}?"
        at = match.end()
        if match.lastgroup != "gap":
            found.append((str(match.lastgroup), match[0]))
    return found


def check(expression: str) -> set[str]:
    """Return the figures that an expression asks for; an AssertionError where it makes no sense."""
    figures: set[str] = set()
    asked: set[str] = set()
    grouped: set[str] = set()
    open_: list[str] = []
    listed = tokens(expression)
    for at, (kind, text) in enumerate(listed):
        if text in PAIRS:
            open_.append(PAIRS[text])
        elif text in PAIRS.values():
            assert open_, expression
            assert open_.pop() == text, expression
        if kind != "name" or text in FUNCTIONS:
            continue
        before = [one for _, one in listed[:at]]
        if open_ and open_[-1] == "}":
            asked.add(text)
        elif "(" in before and _opens_group(before):
            grouped.add(text)
        else:
            assert text in known(), f"no figure is called {text}: {expression}"
            figures.add(text)
    assert not open_, expression
    assert figures, expression
    allowed = ADDED_LABELS.union(*(known()[one] for one in figures))
    assert asked | grouped <= allowed, (asked | grouped) - allowed
    return figures


def _opens_group(before: list[str]) -> bool:
    """Whether the innermost open parenthesis belongs to `by` or `on`."""
    depth = 0
    for at in range(len(before) - 1, -1, -1):
        if before[at] == ")":
            depth += 1
        elif before[at] == "(":
            if not depth:
                return at > 0 and before[at - 1] in ("by", "on")
            depth -= 1
    return False


def alerts() -> dict[str, dict[str, Any]]:
    told = yaml.safe_load(RULES.read_text())
    return {rule["alert"]: rule for group in told["groups"] for rule in group["rules"]}


def panels() -> list[dict[str, Any]]:
    return [one for one in json.loads(DASHBOARD.read_text())["panels"] if one["type"] != "row"]


def expressions() -> list[str]:
    of_panels = [target["expr"] for panel in panels() for target in panel["targets"]]
    return [rule["expr"] for rule in alerts().values()] + of_panels


# --- what they ask for --------------------------------------------------------------------------


@pytest.mark.parametrize("expression", expressions())
def test_every_expression_asks_for_what_there_is(expression: str) -> None:
    check(expression.replace("$job", "blackroad").replace("$instance", ".*"))


@pytest.mark.parametrize(
    "wrong",
    [
        "blackroad_slotss",
        "sum by (colour) (blackroad_slots)",
        'blackroad_tasks{colour="red"}',
        "sum(blackroad_slots",
        "blackroad_task_run_seconds",
        "rate(blackroad_slots[5 m])",
    ],
)
def test_the_check_finds_what_is_wrong(wrong: str) -> None:
    with pytest.raises(AssertionError):
        check(wrong)


# --- alerts -------------------------------------------------------------------------------------


def test_every_alert_says_what_is_wrong_and_what_to_do() -> None:
    for name, rule in alerts().items():
        assert re.fullmatch(r"Blackroad[A-Z][A-Za-z]+", name)
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"].endswith(".")


def test_the_commands_that_alerts_name_exist() -> None:
    text = RULES.read_text()
    named = set(re.findall(r"`blackroad ([a-z]+)", text))
    assert named
    there = set(main.list_commands(click.Context(main)))
    assert named <= there, named - there
    for page in re.findall(r"docs/[a-z]+\.md", text):
        assert (ROOT / page).exists(), page


def test_every_alert_is_tested_both_ways() -> None:
    told = yaml.safe_load(TESTS.read_text())
    raised: dict[str, set[bool]] = {}
    for one in told["tests"]:
        for case in one["alert_rule_test"]:
            raised.setdefault(case["alertname"], set()).add(bool(case["exp_alerts"]))
        for series in one["input_series"]:
            check(series["series"])
    assert set(raised) == set(alerts())
    assert all(both == {True, False} for both in raised.values())


@needs_promtool
@pytest.mark.parametrize(
    "words",
    [
        ("check", "rules", str(RULES)),
        ("test", "rules", str(TESTS)),
        ("check", "config", str(PROMETHEUS / "prometheus.yml")),
    ],
)
def test_promtool_agrees(words: tuple[str, ...]) -> None:
    done = subprocess.run([PROMTOOL, *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_promtool_reads_all_expressions_of_the_dashboard(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{at}", "expr": expression} for at, expression in enumerate(expressions())
    ]
    path = tmp_path / "panels.yml"
    path.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run(
        [PROMTOOL, "check", "rules", "--lint=none", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_scrape_configuration_asks_for_the_list_of_nodes() -> None:
    told = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    [job] = told["scrape_configs"]
    assert job["http_sd_configs"][0]["url"].endswith("/sd")
    assert job["job_name"] == "blackroad"
    assert all((PROMETHEUS / one).exists() for one in told["rule_files"])


# --- the dashboard ------------------------------------------------------------------------------


def test_panels_have_their_own_place_on_the_grid() -> None:
    everything = json.loads(DASHBOARD.read_text())["panels"]
    ids = [panel["id"] for panel in everything]
    assert len(set(ids)) == len(ids)
    taken: dict[tuple[int, int], str] = {}
    for panel in everything:
        at = panel["gridPos"]
        assert at["x"] >= 0
        assert at["x"] + at["w"] <= 24
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                other = taken.setdefault((x, y), panel["title"])
                assert other == panel["title"], f"{other} lies below {panel['title']}"


def test_the_dashboard_asks_the_source_that_was_chosen_for_the_nodes_that_were_chosen() -> None:
    told = json.loads(DASHBOARD.read_text())
    variables = {one["name"] for one in told["templating"]["list"]}
    assert variables == {"datasource", "job", "instance"}
    for panel in panels():
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["title"]
        for target in panel["targets"]:
            assert 'job="$job"' in target["expr"], target["expr"]
            used = set(re.findall(r"\$\{?([a-z]+)", json.dumps(target)))
            assert used <= variables


def test_figures_that_matter_are_on_the_dashboard_or_in_an_alert() -> None:
    shown = set().union(
        *(check(one.replace("$job", "x").replace("$instance", "x")) for one in expressions())
    )
    for name in (
        "blackroad_tasks",
        "blackroad_tasks_ended_total",
        "blackroad_queue_oldest_seconds",
        "blackroad_peer_up",
        "blackroad_coordinator_known",
        "blackroad_disk_full",
        "blackroad_process_resident_bytes",
        "blackroad_series_cut",
    ):
        assert name in shown
