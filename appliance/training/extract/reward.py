"""The one place that says what a call was worth, 0 to 1.

1. A failed call is worth 0, whatever else is known.
2. A judge's score counts before a user's feedback; both where both are there, three parts judge to one part user.
3. Feedback from -1 to 1 (thumbs) is brought to 0..1; scores above 1 are taken as out of 5, 10 or 100.
4. Where neither is there, the call tells nothing of quality and is dropped - unless `success` was asked for, where a
   call that did not fail is worth 1.

Cost, latency and time to first token are no part of the reward: they stand beside it in the outcome, so that the
trade-off is chosen when the router decides and not when the data was made.
"""

from __future__ import annotations

from typing import Literal

from appliance.training.extract.calls import Call

Basis = Literal["quality", "success"]
JUDGE_SHARE = 0.75
SCALES = (1.0, 5.0, 10.0, 100.0)


def reward(call: Call, basis: Basis = "quality") -> float | None:
    """What a call was worth, or None where it tells nothing.

    Args:
        call: joined from trace and spend log.
        basis: `quality` needs a judge or a user; `success` counts what did not fail.
    """
    if call.failed:
        return 0.0
    judge = None if call.judge is None else unit(call.judge)
    feedback = None if call.feedback is None else unit(call.feedback, signed=True)
    if judge is not None and feedback is not None:
        return JUDGE_SHARE * judge + (1 - JUDGE_SHARE) * feedback
    known = judge if judge is not None else feedback
    return 1.0 if known is None and basis == "success" else known


def unit(value: float, *, signed: bool = False) -> float | None:
    """A score brought to 0..1, or None where it is on no known scale.

    Args:
        value: the score.
        signed: whether the scale is -1..1 (thumbs): 0 is then neutral.
    """
    if signed and -1 <= value <= 1:
        return (value + 1) / 2
    if value < 0:
        return None
    scale = next((scale for scale in SCALES if value <= scale), None)
    return None if scale is None else value / scale
