"""`appliance`: the verb groups, each imported only when it is used, so that a command starts fast."""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import sys
from typing import Any

import typer
import typer.core
import typer.main

from appliance import __release__, __version__
from appliance.cli.output import as_refusal, print_refusal

# verb -> (module, attribute, one line for --help). An attribute `app` is a group of verbs, anything else one command.
VERBS: dict[str, tuple[str, str, str]] = {
    "vendor": ("appliance.cli.vendor", "app", "Lock, fetch and audit what goes into a release; write its SBOM."),
    "bundle": ("appliance.cli.bundle", "app", "Build, inspect and verify a release bundle."),
    "install": ("appliance.cli.install", "install", "Install a release from media, atomically."),
    "rollback": ("appliance.cli.install", "rollback", "Return to the previous release."),
    "releases": ("appliance.cli.install", "releases", "List the installed releases."),
    "inventory": ("appliance.cli.install", "inventory", "Export what is installed, for a delta bundle."),
    "ca": ("appliance.cli.ca", "app", "The authority: certificates, roles, trust metadata."),
    "artifact": ("appliance.cli.artifact", "app", "Pack, sign, admit, publish, promote and revoke routers."),
    "config": ("appliance.cli.config", "app", "The configuration in PostgreSQL: tables, check, history, return."),
    "train": ("appliance.cli.train", "app", "From traces and spend logs to an evaluated router."),
    "serve": ("appliance.cli.serve", "serve", "Run the gateway."),
    "sync": ("appliance.cli.sync", "sync", "Sidecar: bring verified routers from the registry to a shared folder."),
    "copy-registry": (
        "appliance.cli.copy_registry",
        "copy_registry",
        "Copy a registry to another home and compare both.",
    ),
    "status": ("appliance.cli.operations", "status", "What the gateway serves, on one screen."),
    "why": ("appliance.cli.why", "why", "Why a request went where it went."),
    "replay": ("appliance.cli.why", "replay", "Make recorded routing decisions again and compare."),
    "doctor": ("appliance.cli.doctor", "doctor", "Check the host and the appliance; say what to do."),
    "validate": ("appliance.cli.validate", "validate", "Run the acceptance of an installed appliance."),
    "drill": ("appliance.cli.drill", "drill", "Do every runbook for real, on an installation made for it."),
    "explain": ("appliance.cli.explain", "explain", "What an error code means and what to do."),
    "support-bundle": ("appliance.cli.support_bundle", "support_bundle", "Collect what support needs, no secrets."),
}


class _Verbs(typer.core.TyperGroup):
    # typer carries its own copy of click, so the context's class has no public name: hence Any
    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        return [verb for verb, (module, _, _) in VERBS.items() if importlib.util.find_spec(module)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        if cmd_name not in VERBS or not importlib.util.find_spec(VERBS[cmd_name][0]):
            return None
        module, attribute, _ = VERBS[cmd_name]
        target = getattr(importlib.import_module(module), attribute)
        if isinstance(target, typer.Typer):
            target.rich_markup_mode, target._add_completion = None, False  # noqa: SLF001 (one look for every group)
            command = typer.main.get_command(target)
        else:
            single = typer.Typer(add_completion=False, rich_markup_mode=None)
            single.command(name=cmd_name)(target)
            command = typer.main.get_command(single)
        command.name = cmd_name
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(verb, VERBS[verb][2]) for verb in self.list_commands(ctx)])


def _version(value: bool) -> None:
    if value:
        print(f"appliance {__version__}" + (f", release {__release__}" if __release__ else ""))
        raise typer.Exit


app = typer.Typer(
    cls=_Verbs, no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
)


@app.callback()
def _top(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """The air-gapped LLM routing appliance."""


def main() -> None:
    """Entry point. Exit status: 0 done, 1 refused or failed with a code, 2 usage."""
    if "_APPLIANCE_COMPLETE" in os.environ:  # the shell asks for completions: teach typer the shells' dialects
        from typer.completion import completion_init  # type: ignore[attr-defined]

        completion_init()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may not be Unicode; stderr does so anyway
    try:
        app()
    except Exception as error:  # noqa: BLE001 (what no command has met: a module that cannot be imported, say)
        print_refusal(as_refusal(error))
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
