"""A weighted mean of other strategies, calibrated; where it knows too little of a prompt it abstains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from appliance.errors import RouterError
from appliance.routers.strategies import Floats, Prompts, Strategy, StrategyFiles, family, parameters


class Member(BaseModel):
    """One member: its strategy, its share, its own parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    strategy: Annotated[str, Field(min_length=1, max_length=64)]
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    parameters: dict[str, Any] = {}


class EnsembleParameters(BaseModel):
    """Parameters of `Ensemble`.

    Attributes:
        members: what is averaged.
        smallest_advantage: over the model that is best on the whole, below which that model is taken; None averages
            alone, without calibration.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    members: Annotated[tuple[Member, ...], Field(min_length=1, max_length=16)]
    smallest_advantage: Annotated[float, Field(ge=0, le=1)] | None = None


@dataclass(frozen=True)
class Calibration:
    """What turns a mean of scores into an expected score, and when not to trust it.

    Attributes:
        slopes, offsets: shape (labels,); expected score = slope * mean + offset.
        overall: shape (labels,), mean scores over every prompt; the answer where the ensemble abstains.
        smallest_advantage: expected over the model best on the whole; at or below it the ensemble abstains.
    """

    slopes: Floats
    offsets: Floats
    overall: Floats
    smallest_advantage: float

    def __call__(self, scores: Floats) -> Floats:
        """Calibrated scores, shape (n, labels); the overall means in the rows of those abstained from."""
        expected = scores * self.slopes + self.offsets
        advantage = expected.max(axis=1) - expected[:, int(np.argmax(self.overall))]
        # an advantage of nothing is the best model's own row: its scores stay, so that cost can still be weighed
        abstain = (advantage > 0) & (advantage <= self.smallest_advantage)
        return np.where(abstain[:, None], self.overall, expected).astype(np.float32)


class Ensemble(Strategy):
    """Weighted mean of the members' scores; all of them estimate the same thing, the expected score.

    Args:
        labels: models.
        members: strategies over the same labels, each with its weight.
        calibration: applied to the mean, or None.
    """

    name: ClassVar[str] = "ensemble"

    def __init__(
        self,
        labels: tuple[str, ...],
        members: list[tuple[float, Strategy]],
        calibration: Calibration | None = None,
    ) -> None:
        super().__init__(labels)
        self.members, self.calibration = members, calibration
        self._total = sum(weight for weight, _ in members)

    def scores(self, prompts: Prompts) -> Floats:
        """Shape (n, labels)."""
        total = np.zeros((len(prompts), len(self.labels)), np.float32)
        for weight, member in self.members:
            total += np.float32(weight / self._total) * member.scores(prompts)
        return total if self.calibration is None else self.calibration(total)

    @classmethod
    def load(cls, files: StrategyFiles, labels: tuple[str, ...]) -> Self:
        """Build every member from the tensors below its number, e.g. `0.weights`."""
        chosen = parameters(EnsembleParameters, files, cls.name)
        members: list[tuple[float, Strategy]] = []
        for number, member in enumerate(chosen.members):
            if member.strategy == cls.name:
                raise RouterError("ROUTER_PARAMETERS", "an ensemble within an ensemble is not accepted")
            prefix = f"{number}."
            own = {name.removeprefix(prefix): t for name, t in files.tensors.items() if name.startswith(prefix)}
            strategy = family(member.strategy).load(StrategyFiles(member.parameters, own), labels)
            members.append((member.weight, strategy))
        if chosen.smallest_advantage is None:
            return cls(labels, members)
        slopes, offsets, overall = (
            files.tensor(name, dtype="float32", shape=(len(labels),)) for name in ("slopes", "offsets", "overall")
        )
        return cls(labels, members, Calibration(slopes, offsets, overall, chosen.smallest_advantage))

    def dump(self) -> StrategyFiles:
        """The members' files, tensors below their number; the calibration's own tensors beside them."""
        dumped = [(weight, member.name, member.dump()) for weight, member in self.members]
        members = [{"strategy": n, "weight": w, "parameters": dict(f.parameters)} for w, n, f in dumped]
        tensors = {f"{i}.{name}": t for i, (_, _, f) in enumerate(dumped) for name, t in f.tensors.items()}
        chosen: dict[str, Any] = {"members": members}
        if self.calibration is not None:
            parts = {name: getattr(self.calibration, name) for name in ("slopes", "offsets", "overall")}
            chosen["smallest_advantage"] = self.calibration.smallest_advantage
            tensors |= parts
        return StrategyFiles(chosen, tensors)
