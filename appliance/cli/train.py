"""`appliance train`: from traces and spend logs to a router that provably earns its place."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
