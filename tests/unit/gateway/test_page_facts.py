"""What the status page is given, and that it has a word for everything."""

import re
from datetime import UTC, datetime, timedelta
from importlib import resources

from appliance import settings
from appliance.errors import catalogue
from appliance.gateway import calendar, decision
from tests.support.gateway import certificate, write_config

NOW = datetime.now(UTC)


def test_the_page_has_words_for_every_reason_of_a_decision():
    source = resources.files("appliance.gateway").joinpath("ui", "facts.js").read_text()
    named = set(re.findall(r"\b(\w+): \"", source.split("REASONS = {")[1].split("}")[0]))
    reasons = {
        value
        for name, value in vars(decision).items()
        if name.isupper() and isinstance(value, str) and name != "MAX_REMEMBERED"
    }
    assert reasons <= named


def test_what_ends_soon_comes_with_what_to_type(tmp_path):
    path, _ = write_config(tmp_path, [])
    certificate(tmp_path, start=NOW - timedelta(days=85), days=90)
    chosen = settings.load(path)
    (entry,) = calendar.overview(chosen, NOW)["calendar"]
    assert (entry["what"], entry["near"]) == ("gateway certificate", "soon")
    assert entry["next"] == catalogue()["OPERATION_CERTIFICATE_EXPIRES"].remedy
    (later,) = calendar.overview(chosen, NOW + timedelta(days=6))["calendar"]
    assert later["near"] == "ended"


def test_a_certificate_that_cannot_be_read_is_named_and_hides_nothing_else(tmp_path):
    path, _ = write_config(tmp_path, [])
    (tmp_path / "tls.crt").write_text("rubbish")
    told = calendar.overview(settings.load(path), NOW)
    assert told["unread"][0]["code"] == "OPERATION_CERTIFICATE_CHAIN"
    assert told["unread"][0]["next"]
    assert told["deadline_ms"] > 0
