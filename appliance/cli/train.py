"""`appliance train`: from traces and spend logs to a router that provably earns its place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from appliance.cli import train_data, train_sources
from appliance.cli.output import Json, Steps, refusals, show

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)


@app.callback()
def _train() -> None:
    """From traces and spend logs to an evaluated router."""


app.command()(train_sources.extract)
app.command()(train_sources.receive)
app.command()(train_data.prepare)
app.command()(train_data.convert)
app.command()(train_data.value)


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

FittedOn = Annotated[
    Path | None,
    typer.Option(
        "--fitted-on",
        help="What the router was fitted on: prompts that stand there too, and near copies, are left out.",
    ),
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
        from appliance.errors import FileError
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
        served = _assignments(label, "--label")
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
            labels=served,
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
            advantage = metadata.hyperparameters.get("smallest_advantage")
            if advantage:
                console.print(f"abstains where the advantage it expects over the best model is at most {advantage:g}")
            console.print(f"next: appliance train evaluate {out} --data OTHER_DATA", markup=False)

        show(report, as_json, text)


@app.command()
def evaluate(
    router: Annotated[Path, typer.Argument(help="Folder of the router.")],
    data: Data,
    fitted_on: FittedOn = None,
    encoder: EncoderDir = None,
    price: Annotated[
        list[str] | None, typer.Option("--price", help="MODEL=COST of a request, for the cost curve.")
    ] = None,
    report: Annotated[Path | None, typer.Option("--report", help="Write an HTML page, readable offline.")] = None,
    robustness: Annotated[
        bool, typer.Option("--robustness", help="Also paraphrase and disturb prompts, and count flips.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", help="Of the bootstrap.", min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Measure a router on outcomes it was not fitted on; every figure with a 95 % interval."""
    with refusals(as_json):
        from appliance.artifact import read
        from appliance.files import write_atomic
        from appliance.training.embedding import cache_directory
        from appliance.training.measuring import measure, training_prompts

        artifact = read(router)
        measured = measure(
            artifact,
            data,
            known=training_prompts(artifact, fitted_on) if fitted_on is not None else None,
            encoder_directory=encoder,
            cache=cache_directory(os.environ),
            prices={name: _number(value) for name, value in _assignments(price, "--price").items()},
            robustness=robustness,
            seed=seed,
            progress=Steps(quiet=as_json),
        )
        if report is not None:
            write_atomic(report, measured.html(f"Router {measured.report['router']}").encode())

        def text(console: Console) -> None:
            _print_figures(console, measured.report)
            if report is not None:
                console.print(f"report  {report}", markup=False)

        show(measured.report, as_json, text)


@app.command()
def package(
    router: Annotated[Path, typer.Argument(help="Folder of the fitted router.")],
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="Folder to write; must not be there yet.")],
    fitted_on: FittedOn = None,
    current: Annotated[Path | None, typer.Option("--current", help="Router that serves now, to be beaten.")] = None,
    confidence: Annotated[float, typer.Option("--confidence", help="Coverage of the interval, 0.5 to 1.")] = 0.95,
    override: Annotated[
        str | None, typer.Option("--override", help="Who lets it pass in spite of the verdict, and why; recorded.")
    ] = None,
    encoder: EncoderDir = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the bootstrap.", min=0)] = 0,
    as_json: Json = False,
) -> None:
    """The gate: write the router for signing if it beats the best fixed choice, or the current router, on data."""
    with refusals(as_json):
        from appliance.artifact import read
        from appliance.training.embedding import cache_directory
        from appliance.training.measuring import measure, training_prompts
        from appliance.training.package import judge
        from appliance.training.package import package as pack
        from appliance.training.writing import write_directory

        steps, cache = Steps(quiet=as_json), cache_directory(os.environ)
        artifact = read(router)
        known = training_prompts(artifact, fitted_on) if fitted_on is not None else None
        measured = measure(
            artifact, data, known=known, encoder_directory=encoder, cache=cache, seed=seed, progress=steps
        )
        baseline, against = None, "best_single"
        if current is not None:
            serving = read(current)
            other = measure(serving, data, known=known, encoder_directory=None, cache=cache, seed=seed, progress=steps)
            order = [other.examples.labels.index(label) for label in measured.examples.labels]
            baseline, against = other.predicted[:, order], serving.digest
        verdict = judge(
            measured.predicted,
            measured.examples.actual,
            measured.examples.groups,
            baseline=baseline,
            against=against,
            confidence=confidence,
            seed=seed,
            seen=bool(measured.report["seen_in_training"]),
            left_out=measured.report["left_out"],
        )
        packaged = pack(artifact, verdict, override=override)
        write_directory(out, packaged.files)
        report = {"router": str(out), "digest": packaged.digest, "gate": verdict.as_dict(), "override": override}

        def text(console: Console) -> None:
            low, high = verdict.interval
            console.print(f"router {out}\ndigest {packaged.digest}", markup=False)
            console.print(f"gain   {verdict.figure} {verdict.gain:+.4f} [{low:+.4f}, {high:+.4f}]", markup=False)
            if not verdict.passed:
                console.print(f"the gate refused it; on record it passes by: {override}", style="yellow", markup=False)
            if verdict.left_out is None:
                console.print("whether the data holds prompts of the training: not looked at (--fitted-on)")
            elif verdict.left_out:
                console.print(f"left out: {verdict.left_out} prompts that the router was fitted on")
            console.print(f"next: appliance artifact sign {out}", markup=False)

        show(report, as_json, text)


def _assignments(items: list[str] | None, option: str) -> dict[str, str]:
    from appliance.errors import TrainingError

    pairs = [item.rpartition("=") for item in items or []]
    if any(not separator or not left or not right for left, separator, right in pairs):
        raise TrainingError("TRAINING_ARGUMENT", f"{option} takes NAME=VALUE", given=items)
    return {left: right for left, _, right in pairs}


def _number(text: str) -> float:
    from appliance.errors import TrainingError

    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise TrainingError("TRAINING_ARGUMENT", f"{text!r} is not a cost")
    return value


def _print_figures(console: Console, report: dict[str, Any]) -> None:
    if report.get("seen_in_training"):
        told = "the router was fitted on much of this data (--fitted-on leaves that out): the figures prove nothing"
        console.print(told, style="yellow")
    console.print(f"{report['prompts']} prompts, {report['models']} models, best single {report['best_single_model']}")
    for name, bounds in report["intervals"].items():
        value = report[name]
        if value is not None:
            unit = " %" if name.startswith("cpt") else ""
            console.print(f"  {name:22} {value:8.4g}{unit}   95 % [{bounds[0]:.4g}, {bounds[1]:.4g}]", markup=False)
    if report.get("calibration_error") is not None:
        console.print(f"  {'calibration_error':22} {report['calibration_error']:8.4g}", markup=False)
