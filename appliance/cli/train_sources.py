"""`appliance train extract` and `receive`: where outcomes come from."""

from __future__ import annotations

import signal
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from appliance.cli.output import Json, Steps, refusals, show

Redaction = Annotated[
    Path | None, typer.Option("--redact", help="Rules file (YAML); secrets and addresses are redacted without it too.")
]


def extract(
    out: Annotated[Path, typer.Option("--out", help="Outcomes to write, .jsonl or .jsonl.gz.")],
    traces: Annotated[list[Path] | None, typer.Option("--traces", help="OTLP-JSON or Jaeger JSON; repeat.")] = None,
    jaeger: Annotated[Path | None, typer.Option("--jaeger", help="YAML with `jaeger:`, a running one.")] = None,
    postgres: Annotated[Path | None, typer.Option("--postgres", help="YAML with `postgres:`, the spend logs.")] = None,
    objects: Annotated[Path | None, typer.Option("--objects", help="Folder, or YAML with `registry:`.")] = None,
    prefix: Annotated[str, typer.Option("--prefix", help="Of the spend objects.")] = "",
    reward: Annotated[
        str, typer.Option("--reward", help="quality: judged or rated calls; success: all calls.")
    ] = "quality",
    judge_scale: Annotated[
        str, typer.Option("--judge-scale", help="WORST..BEST mark of judges, such as 1..5.")
    ] = "0..1",
    feedback_scale: Annotated[str, typer.Option("--feedback-scale", help="WORST..BEST mark of users.")] = "-1..1",
    redact: Redaction = None,
    as_json: Json = False,
) -> None:
    """Join traces and spend logs into outcomes; run again, it goes on where it stopped."""
    with refusals(as_json):
        from appliance.errors import TrainingError
        from appliance.registry.homes import open_objects
        from appliance.registry.settings import read_postgres
        from appliance.training.extract.jaeger import read_jaeger
        from appliance.training.extract.redaction import load_redactor
        from appliance.training.extract.reward import Rules, Scale
        from appliance.training.extract.run import Sources, check_sources
        from appliance.training.extract.run import extract as run

        if reward not in ("quality", "success"):
            raise TrainingError("TRAINING_ARGUMENT", f"--reward is quality or success, not {reward!r}")
        rules = Rules(
            "success" if reward == "success" else "quality", Scale.parsed(judge_scale), Scale.parsed(feedback_scale)
        )
        sources = Sources(
            traces=tuple(traces or ()),
            jaeger=None if jaeger is None else (read_jaeger(jaeger), datetime.now(UTC)),
            postgres=None if postgres is None else read_postgres(postgres),
            objects=None if objects is None else (open_objects(objects), prefix),
        )
        check_sources(sources)
        card = run(sources, out, redact=load_redactor(redact), rules=rules, progress=Steps(quiet=as_json))

        def text(console: Console) -> None:
            for name, count in card["read"].items():
                console.print(f"{name:32} {count:>10}", markup=False)
            for name in ("written", "joined"):
                console.print(f"{name:32} {card[name]:>10}", markup=False)
            for name, fate in card["dropped"].items():
                console.print(f"dropped: {name:23} {fate['calls']:>10}  {fate['because']}", markup=False)
            if card["written"]:
                console.print(f"next: appliance train fit --data {out} --out ROUTER", markup=False)
            else:
                console.print("nothing to fit on: see why calls were dropped, or name more sources", markup=False)

        show(card, as_json, text)


def receive(
    out: Annotated[Path, typer.Option("--out", help="OTLP-JSON lines to append to; read with extract --traces.")],
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; beyond loopback only with TLS.")
    ] = "127.0.0.1",
    http_port: Annotated[int, typer.Option("--http-port", min=0, max=65535)] = 4318,
    grpc_port: Annotated[int, typer.Option("--grpc-port", min=0, max=65535)] = 4317,
    certificate: Annotated[Path | None, typer.Option("--certificate", help="The receiver's certificate, PEM.")] = None,
    key: Annotated[Path | None, typer.Option("--key", help="Its key, PEM.")] = None,
    client_ca: Annotated[Path | None, typer.Option("--client-ca", help="Authority of those who may send, PEM.")] = None,
    redact: Redaction = None,
) -> None:
    """Receive traces over OTLP, HTTP and gRPC, until SIGTERM."""
    with refusals():
        from appliance.errors import TrainingError
        from appliance.training.extract.receiver import SpanLog, Tls, receiving
        from appliance.training.extract.redaction import load_redactor

        tls = None
        if certificate is not None and key is not None and client_ca is not None:
            tls = Tls(certificate, key, client_ca)
        elif certificate is not None or key is not None or client_ca is not None:
            raise TrainingError("TRAINING_ARGUMENT", "TLS needs --certificate, --key and --client-ca together")
        ended = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: ended.set())
        log = SpanLog(out, load_redactor(redact))
        steps = Steps()
        addresses = {"http_address": (host, http_port), "grpc_address": (host, grpc_port)}
        with receiving(log, tls=tls, **addresses) as (http, grpc):
            steps(f"receiving OTLP on {host}, HTTP {http} and gRPC {grpc}, into {out}")
            ended.wait()
        log.close()
        steps(f"received {log.received} spans")
