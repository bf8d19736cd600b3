"""`appliance train`: from traces and spend logs to a router that provably earns its place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from appliance.cli.output import Json, Steps, refusals, show

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)


@app.callback()
def _train() -> None:
    """From traces and spend logs to an evaluated router."""


@app.command("export-encoder")
def export_encoder(
    out: Annotated[Path, typer.Option("--out", help="Folder to write; must not be there yet.")] = Path(
        "vendor/models/encoder"
    ),
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", help="Longest input; longer ones keep head and tail.")
    ] = 128,
    as_json: Json = False,
) -> None:
    """Export all-MiniLM-L6-v2 to int8 ONNX, compared with the original, as an unsigned encoder artifact."""
    with refusals(as_json):
        from appliance.artifact import encoder_metadata
        from appliance.training.encoder_export import export_encoder as export
        from appliance.training.encoder_export import write_encoder

        artifact = export(max_tokens=max_tokens, progress=Steps(quiet=as_json))
        write_encoder(artifact, out)
        record = {"encoder": str(out), "digest": artifact.digest, "fidelity": encoder_metadata(artifact).fidelity}
        show(
            record,
            as_json,
            lambda console: console.print(
                f"encoder {out}\ndigest  {artifact.digest}\ncosine  mean {record['fidelity']['cosine_mean']}, "  # type: ignore[index]
                f"minimum {record['fidelity']['cosine_minimum']} over {record['fidelity']['texts']} texts"  # type: ignore[index]
            ),
        )


Data = Annotated[Path, typer.Option("--data", help="Outcomes, .jsonl or .jsonl.gz.")]
EncoderDir = Annotated[
    Path | None, typer.Option("--encoder", help="Encoder to embed with. Without it: the project's or the cached one.")
]


@app.command()
def fit(
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="Folder to write; must not be there yet.")],
    strategy: Annotated[
        str, typer.Option("--strategy", help="A family, or auto: the best by nested validation.")
    ] = "auto",
    name: Annotated[str | None, typer.Option("--name", help="Router name. Default: from the data file.")] = None,
    version: Annotated[str | None, typer.Option("--router-version", help="Default: day and data digest.")] = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", help="LABEL=MODEL: what the gateway calls a model of the data.")
    ] = None,
    encoder: EncoderDir = None,
    seed: Annotated[int, typer.Option("--seed", help="Of every split and random start.", min=0)] = 0,
    replace: Annotated[bool, typer.Option("--replace", help="Replace the folder if it is there.")] = False,
    as_json: Json = False,
) -> None:
    """Fit a router on outcomes and write it as an unsigned artifact."""
    with refusals(as_json):
        from appliance.artifact import read, router_metadata
        from appliance.errors import FileError, TrainingError
        from appliance.training.embedding import cache_directory, find_encoder, open_encoder
        from appliance.training.fit import fit as fit_examples
        from appliance.training.fit import fitter, router_artifact
        from appliance.training.outcomes import load_dataset
        from appliance.training.preparing import default_created, default_name, default_version, prepare
        from appliance.training.writing import write_directory

        if strategy not in ("auto", "ensemble"):
            fitter(strategy)  # refuse an unknown name before the long work
        if out.exists() and not replace and (not out.is_dir() or any(out.iterdir())):
            raise FileError("FILE_EXISTS", f"{out} is there already", path=str(out))
        pairs = [item.partition("=") for item in label or []]
        if any(not separator or not left or not right for left, separator, right in pairs):
            raise TrainingError("TRAINING_ARGUMENT", "--label takes LABEL=MODEL", given=label)
        steps, cache = Steps(quiet=as_json), cache_directory(os.environ)
        steps("reading the data")
        dataset = load_dataset(data)
        created = default_created(data, dict(os.environ))
        found = find_encoder(directory=encoder, cache=cache, progress=steps)
        examples = prepare(dataset, open_encoder(found), cache=cache, progress=steps)
        fitted = fit_examples(examples, strategy=strategy, seed=seed, progress=steps)
        artifact = router_artifact(
            fitted,
            name=name or default_name(data),
            version=version or default_version(created, dataset.digest),
            labels={left: right for left, _, right in pairs},
            encoder_digest=found.digest,
            data_digest=dataset.digest,
            created=created,
        )
        write_directory(out, artifact.files, replace=replace)
        metadata = router_metadata(read(out))
        report = {
            "router": str(out),
            "digest": artifact.digest,
            "name": metadata.name,
            "version": metadata.version,
            "strategy": metadata.strategy,
            "hyperparameters": metadata.hyperparameters,
            "encoder_digest": found.digest,
            "ignored_fields": dataset.ignored,
            "evaluation": metadata.evaluation,
        }

        def text(console: Console) -> None:
            console.print(f"router   {out}  ({metadata.strategy}, {metadata.name} {metadata.version})")
            console.print(f"digest   {artifact.digest}")
            _print_figures(console, metadata.evaluation)
            console.print(f"next: appliance train evaluate {out} --data OTHER_DATA", markup=False)

        show(report, as_json, text)


@app.command()
def evaluate(
    router: Annotated[Path, typer.Argument(help="Folder of the router.")],
    data: Data,
    encoder: EncoderDir = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the bootstrap.", min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Measure a router on outcomes it was not fitted on; every figure with a 95 % interval."""
    with refusals(as_json):
        from appliance.artifact import read
        from appliance.routers.loading import load_router
        from appliance.training.embedding import cache_directory, find_encoder, open_encoder
        from appliance.training.evaluate import evaluate_scores, for_router, predict
        from appliance.training.outcomes import load_dataset
        from appliance.training.preparing import prepare

        steps, cache = Steps(quiet=as_json), cache_directory(os.environ)
        artifact = read(router)
        loaded = load_router(artifact)
        dataset = for_router(load_dataset(data), loaded)
        found = find_encoder(directory=encoder, cache=cache, digest=loaded.metadata.encoder_digest, progress=steps)
        examples = prepare(dataset, open_encoder(found), cache=cache, progress=steps)
        predicted = predict(loaded, examples.prompts, progress=steps)
        report: dict[str, Any] = {
            "router": str(router),
            "digest": artifact.digest,
            "strategy": loaded.metadata.strategy,
            "seen_in_training": dataset.digest == loaded.metadata.training_data_digest,
            **evaluate_scores(predicted, examples.scores, examples.groups, examples.labels, seed=seed),
        }
        show(report, as_json, lambda console: _print_figures(console, report))


def _print_figures(console: Console, report: dict[str, Any]) -> None:
    if report.get("seen_in_training"):
        console.print("[yellow]this is the data the router was fitted on; the figures below prove nothing[/]")
    console.print(f"{report['prompts']} prompts, {report['models']} models, best single {report['best_single_model']}")
    for name, bounds in report["intervals"].items():
        value = report[name]
        if value is not None:
            unit = " %" if name.startswith("cpt") else ""
            console.print(f"  {name:22} {value:8.4g}{unit}   95 % [{bounds[0]:.4g}, {bounds[1]:.4g}]", markup=False)
