"""A decision made again: from its record alone, or by the router and the prompt that it was made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from appliance import documents
from appliance.errors import DocumentError, GatewayError
from appliance.gateway.decision import weigh
from appliance.gateway.scoring import prompt_digest, score
from appliance.routers.round_robin import richest

if TYPE_CHECKING:
    from appliance.gateway.active import Serving


class Record(BaseModel):
    """What of a `decision.Decision` is needed to make it again; what else stands in the record is left alone."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    request_id: str
    group: str
    selected: str | None
    strategy: str
    candidates: tuple[str, ...]
    scores: dict[str, float] = Field(default_factory=dict)
    labels: dict[str, str] = Field(default_factory=dict)
    cost_weight: float = 0.0
    costs: dict[str, float] = Field(default_factory=dict)
    turns: dict[str, int] = Field(default_factory=dict)
    router: str | None = None
    router_digest: str | None = None
    prompt_digest: str | None = None

    @property
    def by_model(self) -> bool:
        """Whether a routing model chose."""
        return self.strategy.startswith("ml:")


@dataclass(frozen=True)
class Replayed:
    """A decision made again.

    Attributes:
        request_id, group, selected: of the record.
        best: whom the decision lay between; one, or several whose turn decided.
        same: whether the record's choice comes out.
        furthest: greatest difference of a score from the recorded one; None where nothing was scored anew.
    """

    request_id: str
    group: str
    selected: str | None
    best: tuple[str, ...]
    same: bool
    furthest: float | None = None


def records(value: Any) -> Iterator[Record]:
    """The records of a parsed document: one decision, or an answer of `/appliance/decisions` or `/appliance/why`.

    Raises:
        GatewayError: GATEWAY_RECORD.
    """
    several = value.get("decisions") if isinstance(value, Mapping) else value
    for each in several if isinstance(several, list) else [value]:
        try:
            yield documents.validate(Record, each, what="the record")
        except DocumentError as error:
            raise GatewayError("GATEWAY_RECORD", error.cause, **error.evidence) from None


def replayed(record: Record) -> Replayed:
    """Choose again by what the record says, and by nothing else.

    Raises:
        GatewayError: GATEWAY_RECORD where it says too little.
    """
    best = record.candidates
    if record.by_model:
        try:
            scores = {id_: record.scores[record.labels[id_]] for id_ in record.candidates if id_ in record.labels}
        except KeyError as error:
            raise _unusable(record, f"it has no score of {error.args[0]!r}") from None
        if not scores:
            raise _unusable(record, "it does not say which label stands for which deployment")
        best = weigh(scores, record.costs, record.cost_weight)
    if len(best) < 2:
        again = best[0] if best else None
    elif set(best) <= record.turns.keys():
        again = richest({id_: record.turns[id_] for id_ in best})
    else:
        again = None  # equal now, and not so then
    return Replayed(record.request_id, record.group, record.selected, best, same=again == record.selected)


def rescored(record: Record, serving: Serving, text: str) -> Replayed:
    """Score the prompt again and choose by that.

    Args:
        record: of a decision by a routing model.
        serving: the router that decided, with its encoder.
        text: the cleaned prompt.

    Raises:
        GatewayError: GATEWAY_RECORD where router or prompt are not those of the record.
    """
    if not record.by_model:
        raise _unusable(record, "no router decided it")
    if serving.digest != record.router_digest:
        raise _unusable(record, "another router decided it", given=serving.digest, wanted=record.router_digest)
    digest = prompt_digest(text)
    if digest != record.prompt_digest:
        raise _unusable(record, "it was made of another prompt", given=digest, wanted=record.prompt_digest)
    anew = score(serving, text, digest).by_label
    furthest = max(abs(anew[label] - record.scores.get(label, float("inf"))) for label in anew)
    return replace(replayed(record.model_copy(update={"scores": anew})), furthest=furthest)


def _unusable(record: Record, why: str, **evidence: Any) -> GatewayError:
    return GatewayError("GATEWAY_RECORD", f"the record of request {record.request_id[:64]}: {why}", **evidence)
