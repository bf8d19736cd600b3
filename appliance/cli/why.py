"""`appliance why` and `appliance replay`: why a request went where it went, and whether it would go there again."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from appliance.cli.output import Json, refusals, show
from appliance.cli.serve import Config, default_config

if TYPE_CHECKING:
    from appliance.gateway.replaying import Record, Replayed

MAX_RECORDS_BYTES = 256 * 1024**2
MAX_PROMPT_BYTES = 64 * 1024**2
SHOWN = 5  # neighbours


def why(
    request_id: Annotated[str, typer.Argument(help="`x-appliance-request-id` or `x-litellm-call-id` of an answer.")],
    config: Config = default_config,
    as_json: Json = False,
) -> None:
    """Why a request went where it went: scores, exclusions and the nearest prompts of the training data."""
    from appliance import settings
    from appliance.errors import GatewayError
    from appliance.gateway import control

    with refusals(as_json):
        run_dir = settings.load(config).state_dir / "run"
        answers = control.ask_all(run_dir, "why", request_id=request_id)
        found = next((answer for answer in answers if answer and "decisions" in answer), None)
        if found is None:
            raise GatewayError("GATEWAY_FORGOTTEN", f"no worker remembers a request {request_id!r}")
        show(found, as_json, lambda out: _print_decisions(out, found["decisions"]))


def _print_decisions(out: Console, decisions: list[dict[str, Any]]) -> None:
    for one in decisions:
        chosen = one["selected"] or "nobody"
        out.print(f"{one['at']}  group {one['group']}: {chosen} by {one['strategy']}, {one['reason']}")
        out.print(f"  propensity {one['propensity']}, {one['latency_ms']} ms, key {one['key'] or 'unknown'}")
        if one["router"]:
            out.print(f"  router {one['router']} {one['router_digest'][:12]}, prompt {one['prompt_digest'][:12]}")
        for id_ in one["candidates"]:
            out.print(f"  candidate {id_}{_weighed(one, id_)}")
        for id_, reason in one["excluded"].items():
            out.print(f"  excluded {id_}: {reason}")
        for near in (one["neighbours"] or ())[:SHOWN]:
            scored = ", ".join(f"{label} {outcome:g}" for label, outcome in near["outcomes"].items())
            out.print(f"  like row {near['row']} of the training data, cosine {near['cosine']:.3f}: {scored}")
        if not one["neighbours"]:
            out.print(f"  no neighbours: {one['no_neighbours']}")


def _weighed(decision: dict[str, Any], id_: str) -> str:
    label = decision["labels"].get(id_)
    if label is None:
        return ""
    text = f": score {decision['scores'][label]:.4f} as {label}"
    cost = decision["costs"].get(id_, 0.0) * decision["cost_weight"]
    return f"{text}, less {cost:.4f} for its cost" if cost else text


def replay(
    records: Annotated[
        Path,
        typer.Argument(
            help="Decisions as JSON: one, an answer of /appliance/decisions or `appliance why --json`; - reads them."
        ),
    ],
    router: Annotated[
        Path | None, typer.Option("--router", help="The router that decided: score the prompt anew.")
    ] = None,
    prompt: Annotated[
        Path | None, typer.Option("--prompt", help="With --router: the request's body, or the text of its human turn.")
    ] = None,
    config: Config = default_config,
    as_json: Json = False,
) -> None:
    """Make recorded decisions again: by their scores, or with --router and --prompt by scoring the prompt anew."""
    from appliance.errors import GatewayError
    from appliance.gateway import replaying

    if (router is None) != (prompt is None):
        raise typer.BadParameter("give --router and --prompt together, or neither")
    with refusals(as_json):
        read = list(replaying.records(_document(records)))
        if router is not None and prompt is not None:
            made = [_rescored(record, router, prompt, config) for record in read]
        else:
            made = [replaying.replayed(record) for record in read]
        other = [one for one in made if not one.same]
        if other:
            raise GatewayError(
                "GATEWAY_REPLAY",
                f"{len(other)} of {len(made)} decisions came out otherwise",
                decisions=[asdict(one) for one in other[:20]],
            )
        show([asdict(one) for one in made], as_json, lambda out: _print_replayed(out, made))


def _print_replayed(out: Console, made: list[Replayed]) -> None:
    for one in made:
        scores = "" if one.furthest is None else f", no score further off than {one.furthest:.2g}"
        out.print(f"request {one.request_id} ({one.group}): {one.selected or 'nobody'} again{scores}")
    if not made:
        out.print("no decisions")


def _document(path: Path) -> Any:
    from appliance import documents
    from appliance.files import read_regular

    if str(path) == "-":
        data = sys.stdin.buffer.read(MAX_RECORDS_BYTES + 1)
    else:
        data = read_regular(path, max_bytes=MAX_RECORDS_BYTES)
    return documents.read_json(data, what=path.name, max_bytes=MAX_RECORDS_BYTES)


def _rescored(record: Record, router: Path, prompt: Path, config: Path) -> Replayed:
    from appliance import artifact, settings
    from appliance.gateway import replaying
    from appliance.gateway.loading import Loader

    loader = Loader(settings.load(config))
    serving = loader.verified(record.router or "", artifact.read(router), origin="directory")
    return replaying.rescored(record, serving, _text(prompt))


def _text(path: Path) -> str:
    """The cleaned prompt of a request's body, or of a plain text."""
    import json

    from appliance.files import read_regular
    from appliance.gateway import prompt
    from appliance.routers.prompt import clean

    text = read_regular(path, max_bytes=MAX_PROMPT_BYTES).decode("utf-8", "replace")
    try:
        body = json.loads(text)
    except ValueError:
        return clean(text)
    return prompt.of_request(body.get("messages"), body) if isinstance(body, dict) else clean(text)
