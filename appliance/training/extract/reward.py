"""The one place that says what a call was worth, 0 to 1.

1. A failed call is worth 0, whatever else is known.
2. A judge's score counts before a user's feedback; both where both are there, three parts judge to one part user.
3. Both are brought to 0..1 from the scale that they were given on, which is said and never guessed: the worst mark of
   1 to 5 looks like the best of 0 to 1. Judges score 0..1 and users -1..1 (thumbs) where nobody says otherwise.
4. Where one of them is off its scale, the call is dropped: the scale was named wrongly, or the judge failed.
5. Where neither is there, the call tells nothing of quality and is dropped - unless `success` was asked for, where a
   call that did not fail is worth 1.

Cost, latency and time to first token are no part of the reward: they stand beside it in the outcome, so that the
trade-off is chosen when the router decides and not when the data was made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Self

from appliance.errors import TrainingError
from appliance.training.extract.calls import Call

Basis = Literal["quality", "success"]
JUDGE_SHARE = 0.75


@dataclass(frozen=True)
class Scale:
    """What marks lie between.

    Attributes:
        worst: the mark that is worth 0.
        best: the mark that is worth 1; below `worst` where less is better.
    """

    worst: float
    best: float

    @classmethod
    def parsed(cls, text: str) -> Self:
        """A scale as the command line names it, `1..5`.

        Raises:
            TrainingError: TRAINING_ARGUMENT.
        """
        worst, separator, best = text.partition("..")
        try:
            scale = cls(float(worst), float(best))
        except ValueError:
            separator = ""
        if not separator or not math.isfinite(scale.best - scale.worst) or scale.worst == scale.best:
            raise TrainingError("TRAINING_ARGUMENT", f"{text!r} is no scale; name worst and best mark, such as 1..5")
        return scale

    def holds(self, mark: float | None) -> bool:
        """Whether a mark lies on the scale; one that was not given does."""
        return mark is None or min(self.worst, self.best) <= mark <= max(self.worst, self.best)

    def worth(self, mark: float) -> float:
        """A mark brought to 0..1."""
        return (mark - self.worst) / (self.best - self.worst)

    def __str__(self) -> str:
        return f"{self.worst:g}..{self.best:g}"


@dataclass(frozen=True)
class Rules:
    """What may be chosen of the rules.

    Attributes:
        basis: `quality` needs a judge or a user; `success` counts what did not fail.
        judge: the scale of judges.
        feedback: the scale of users.
    """

    basis: Basis = "quality"
    judge: Scale = Scale(0, 1)
    feedback: Scale = Scale(-1, 1)


def off_scale(call: Call, rules: Rules) -> bool:
    """Whether somebody marked the call off the scale."""
    return not (rules.judge.holds(call.judge) and rules.feedback.holds(call.feedback))


def reward(call: Call, rules: Rules) -> float | None:
    """What a call was worth, or None where it tells nothing, or cannot be trusted to.

    Args:
        call: joined from trace and spend log.
        rules: the scales, and whether a call that nobody scored counts.
    """
    if call.failed:
        return 0.0
    if off_scale(call, rules):
        return None
    judge = None if call.judge is None else rules.judge.worth(call.judge)
    feedback = None if call.feedback is None else rules.feedback.worth(call.feedback)
    if judge is not None and feedback is not None:
        return JUDGE_SHARE * judge + (1 - JUDGE_SHARE) * feedback
    known = judge if judge is not None else feedback
    return 1.0 if known is None and rules.basis == "success" else known
