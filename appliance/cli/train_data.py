"""`appliance train prepare` and `convert`: training data, cleaned, split and exchanged."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from appliance.cli.output import Json, Steps, refusals, show

EncoderDir = Annotated[Path | None, typer.Option("--encoder", help="Encoder that tells near copies.")]


def prepare(
    data: Annotated[Path, typer.Option("--data", help="Outcomes, .jsonl or .jsonl.gz.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for train, test and the data card.")],
    by: Annotated[
        str, typer.Option("--by", help="prompt: groups drawn at random; time: the latest set aside.")
    ] = "prompt",
    test_share: Annotated[float, typer.Option("--test-share", help="Share of prompts to set aside.")] = 0.2,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    encoder: EncoderDir = None,
    as_json: Json = False,
) -> None:
    """Merge copies, keep near copies together, split so that nothing leaks, and write a data card."""
    with refusals(as_json):
        from appliance.errors import TrainingError
        from appliance.training.cleaning import By, prepare_outcomes
        from appliance.training.embedding import cache_directory, find_encoder, open_encoder
        from appliance.training.outcomes import read_outcomes

        if by not in ("prompt", "time"):
            raise TrainingError("TRAINING_ARGUMENT", f"--by is prompt or time, not {by!r}")
        chosen: By = "time" if by == "time" else "prompt"
        steps, cache = Steps(quiet=as_json), cache_directory(os.environ)
        found = open_encoder(find_encoder(directory=encoder, cache=cache, progress=steps))
        outcomes = (outcome for outcome, _ in read_outcomes(data))
        made = prepare_outcomes(
            outcomes, found, by=chosen, test_share=test_share, seed=seed, cache=cache, progress=steps
        )
        made.write(out)
        show(
            made.card,
            as_json,
            lambda console: console.print(
                f"{made.card['rows_read']} rows, {made.card['prompts']} prompts: {len(made.train)} to fit on, "
                f"{len(made.test)} set aside\nnext: appliance train fit --data {out}/train.jsonl.gz --out ROUTER",
                markup=False,
            ),
        )


def convert(
    source: Annotated[Path, typer.Argument(help="Outcomes, or an LLMRouter file or folder.")],
    target: Annotated[
        Path, typer.Argument(help="Outcomes file (.jsonl.gz) from LLMRouter, or a folder for LLMRouter.")
    ],
    encoder: EncoderDir = None,
    as_json: Json = False,
) -> None:
    """Exchange data with LLMRouter: its layout into outcomes, or outcomes into its layout."""
    with refusals(as_json):
        from appliance.files import write_atomic
        from appliance.training import llmrouter
        from appliance.training.cleaning import pack
        from appliance.training.embedding import cache_directory, find_encoder, open_encoder
        from appliance.training.outcomes import read_outcomes

        if target.name.endswith(".gz"):
            rows = list(llmrouter.read_rows(source))
            write_atomic(target, pack(rows))
            count = len(rows)
        else:
            steps, cache = Steps(quiet=as_json), cache_directory(os.environ)
            found = open_encoder(find_encoder(directory=encoder, cache=cache, progress=steps))
            count = llmrouter.write_folder((row for row, _ in read_outcomes(source)), found, target, cache=cache)
        report = {"written": str(target), "rows": count}
        show(report, as_json, lambda console: console.print(f"{count} rows in {target}", markup=False))


def value(
    router: Annotated[Path, typer.Argument(help="Folder of the router.")],
    data: Annotated[Path, typer.Option("--data", help="Logged decisions with their propensity.")],
    encoder: EncoderDir = None,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    as_json: Json = False,
) -> None:
    """What the router would have earned on logged traffic: IPS, SNIPS and doubly robust, with intervals."""
    with refusals(as_json):
        from appliance.artifact import read
        from appliance.training.embedding import cache_directory
        from appliance.training.logged import value_of

        report = value_of(
            read(router),
            data,
            encoder_directory=encoder,
            cache=cache_directory(os.environ),
            seed=seed,
            progress=Steps(quiet=as_json),
        )

        def text(console: Console) -> None:
            for name, (low, high) in report["intervals"].items():
                console.print(f"{name:14} {report[name]}  95 % [{low}, {high}]", markup=False)
            for name, number in report["diagnostics"].items():
                console.print(f"  {name:20} {number}", markup=False)

        show(report, as_json, text)
