"""How long a request waits for its only model server."""

import pytest

from appliance.gateway.patience import MOST_S, bounded


class BusyError(Exception):
    """What a model server answered."""


@pytest.mark.parametrize("seconds", [0, 0.5, MOST_S])
def test_a_short_pause_is_litellms(seconds):
    wait = bounded(lambda *_, **__: seconds)
    assert wait(None, e=BusyError(), remaining_retries=1, num_retries=2) == seconds


@pytest.mark.parametrize(("seconds", "left"), [(MOST_S + 0.1, 2), (60, 1), (0, 0), (2, 0)])
def test_a_long_one_and_one_before_nothing_end_the_retries_with_what_was_answered(seconds, left):
    answered = BusyError()
    wait = bounded(lambda *_, **__: seconds)
    with pytest.raises(BusyError) as told:
        wait(None, e=answered, remaining_retries=left, num_retries=2)
    assert told.value is answered
