"""From a configuration to serving: check, bind, lock down, import LiteLLM once, then serve or fork workers that do.

LiteLLM takes seconds to import. It is imported before the workers are forked, while the process has one thread: they
share its memory, and a worker that died is back in the time of a fork.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path

from appliance import documents
from appliance.errors import ApplianceError, FileError, GatewayError
from appliance.files import locked, translated, write_atomic
from appliance.gateway import litellm_config, live, lockdown, logs, prices, proxy, secrets, server
from appliance.gateway.prepared import Prepared
from appliance.gateway.supervisor import Supervisor
from appliance.gateway.turns import Turns
from appliance.registry.live import LiveConfig
from appliance.settings import Settings

log = logging.getLogger("appliance.boot")


@dataclass(frozen=True)
class Checked:
    """A configuration that can be served, before anything was done.

    Attributes:
        settings: of the appliance.
        config: LiteLLM's, checked.
        master_key, secrets: read from their files.
    """

    settings: Settings
    config: litellm_config.LiteLLMConfig
    master_key: str
    secrets: dict[str, str]


def check(settings: Settings) -> Checked:
    """Everything that can be refused without touching the network or the state.

    Raises:
        ConfigError: CONFIG_MISSING, CONFIG_LITELLM, CONFIG_GROUP, CONFIG_MASTER_KEY, CONFIG_SECRET.
        GatewayError: GATEWAY_TLS.
    """
    checked = Checked(
        settings,
        litellm_config.read(settings),
        secrets.read_master_key(settings.litellm.master_key_file),
        {name: secrets.read_secret(path) for name, path in settings.litellm.secrets.items()},
    )
    server.check_tls(settings.listen)
    return checked


def boot(settings: Settings) -> int:
    """Check, bind, and serve until stopped. Returns the exit status.

    Raises:
        ApplianceError: what stands in the way, with its code.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the worker's loop takes it; the default would kill
    checked = check(settings)
    run_dir = settings.state_dir / "run"
    with translated(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(run_dir / "lock", wait=False))
        except FileError as error:
            if error.code != "FILE_LOCKED":
                raise
            raise GatewayError(
                "GATEWAY_ALREADY_RUNNING", "the state directory is in use", run_dir=str(run_dir)
            ) from None
        listener = held.enter_context(server.listen(settings.listen))
        for stale in run_dir.glob("worker-*.sock"):
            stale.unlink(missing_ok=True)
        prepared = _prepare(checked)
        proxy.application()
        document = prices.all_marked(checked.config.document, proxy.price_list())
        write_atomic(_config_path(run_dir), documents.write_json(document), mode=0o600)  # JSON is YAML
        if settings.listen.workers == 1:
            _serve(prepared, 0, listener)
            return 0
        return Supervisor(settings.listen.workers, lambda number, shared: _serve(prepared, number, shared), _say).run(
            listener
        )


def _prepare(checked: Checked) -> Prepared:
    run_dir = checked.settings.state_dir / "run"
    _own_temporary_folder(run_dir / "tmp")
    proxy.prepare_environment(
        os.environ,
        config_path=str(_config_path(run_dir)),
        master_key=checked.master_key,
        secrets=checked.secrets,
        telemetry=checked.settings.telemetry,
    )
    booted = LiveConfig()
    if checked.settings.live is not None:
        booted = live.first(checked.settings, checked.config)
    locks = lockdown.before_import(checked.settings, checked.config)
    workers = checked.settings.listen.workers
    turns = Turns(workers) if workers > 1 else None
    return Prepared(checked.settings, checked.config, checked.master_key, booted, locks, turns)


def _config_path(run_dir: Path) -> Path:
    """Where LiteLLM finds its configuration when it starts."""
    return run_dir / "litellm.yaml"


def _own_temporary_folder(folder: Path) -> None:
    """LiteLLM asks for one while it is imported; on a read-only root the state directory is all there is."""
    with translated(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)


def _serve(prepared: Prepared, number: int, listener: socket.socket) -> None:
    from appliance.gateway.worker import Worker

    with contextlib.redirect_stdout(logs.Unsaid()):
        Worker(prepared, number=number).run(listener)


def _say(error: ApplianceError) -> None:
    log.error(
        "refused",
        extra={"code": error.code, "cause": error.cause, "evidence": error.evidence, "next": error.remedy},
    )
