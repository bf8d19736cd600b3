"""Scores for a prompt within a deadline: from the cache, or from encoder and router on a worker thread.

Never on the event loop: not the encoder, not the router, not the cleaning of a long prompt. Prompts are not batched:
the int8 encoder scales activations per tensor, so that a batch-mate would change a prompt's vector.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from appliance.breaker import Breaker
from appliance.gateway import decision as why
from appliance.gateway.active import Serving
from appliance.gateway.decision import Outcome
from appliance.gateway.pool import DeadlineExceeded, Overloaded, Pool

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

INLINE_CHARACTERS = 2000  # cleaning more than that takes longer than 0.3 ms


@dataclass(frozen=True)
class Request:
    """What is known of a request when it is routed.

    Attributes:
        request_id: ours.
        call_id: LiteLLM's.
        prompt: gives the cleaned text of the last human turn.
        characters: of all human turns, before cleaning.
        sticky: what a share of traffic is drawn by; equal values fall on the same side.
        cost_weight: from 0 (quality alone) to 1; None takes the group's.
        key: name of the key it came with.
    """

    request_id: str
    call_id: str
    prompt: Callable[[], str]
    characters: int = 0
    sticky: str = ""
    cost_weight: float | None = None
    key: str = ""


@dataclass(frozen=True)
class Scored:
    """A prompt's scores by one router.

    Attributes:
        router_digest, encoder_digest: what scored.
        prompt_digest: SHA-256 of the cleaned prompt.
        embedding: shape (1, d), of the router's encoder.
        by_label: label -> score.
        by_target: what a label stands for (model name or deployment id) -> label; the best where two labels share one.
    """

    router_digest: str
    encoder_digest: str
    prompt_digest: str
    embedding: NDArray[np.float32] = field(repr=False)
    by_label: dict[str, float]
    by_target: dict[str, str]

    def label_of(self, *targets: str) -> str | None:
        """The label that stands for the first of these that any stands for."""
        return next((self.by_target[target] for target in targets if target in self.by_target), None)


class Static(Exception):  # noqa: N818 (carries a verdict to one place)
    """The router does not decide this request: route statically, and say why."""

    def __init__(self, outcome: Outcome, reason: str) -> None:
        super().__init__(reason)
        self.outcome, self.reason = outcome, reason


class ScoreCache:
    """Least recently used scores by content digest.

    Args:
        entries: at most so many; 0 remembers nothing.
    """

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._items: OrderedDict[tuple[str, str], Scored] = OrderedDict()
        self._lock = threading.Lock()
        self.hits = 0
        self.misses = 0

    def get(self, router_name: str, prompt_digest: str) -> Scored | None:
        """What was remembered for a prompt by a router of that name, of whichever version."""
        with self._lock:
            item = self._items.get((router_name, prompt_digest))
            if item is not None:
                self._items.move_to_end((router_name, prompt_digest))
            return item

    def put(self, router_name: str, item: Scored) -> None:
        """Remember scores."""
        if not self._entries:
            return
        with self._lock:
            self._items[router_name, item.prompt_digest] = item
            self._items.move_to_end((router_name, item.prompt_digest))
            if len(self._items) > self._entries:
                self._items.popitem(last=False)


class Scorer:
    """Scores prompts; gives up at once where it cannot be in time.

    Args:
        pool: worker threads.
        breaker: around them.
        cache: of scores.
    """

    def __init__(self, *, pool: Pool, breaker: Breaker, cache: ScoreCache) -> None:
        self.pool, self.breaker, self.cache = pool, breaker, cache

    async def score(self, serving: Serving, request: Request, *, deadline_s: float) -> Scored:
        """The scores of a request's prompt.

        Raises:
            Static: why there are none in time.
            Exception: what encoder or router raised.
        """
        text: str | None = None
        if request.characters <= INLINE_CHARACTERS:
            text = request.prompt()
            if not text:
                raise Static("fallback", why.NO_PROMPT)
            known = self.cache.get(serving.name, prompt_digest(text))
            if known is not None and known.router_digest == serving.digest:
                self.cache.hits += 1
                return known
        if not self.breaker.allow():
            raise Static("fallback", why.BREAKER_OPEN)
        try:
            scored = await self.pool.run(lambda: self._work(serving, text, request), deadline_s=deadline_s)
        except Overloaded:
            self.breaker.unused()
            raise Static("fallback", why.QUEUE_FULL) from None
        except DeadlineExceeded:
            self.breaker.failure(why.DEADLINE)
            raise Static("timeout", why.DEADLINE) from None
        except Static:
            self.breaker.unused()
            raise
        except Exception as error:
            self.breaker.failure(f"{why.ROUTER_FAILED}: {type(error).__name__}")
            raise
        except BaseException:  # the client went away
            self.breaker.unused()
            raise
        self.breaker.success()
        return scored

    async def observe(self, serving: Serving, request: Request, *, deadline_s: float) -> tuple[Scored, float]:
        """What another router says of a request, and the seconds it took once it was begun.

        Whatever comes of it is no matter of the breaker's: it is not this router that decides.

        Raises:
            Static: the request has no prompt.
            Overloaded, DeadlineExceeded: it was not done in time.
            Exception: what encoder or router raised.
        """

        def timed() -> tuple[Scored, float]:
            started = time.perf_counter()
            scored = self._work(serving, None, request)
            return scored, time.perf_counter() - started

        return await self.pool.run(timed, deadline_s=deadline_s)

    def _work(self, serving: Serving, text: str | None, request: Request) -> Scored:
        """On a worker thread."""
        if text is None:
            text = request.prompt()
            if not text:
                raise Static("fallback", why.NO_PROMPT)
        digest = prompt_digest(text)
        known = self.cache.get(serving.name, digest)
        if known is not None and known.router_digest == serving.digest:
            self.cache.hits += 1
            return known
        self.cache.misses += 1
        embedding = known.embedding if known is not None and known.encoder_digest == serving.encoder.digest else None
        scored = score(serving, text, digest, embedding)
        self.cache.put(serving.name, scored)
        return scored


def score(serving: Serving, text: str, digest: str, embedding: NDArray[np.float32] | None = None) -> Scored:
    """Encode and score one prompt.

    Args:
        serving: router and encoder.
        text: cleaned prompt.
        digest: SHA-256 of `text`.
        embedding: shape (1, d), where the encoder's vector is known already.
    """
    from appliance.routers.strategies import Prompts

    prompts = serving.encoder.prompts([text]) if embedding is None else Prompts((text,), embedding)
    values = [float(value) for value in serving.router.scores(prompts)[0]]
    targets = serving.router.metadata.labels
    by_label = dict(zip(targets, values, strict=True))
    by_target: dict[str, str] = {}
    for label, target in targets.items():
        by_target[target] = max(by_target.get(target, label), label, key=by_label.__getitem__)
    return Scored(serving.digest, serving.encoder.digest, digest, prompts.embeddings, by_label, by_target)


def prompt_digest(text: str) -> str:
    """By what a cleaned prompt is known in records and caches."""
    return hashlib.sha256(text.encode()).hexdigest()
