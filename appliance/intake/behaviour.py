"""What a router does, on recorded prompts, beside what is served today: the difference a person can read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.artifact import RouterMetadata
from appliance.errors import IntakeError
from appliance.routers.strategies import Prompts

MINIMUM_PROMPTS = 30
MAXIMUM_SHARE = 0.99  # of the prompts, for one model; a router of a single label decides nothing either
_EXAMPLES = 12

Embed = Callable[[Sequence[str]], NDArray[np.float32]]


@dataclass(frozen=True)
class Probe:
    """Recorded prompts with their vectors.

    Attributes:
        prompts: texts and embeddings of the zone's encoder.
        encoder_digest: which encoder made them.
    """

    prompts: Prompts
    encoder_digest: str

    @property
    def widened(self) -> Prompts:
        """The prompts, and as many points around them: a conversion must agree off the beaten track too."""
        vectors = self.prompts.embeddings
        noise = np.random.default_rng(20261123).normal(size=vectors.shape, scale=1.0 / np.sqrt(vectors.shape[1]))
        wide = vectors + noise.astype(np.float32)
        length = np.linalg.norm(wide, axis=1, keepdims=True)
        scale = np.linalg.norm(vectors, axis=1, keepdims=True)
        around = wide / np.maximum(length, 1e-12) * scale
        texts = (*self.prompts.texts, *("",) * len(around))
        return Prompts(texts, np.concatenate([vectors, around]).astype(np.float32))


def check_prompts(texts: Sequence[str]) -> tuple[str, ...]:
    """The distinct recorded prompts.

    Raises:
        IntakeError: INTAKE_BEHAVIOUR where there are too few to tell anything.
    """
    distinct = tuple(dict.fromkeys(texts))
    if len(distinct) < MINIMUM_PROMPTS:
        raise IntakeError(
            "INTAKE_BEHAVIOUR",
            f"{len(distinct)} recorded prompts tell nothing, {MINIMUM_PROMPTS} are the least",
            prompts=len(distinct),
            remedy="Give more with --prompts FILE.jsonl, one `query` a line, as `appliance train extract` writes them.",
        )
    return distinct


def make_probe(texts: Sequence[str], embed: Embed, encoder_digest: str) -> Probe:
    """Embed recorded prompts.

    Raises:
        IntakeError: INTAKE_BEHAVIOUR where there are too few to tell anything.
    """
    distinct = check_prompts(texts)
    return Probe(Prompts(distinct, np.asarray(embed(distinct), np.float32)), encoder_digest)


def choices(scores: NDArray[np.float32], metadata: RouterMetadata) -> list[str]:
    """The model that each row prefers."""
    models = list(metadata.labels.values())
    return [models[i] for i in scores.argmax(axis=1)]


def judge(after: list[str], before: list[str] | None, probe: Probe) -> dict[str, Any]:
    """Describe a candidate's behaviour; refuse what no evaluation can excuse.

    Args:
        after: the candidate's choices.
        before: those of the router served today, if there is one.
        probe: the recorded prompts.

    Returns:
        `share` model -> part of the prompts, `before` the same of the current router, `changed` the part of the
        prompts that go elsewhere, `moves` from -> to -> count, `examples` (prompt's beginning, before, after).

    Raises:
        IntakeError: INTAKE_BEHAVIOUR.
    """
    share = _share(after)
    favourite, part = max(share.items(), key=lambda item: item[1])
    if part >= MAXIMUM_SHARE:
        raise IntakeError(
            "INTAKE_BEHAVIOUR",
            f"it sends {part:.0%} of the recorded prompts to {favourite}",
            share=share,
            limit=MAXIMUM_SHARE,
        )
    report: dict[str, Any] = {"prompts": len(after), "share": share}
    if before is None:
        return report
    moved = [(text, old, new) for text, old, new in zip(probe.prompts.texts, before, after, strict=True) if old != new]
    moves: dict[str, Counter[str]] = {}
    for _, old, new in moved:
        moves.setdefault(old, Counter())[new] += 1
    return report | {
        "before": _share(before),
        "changed": round(len(moved) / len(after), 4),
        "moves": {old: dict(counter.most_common()) for old, counter in moves.items()},
        "examples": [{"prompt": text[:80], "before": old, "after": new} for text, old, new in moved[:_EXAMPLES]],
    }


def readable(report: dict[str, Any]) -> list[str]:
    """The same for a person."""
    lines = [f"on {report['prompts']} recorded prompts:"]
    before = report.get("before", {})
    for model in sorted({*report["share"], *before}):
        was = f"{before.get(model, 0):6.1%} -> " if before else ""
        lines.append(f"  {model:32} {was}{report['share'].get(model, 0):6.1%}")
    if before:
        lines.append(f"  {report['changed']:.1%} of the prompts go elsewhere:")
        for old, to in report["moves"].items():
            lines += [f"    {count:5} from {old} to {new}" for new, count in to.items()]
        lines += [f"    “{one['prompt']}”: {one['before']} -> {one['after']}" for one in report["examples"]]
    return lines


def _share(names: list[str]) -> dict[str, float]:
    return {name: round(count / len(names), 4) for name, count in Counter(names).most_common()}
