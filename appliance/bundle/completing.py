"""The second half of an installation: verify what lies on the disk, check health, switch, confirm or return.

Runs in the installed appliance only, never in stage 0: here the full verifier has the last word before anything points
to the new release.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from appliance.bundle.authentication import Authenticator, FullVerdict
from appliance.bundle.bytecode import clear_bytecode, compiling_ahead
from appliance.bundle.comparison import compare_environment
from appliance.bundle.health import MODULES, check_health, require_room
from appliance.bundle.releases import is_complete, raise_state_version, write_marker
from appliance.bundle.stage0.environment import clear_cache, settle_environment
from appliance.bundle.stage0.journal import Prefix, Transaction
from appliance.bundle.stage0.media import Head
from appliance.bundle.stage0.preparing import Conduct, advance, check_payload, reached, stage_again
from appliance.bundle.stage0.refusal import Refused
from appliance.errors import InstallError


@dataclass(frozen=True)
class Completion:
    """What the steps after `environment` need.

    Attributes:
        prefix: where.
        verdict: the authenticated release.
        authenticator: to take over the trust metadata.
        head: the media's, as it was authenticated.
        conduct: how to speak.
        now: the clock.
    """

    prefix: Prefix
    verdict: FullVerdict
    authenticator: Authenticator
    head: Head
    conduct: Conduct
    now: datetime

    def run(self, transaction: Transaction) -> list[dict[str, Any]]:
        """Finish a transaction; returns the health check's findings.

        Raises:
            Refused: INSTALL_STAGED_ALTERED. TrustError: the trust metadata.
            InstallError: INSTALL_UNHEALTHY; the old release runs. INSTALL_UNCHECKED, INSTALL_NO_SPACE: nothing was
                said about the release, which stays for the next run to take up.
        """
        health: list[dict[str, Any]] = []
        if not reached(transaction, "healthy"):
            try:
                # the disk settles, and another core compiles, while this one verifies and asks for health
                with ThreadPoolExecutor(2) as background, self._compiling(transaction.release):
                    folder = self.prefix.release(transaction.release)
                    settled = background.submit(settle_environment, folder)
                    self._verify(transaction)  # also where an earlier run did: nothing is taken from yesterday
                    if not reached(transaction, "verified"):
                        transaction = advance(self.prefix, transaction, "verified", self.conduct)
                    background.submit(clear_cache, folder)
                    health = self._check_health(transaction.release)
                    settled.result()
            except InstallError as error:
                if error.code == "INSTALL_UNHEALTHY":
                    self._clear_away(transaction.release)
                raise
            write_marker(self.prefix, transaction.release, signer=self.verdict.verdict.identity, now=self.now)
            transaction = advance(self.prefix, transaction, "healthy", self.conduct)
        if not reached(transaction, "activated"):
            self._activate(transaction)
            transaction = advance(self.prefix, transaction, "activated", self.conduct)
        if not reached(transaction, "confirmed"):
            self._confirm(transaction)
            transaction = advance(self.prefix, transaction, "confirmed", self.conduct)
        self.prefix.close()
        return health

    def _verify(self, transaction: Transaction) -> None:
        """Hash the payload once more from the disk, then take over the trust metadata it came with."""
        self.conduct.say("verifying what was staged")
        try:
            check_payload(self.prefix, self.verdict.release.manifest)
            if is_complete(self.prefix, transaction.release):  # made long ago, and perhaps changed since
                self._require_environment(transaction.release)
        except Refused:
            stage_again(self.prefix, transaction)
            raise
        self.conduct.checkpoint("verified: before the trust state")
        self.authenticator.commit(self.head, self.prefix.state / "trust", witness=self.verdict.verdict.signed_at)

    def _require_environment(self, release_id: str) -> None:
        """Refuse an environment that is not what its wheels brought."""
        found = compare_environment(self.prefix.release(release_id), (), deep=True)
        if found.differing:
            text = f"{len(found.differing)} files of the environment are no longer what was signed"
            raise Refused("INSTALL_STAGED_ALTERED", text, files=list(found.differing[:5]))

    def _compiling(self, release_id: str) -> AbstractContextManager[object]:
        """Compile what the health check will import; a release that was complete before has it all."""
        if is_complete(self.prefix, release_id) and self.prefix.active() != release_id:
            return nullcontext()
        environment = self.prefix.environment(release_id)
        clear_bytecode(environment)
        modules = MODULES.get(self.verdict.release.manifest.profile, ())
        return compiling_ahead(environment, modules, python=self.conduct.python)

    def _check_health(self, release_id: str) -> list[dict[str, Any]]:
        """Gate the activation: what does not work here is not pointed to."""
        self.conduct.say("checking health")
        environment, payload = self.prefix.environment(release_id), self.prefix.payload(release_id)
        profile = self.verdict.release.manifest.profile
        health = check_health(environment / "bin" / "python", payload, profile, keep_bytecode=True)
        require_room(environment)
        return health

    def _clear_away(self, release_id: str) -> None:
        """Forget a release that does not work; one that once did stays for `rollback`."""
        if not is_complete(self.prefix, release_id):
            self.prefix.discard(release_id)
        self.prefix.close()

    def _activate(self, transaction: Transaction) -> None:
        """Place the configuration where there is none, raise the state's mark, and switch."""
        self._place_configuration(transaction.release)
        raise_state_version(self.prefix, self.verdict.release.manifest.state_version)
        self.conduct.say(f"activating {transaction.release}")
        self.conduct.checkpoint("activating: before the switch")
        if self.prefix.active() != transaction.release:
            self.prefix.point_to(transaction.release, reason="install", now=self.now)

    def _confirm(self, transaction: Transaction) -> None:
        """Check once more through `current`, as the services will use it; go back if it fails there."""
        try:
            check_health(self.prefix.current / "env" / "bin" / "python", self.prefix.current / "payload", "in place")
        except InstallError as error:
            self._go_back(transaction)
            if error.code == "INSTALL_UNHEALTHY":
                self.prefix.discard(transaction.release)
                self.prefix.close()
            raise

    def _go_back(self, transaction: Transaction) -> None:
        """Undo the activation; a disk too full for the history's line does not keep it."""
        if transaction.previous is None:
            self.prefix.point_to_nothing()
            return
        try:
            self.prefix.point_to(transaction.previous, reason="automatic return", now=self.now)
        except Refused as refusal:
            if refusal.code != "INSTALL_NO_SPACE":
                raise
            self.prefix.switch(transaction.previous)

    def _place_configuration(self, release_id: str) -> None:
        """The default configuration, file by file, where the operator has none; his own is never touched."""
        source = self.prefix.payload(release_id) / "config"
        for file in sorted(source.iterdir()) if source.is_dir() else ():
            target = self.prefix.configuration / file.name
            if not target.exists():
                self.prefix.write(target, file.read_text("utf-8"))
                self.conduct.say(f"wrote {target}")
                self.conduct.checkpoint("configuration written")
