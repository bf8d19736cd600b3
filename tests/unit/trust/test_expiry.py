"""How near an end is, on the scales of metadata, keys and certificates."""

from datetime import UTC, datetime, timedelta

import pytest

from appliance.trust.expiry import CERTIFICATE, KEY, METADATA

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.mark.parametrize(
    ("scale", "left", "life", "near"),
    [
        (METADATA, 31 * DAY, None, "far"),
        (METADATA, 29 * DAY, None, "soon"),
        (METADATA, timedelta(0), None, "ended"),
        (KEY, 89 * DAY, None, "soon"),
        (CERTIFICATE, 22 * DAY, 90 * DAY, "far"),
        (CERTIFICATE, 20 * DAY, 90 * DAY, "soon"),
        (CERTIFICATE, 2 * DAY, 90 * DAY, "urgent"),
        (CERTIFICATE, 20 * DAY / 24, DAY, "far"),
        (CERTIFICATE, 7 * DAY / 24, DAY, "soon"),
        (CERTIFICATE, 2 * DAY / 24, DAY, "urgent"),
        (CERTIFICATE, -DAY, DAY, "ended"),
    ],
)
def test_an_end_is_near_by_its_own_scale_and_a_short_life_shortens_it(scale, left, life, near):
    begin = None if life is None else NOW + left - life
    assert scale.nearness(NOW + left, now=NOW, begin=begin) == near
