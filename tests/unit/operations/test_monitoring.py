"""Dashboard and alert rules name metrics that exist, and runbooks that can be typed."""

import json
import re
from pathlib import Path

import yaml

from appliance.errors import catalogue
from appliance.gateway import metrics
from appliance.gateway.decision import Decision
from appliance.operations.doctor import report
from appliance.operations.doctor.finding import fine
from tests.unit.operations.test_doctor import NOW

HERE = Path(__file__).parents[3] / "bundle" / "monitoring"
RULES = yaml.safe_load((HERE / "alerts.yaml").read_text())["groups"][0]["rules"]
DASHBOARD = json.loads((HERE / "grafana-dashboard.json").read_text())


def exposed() -> str:
    """What a gateway and the doctor really say, as text."""
    kept = metrics.Metrics()
    kept.decided(Decision("r", "c", "t", "chat", "small", "ml:knn", "success", "best_score", score=1.0, latency_ms=3.0))
    kept.answered(200)
    gauges = {
        "appliance_router_serving": [({"router": "default", "digest": "ab"}, 1.0)],
        "appliance_registry_contact_age_seconds": [({"worker": "0", "router": "default"}, 1.0)],
        "appliance_breaker_open": [({}, 0.0)],
        "appliance_deployment_out": [({"group": "chat", "deployment": "small"}, 0.0)],
        "appliance_queue_waiting": [({}, 0.0)],
        "appliance_egress_refused_total": [({}, 0.0)],
        "appliance_live_refused_rows": [({"worker": "0"}, 0.0)],
        "appliance_live_contact_age_seconds": [({"worker": "0"}, 1.0)],
    }
    return metrics.render([kept.sample(gauges)]) + report.prometheus_text([fine("disk", "well")], NOW)


def expressions():
    yield from (rule["expr"] for rule in RULES)
    yield from (target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"])


def test_every_metric_that_is_asked_for_is_exposed_with_its_labels():
    text = exposed()
    known = {}
    for name, labels in re.findall(r"^(\w+?)(?:\{(.*)\})? \S+$", text, re.MULTILINE):
        known.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    for expression in expressions():
        for name, selector in re.findall(r"\b(appliance_\w+)(?:\{([^}]*)\})?", expression):
            assert name in known, expression
            given = set(re.findall(r"(\w+)\s*=?[=~!]", selector or "")) - {"job", "instance"}
            assert given <= known[name], expression
        grouped = re.findall(r"by \(([^)]*)\)", expression)
        named = set(re.findall(r"\bappliance_\w+", expression))
        for label in {each.strip() for part in grouped for each in part.split(",")} - {"instance"}:
            assert any(label in known[name] for name in named), (label, expression)


def test_every_alert_has_a_severity_a_sentence_and_something_to_type():
    for rule in RULES:
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert "{{ $labels" in rule["annotations"]["summary"]
        assert re.match(r"(systemctl|journalctl|appliance) ", rule["annotations"]["runbook"])
        for code in re.findall(r"appliance explain (\w+)", rule["annotations"]["runbook"]):
            assert code in catalogue()


def test_panels_do_not_overlap_and_have_titles():
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert panel["title"]


def test_parentheses_are_balanced_in_every_expression():
    for expression in expressions():
        assert all(expression.count(a) == expression.count(b) for a, b in ("()", "{}", "[]"))
        assert expression.count('"') % 2 == 0


def test_a_registry_that_never_answered_is_older_than_any_bound_of_an_alert():
    age = "appliance_registry_contact_age_seconds"
    sample = metrics.Metrics().sample({age: [({"worker": "0", "router": "default"}, float("inf"))]})
    assert f'{age}{{router="default",worker="0"}} +Inf\n' in metrics.render([json.loads(json.dumps(sample))])
