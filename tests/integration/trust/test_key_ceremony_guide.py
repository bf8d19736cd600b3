"""`docs/key-ceremony.md` typed as it stands: two authorities, from their making to the repair of what befell them.

The zone's root keys are in two tokens and on a medium, and the keys of every day in a third token. The vendor's root
keys are its holders', who are never in one room; its others are in a token. A function here is a chapter of the page.
"""

import json
import shutil
import subprocess
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509

from appliance.errors import TrustError
from appliance.trust.store import TrustStore
from appliance.trust.trusted_root import rfc3339
from tests.support.artifacts import router_files, write
from tests.support.desks import AUTHORITY, Desk, Host, desk, sha256
from tests.support.guides import Guide

EVERY_DAY = ("ct-1", "log-1", "tsa-1")  # beside `signing-1`, whose URI the page writes out
ONLINE = ("signing-1", *EVERY_DAY, "tls-1", "tuf-targets-1", "tuf-snapshot-1", "tuf-timestamp-1")
PRODUCER_7 = {"identity": "producer-7@appliance.internal", "issuer": "https://ca.appliance.internal"}


def edit_policy(zone: Desk, change: Any) -> None:
    path = zone.folder / "ca/policy.yaml"
    policy = yaml.safe_load(path.read_text())
    change(policy)
    path.write_text(yaml.safe_dump(policy))


@pytest.mark.slow
def test_every_command_of_the_page_does_what_the_page_promises(tmp_path, softhsm):
    guide = Guide("key-ceremony")
    zone, places = make_the_authority(guide, tmp_path, softhsm)
    host, first = hand_out_and_sign(zone, tmp_path / "host")
    vendor = hand_over_to_holders_who_are_never_in_one_room(guide, tmp_path, softhsm)
    believe_the_vendor(zone, vendor, host, tmp_path / "newer")
    a_year_passes(zone, host)
    let_an_older_release_back_in(zone, host, places, tmp_path / "ahead")
    lose_a_root_key(zone, host, places)
    have_keys_stolen(zone, host, places, first)
    keep_a_person_from_signing(zone, host)
    rewrite_the_log(zone, host, first)
    guide.all_typed(
        {"appliance install": "test_install.py installs whole releases; here only its `ca trust` is told of"}
    )


def make_the_authority(guide: Guide, tmp_path: Path, softhsm: Any) -> tuple[Desk, dict[str, str]]:
    """Two root keys in tokens, one on a medium (and its successor); what signs every day in a token."""
    holders = {"tuf-root-1": "alice", "tuf-root-2": "bob", "root-1": "alice"}
    places = {name: softhsm(holder, f"zone-{name}") for name, holder in holders.items()}
    places |= {name: str(tmp_path / f"media/{name}/root.pem") for name in ("tuf-root-3", "tuf-root-4")}
    passphrases = tmp_path / "passphrases"
    passphrases.write_text("default=of every day\ntuf-root-3=of a holder\ntuf-root-4=of another\n")
    signing = softhsm("online", "zone-signing-1")
    others = [softhsm("online", f"zone-{name}") for name in EVERY_DAY]
    known, pin = {"/run/passphrases": passphrases}, signing.partition("file:")[2]
    exported = guide.exports(
        {**known, "token=online;object=signing-1": parts(signing), "/run/pin": pin, "pkcs11:...": others}
    )
    zone = Desk(guide, tmp_path / "zone", exported)
    zone.folder.mkdir()
    zone.type("appliance ca recipes")
    edit_policy(zone, lambda policy: policy["roles"]["producer"]["identities"].append(PRODUCER_7))
    elsewhere = [places[name] for name in ("tuf-root-2", "tuf-root-3", "root-1")]
    written_out = {"token=alice;object=tuf-root-1": parts(places["tuf-root-1"]), "/run/pin-a": pin}
    online = [f"--key={each}" for each in exported["APPLIANCE_CA_KEYS"].split()]
    made = zone.type("appliance ca init --out", {**known, **written_out, "pkcs11:...": elsewhere}, *online)
    assert (made["recipes"], made["development"]) == ("ca", False)
    state = zone.type("appliance ca status")
    assert made["anchor_sha256"] == state["anchor_sha256"] == zone.anchor_sha256
    assert (state["root_threshold"], state["warnings"]) == ("2 of 3", [])
    assert state["keys_not_here"] == ["tuf-root-1", "tuf-root-2", "tuf-root-3"]
    keys = sorted((zone.folder / AUTHORITY / "keys").iterdir())
    assert [key.stem for key in keys] == ["tls-1", "tuf-snapshot-1", "tuf-targets-1", "tuf-timestamp-1"]
    assert all(b"ENCRYPTED" in key.read_bytes() for key in (*keys, Path(places["tuf-root-3"])))
    return zone, places


def parts(uri: str) -> str:
    """Token and object of a URI."""
    return uri.removeprefix("pkcs11:").partition("?")[0]


def hand_out_and_sign(zone: Desk, folder: Path) -> tuple[Host, Path]:
    """A host trusts the anchor of the second channel, and accepts what the exported variables let sign."""
    folder.mkdir()
    host = Host(zone.guide, folder)
    trusted = host.trust(zone)
    assert trusted["release_identity"] == "release-signer@appliance.internal"
    bare = Desk(zone.guide, zone.folder)
    unsigned = write(router_files(), zone.folder / "unsigned")
    assert bare.refused("appliance artifact sign", {"FOLDER": unsigned}) == "TRUST_KEY_MISSING"
    first = zone.sign("first")
    assert host.judge(first)["identity"] == "producer@appliance.internal"
    return host, first


def hand_over_to_holders_who_are_never_in_one_room(guide: Guide, tmp_path: Path, softhsm: Any) -> Desk:
    """The vendor's: two media and a token, on three machines; the keys that `init` made hand over and are destroyed."""
    vendor = desk(guide, tmp_path / "vendor", **{name: softhsm("online", f"vendor-{name}") for name in ONLINE})
    nobody = Desk(guide, vendor.folder)  # who knows no passphrase
    assert nobody.refused("appliance ca init --domain vendor.example") == "TRUST_PASSPHRASE"
    born = vendor.type("appliance ca init --domain vendor.example")["anchor_sha256"]
    assert "root keys lie beside the others" in " ".join(nobody.type("appliance ca status")["warnings"])
    machines = {name: desk(guide, tmp_path / name) for name in ("alice", "bob", "carol")}
    places = {name: str(machine.folder / "medium/root.pem") for name, machine in machines.items()}
    places["carol"] = softhsm("carol", "vendor-tuf-root")
    fingerprints = set()
    for name, machine in machines.items():
        names = {"/media/me/root.pem": places[name], "alice.pub": f"{name}.pub"}
        fingerprints.add(machine.type("appliance ca root key", names)["fingerprint"])
        shutil.copy(machine.folder / f"{name}.pub", vendor.folder)
    assert b"ENCRYPTED" in Path(places["alice"]).read_bytes()
    assert not list(machines["carol"].folder.rglob("*.pem"))
    no_key = {"alice.pub": "empty.pub"}
    (vendor.folder / "empty.pub").write_text("nothing")
    assert vendor.refused("appliance ca root propose --out draft --replace", no_key) == "TRUST_KEY_UNUSABLE"
    draft = vendor.type("appliance ca root propose --out draft --replace")
    assert set(draft["keys_added"].values()) == fingerprints
    told = {"2b7305fe...": draft["digest"]}
    for number in (1, 3):
        old = {"/media/me/root.pem": AUTHORITY / f"keys/tuf-root-{number}.pem"}
        vendor.type("appliance ca root sign draft", {**told, **old})

    def signed(name: str, digest: str) -> None:
        """A holder gets the draft, looks at it, signs it and no other, and sends it back."""
        shutil.copy(vendor.folder / "draft", machines[name].folder)
        shown = machines[name].type("appliance ca root show draft", report=False)
        assert digest in shown
        assert "still needed" in shown
        mine = {"/media/me/root.pem": places[name]}
        wrong = machines[name].refused("appliance ca root sign draft", {**mine, "2b7305fe...": "0" * 64})
        assert wrong == "TRUST_PROPOSAL"
        machines[name].type("appliance ca root sign draft", {**mine, "2b7305fe...": digest})
        shutil.copy(machines[name].folder / "draft", vendor.folder / f"draft-{name}")

    accept = "appliance ca root accept draft-alice draft-bob"
    signed("alice", draft["digest"])
    shutil.copy(vendor.folder / "draft", vendor.folder / "draft-bob")  # who has not signed yet
    refusal = vendor.type(accept, expect=1)["error"]
    assert refusal["code"] == "TRUST_THRESHOLD"
    assert "tuf-root-5" in json.dumps(refusal)  # who is missing
    assert vendor.anchor_sha256 == born
    signed("bob", draft["digest"])
    assert vendor.act(accept)["signed_by"] == ["tuf-root-1", "tuf-root-3", "tuf-root-4", "tuf-root-5"]
    subprocess.run(["shred", "-u", *(vendor.folder / AUTHORITY / "keys").glob("tuf-root-*")], check=True)
    state = vendor.type("appliance ca status")
    assert state["keys_not_here"] == ["tuf-root-4", "tuf-root-5", "tuf-root-6"]
    assert (state["root_threshold"], state["warnings"]) == ("2 of 3", [])
    assert "appliance ca root propose --out FILE" in {each["remedy"] for each in state["expiries"]}

    longer = vendor.type("appliance ca root propose --out draft")
    assert (longer["root"], longer["keys_added"], longer["keys_retired"]) == ("2 -> 3", {}, {})

    (tmp_path / "outside").mkdir()
    outside = Host(guide, tmp_path / "outside")
    outside.trust(vendor)
    machine = outside.type("appliance ca machine")["machine"]
    authorise = "appliance ca authorise downgrade 1.4.2 --machine HEX --out token --partial"
    assert vendor.refused(authorise, {"HEX": machine, "--partial": ""}) == "TRUST_THRESHOLD"
    vendor.type(authorise, {"HEX": machine})
    assert vendor.refused("appliance ca root show draft", {"draft": "token"}) == "TRUST_PROPOSAL"
    now = datetime.now(UTC)
    for name, refusal in (("bob", "TRUST_THRESHOLD"), ("carol", None)):
        shutil.move(vendor.folder / "token", machines[name].folder)
        machines[name].type("appliance ca root sign token", {"/media/me/root.pem": places[name]})
        shutil.move(machines[name].folder / "token", vendor.folder)
        token = (vendor.folder / "token").read_bytes()
        assert redeemed(outside.store, token, now=now) == refusal
    return vendor


def redeemed(store: TrustStore, token: bytes, *, now: datetime, version: str = "1.4.2", **options: Any) -> str | None:
    """Give a host a token, as `install` does; why it is refused, if it is."""
    try:
        store.redeem(token, action="downgrade", version=version, now=now, **options)
    except TrustError as error:
        return error.code
    return None


def believe_the_vendor(zone: Desk, vendor: Desk, host: Host, newer: Path) -> None:
    """The vendor signs releases for the zone, and nothing else, once its digest was told and the policy names it."""
    shutil.copy(vendor.folder / AUTHORITY / "trust_config.json", zone.folder)
    told = {"HEX": sha256(zone.folder / "trust_config.json")}
    signer = {"identity": "release-signer@vendor.example", "issuer": "https://ca.vendor.example"}
    edit_policy(zone, lambda policy: policy["roles"]["release-signer"].update(identities=[signer]))
    release, admission = (vendor.sign(role, role) for role in ("release-signer", "import-officer"))
    assert zone.refused("appliance ca rotate policy") == "TRUST_PEER"
    assert zone.refused("appliance ca enrol trust_config.json --sha256", {"HEX": "0" * 64}) == "TRUST_PEER"
    assert host.judge(release, expect=1) == "TRUST_CERTIFICATE_AUTHORITY"
    assert zone.act("appliance ca enrol trust_config.json --sha256", told)["peer"] == "vendor.example"
    zone.act("appliance ca rotate policy")
    assert zone.type("appliance ca status")["peers"] == ["vendor.example"]
    host.refresh(zone)
    assert host.judge(release)["issuer"] == "https://ca.vendor.example"
    assert host.judge(admission, expect=1) == "TRUST_ROLE"
    newer.mkdir()
    assert Host(zone.guide, newer).trust(zone)["release_identity"] == "release-signer@vendor.example"


def a_year_passes(zone: Desk, host: Host) -> None:
    assert {each["what"] for each in zone.type("appliance ca status")["expiries"]} >= {"metadata root", "signing-1"}
    before = host.store.state().versions["timestamp"]
    locked = Desk(zone.guide, zone.folder, {"APPLIANCE_CA_KEYS": zone.exported["APPLIANCE_CA_KEYS"]})
    empty = zone.folder / "empty"
    empty.write_text("\n")
    assert locked.refused("appliance ca renew") == "TRUST_PASSPHRASE"
    assert locked.refused("appliance ca renew", {}, "--passphrase-file", empty) == "TRUST_PASSPHRASE"
    assert zone.act("appliance ca renew")["renewed"] == ["targets", "snapshot", "timestamp", "tls-crl"]
    first = zone.type("appliance ca issue")
    second = zone.type("appliance ca renew gateway")
    assert first["serial"] != second["serial"]
    assert (zone.folder / second["certificate"]).is_file()
    assert host.refresh(zone)["metadata"]["timestamp"]["version"] > before


def let_an_older_release_back_in(zone: Desk, host: Host, places: Mapping[str, str], ahead: Path) -> None:
    """A token works once, on that host, for that version, for seven days; and so does one for a clock."""
    machine = host.type("appliance ca machine")["machine"]
    line = "appliance ca authorise downgrade 1.4.2 --machine HEX --out token.json"
    one = {"HEX": machine, "--key tuf-root-2=PLACE": "", "PLACE": places["tuf-root-1"]}
    assert zone.refused(line, one) == "TRUST_THRESHOLD"
    zone.type(line, {"HEX": machine, "PLACE": [places["tuf-root-1"], places["tuf-root-2"]]})
    token, now = (zone.folder / "token.json").read_bytes(), datetime.now(UTC)
    shutil.copytree(host.folder, ahead, symlinks=True)
    late = Host(zone.guide, ahead)
    assert redeemed(late.store, token, now=now + timedelta(days=8)) == "TRUST_TOKEN_EXPIRED"
    assert redeemed(host.store, token, now=now, version="1.4.1") == "TRUST_TOKEN_VERSION"
    assert redeemed(host.store, token, now=now, machine="b" * 64) == "TRUST_TOKEN_MACHINE"
    assert redeemed(host.store, token, now=now) is None
    assert redeemed(host.store, token, now=now) == "TRUST_TOKEN_USED"
    set_a_clock_back(zone, late, places)


def set_a_clock_back(zone: Desk, host: Host, places: Mapping[str, str]) -> None:
    """This host believed for a while that it was eight days later."""
    assert host.refused("appliance ca refresh", host.hear(zone)) == "TRUST_CLOCK_BEHIND"
    right = {"2026-11-23T12:00:00Z": rfc3339(datetime.now(UTC))}
    line, two = "appliance ca authorise clock", [places["tuf-root-1"], places["tuf-root-3"]]
    machine = {"HEX": host.type("appliance ca machine")["machine"]}
    one = {**right, **machine, "--key tuf-root-3=PLACE": "", "PLACE": two[0]}
    assert zone.refused(line, one) == "TRUST_THRESHOLD"
    zone.type(line, {**right, **machine, "PLACE": two})
    shutil.copy(zone.folder / "token.json", host.folder)
    redeem = ("appliance ca redeem token.json", {**right, "PREFIX": host.folder})
    host.type(*redeem)
    host.refresh(zone)
    assert host.refused(*redeem) == "TRUST_TOKEN_USED"


def lose_a_root_key(zone: Desk, host: Host, places: Mapping[str, str]) -> None:
    """Two holders of three replace the third's key; none of them is enough alone."""
    line = "appliance ca rotate tuf-root-2"
    new, old = {"NEWPLACE": places["tuf-root-4"]}, [places["tuf-root-1"], places["tuf-root-3"]]
    one = {**new, "--key tuf-root-3=PLACE": "", "PLACE": old[0]}
    assert zone.refused(line, one) == "TRUST_THRESHOLD"
    assert not Path(places["tuf-root-4"]).exists()
    assert zone.act(line, {**new, "PLACE": old})["new_keys"] == ["tuf-root-4"]
    assert zone.type("appliance ca status")["keys_not_here"] == ["tuf-root-1", "tuf-root-3", "tuf-root-4"]
    host.refresh(zone)
    assert host.store.state().versions["root"] == 2


def have_keys_stolen(zone: Desk, host: Host, places: Mapping[str, str], first: Path) -> None:
    """What a stolen key signed before the theft stays valid; what it signed since does not; the log tells what."""
    since = next_second(after=datetime.fromisoformat(host.judge(first)["signed_at"]))
    thief = zone.sign("thief")
    assert host.judge(thief)["role"] == "producer"
    line = "appliance ca rotate signing"
    when = {"2026-11-20T00:00:00Z": rfc3339(since)}
    assert zone.refused(line, {**when, "--key root-1=PLACE": ""}) == "TRUST_KEY_MISSING"
    assert zone.act(line, {**when, "PLACE": places["root-1"]})["new_keys"] == ["signing-2"]
    line, two = "appliance ca rotate tuf-targets-1", [places["tuf-root-1"], places["tuf-root-3"]]
    assert zone.refused(line, {"--key tuf-root-3=PLACE": "", "PLACE": two[0]}) == "TRUST_THRESHOLD"
    assert zone.act(line, {"PLACE": two})["new_keys"] == ["tuf-targets-2"]
    host.refresh(zone)
    assert host.judge(first)["role"] == "producer"
    assert host.judge(thief, expect=1) == "TRUST_KEY_WINDOW"

    unknown = {what: zone.sign(what) for what in ("index", "serial", "digest")}
    verdicts = {what: host.judge(folder) for what, folder in unknown.items()}
    zone.type("appliance ca log export log.json")
    audited = host.audit(zone.folder / "log.json", kept=False)
    assert audited["signers"] == {"producer@appliance.internal": 5}
    more = ("--serial", verdicts["serial"]["certificate_serial"], "--digest", verdicts["digest"]["digest"])
    zone.act("appliance ca revoke --log-index", {"N": verdicts["index"]["log_index"]}, *more)
    host.refresh(zone)
    assert {host.judge(folder, expect=1) for folder in unknown.values()} == {"TRUST_DENIED"}
    assert host.judge(first)["role"] == "producer"

    issued = zone.type("appliance ca status --json")["tls"][-1]
    zone.act("appliance ca revoke --tls", {"HEX": issued["serial"]})
    host.refresh(zone)
    listed = host.folder / "state/trust/current/targets/tls-crl.pem"
    assert [f"{each.serial_number:x}" for each in x509.load_pem_x509_crl(listed.read_bytes())] == [issued["serial"]]


def next_second(*, after: datetime) -> datetime:
    """The present, to the second, once that is later."""
    while (now := datetime.now(UTC).replace(microsecond=0)) <= after:
        time.sleep(0.05)
    return now


def keep_a_person_from_signing(zone: Desk, host: Host) -> None:
    """With an identity goes what it ever signed; the next policy keeps what was denied, or is refused."""
    gone = zone.sign("gone", identity="producer-7")
    assert host.judge(gone)["identity"] == PRODUCER_7["identity"]
    zone.act("appliance ca revoke --identity")
    host.refresh(zone)
    assert host.judge(gone, expect=1) == "TRUST_ROLE"
    line = "appliance ca rotate policy --policy ca/policy.yaml"
    edit_policy(zone, lambda policy: policy["roles"]["producer"]["identities"].remove(PRODUCER_7))
    assert zone.refused(line) == "TRUST_REVOCATION"
    denied = zone.type("appliance ca status --json")["denied"]
    edit_policy(zone, lambda policy: policy.update(denied=denied))
    zone.act(line)
    host.refresh(zone)
    assert host.judge(gone, expect=1) == "TRUST_ROLE"


def rewrite_the_log(zone: Desk, host: Host, first: Path) -> None:
    """An audit that keeps the checkpoint sees that a log has become shorter, or other than it was."""
    log, export = zone.folder / AUTHORITY / "log", zone.folder / "log.json"
    zone.type("appliance ca log export log.json")
    assert host.audit(export, kept=True)["contains_earlier"] is None
    shutil.copytree(log, zone.folder / "backup")
    lost_from = next_second(after=datetime.now(UTC))
    lost = zone.sign("lost")
    shutil.copy(host.folder / "seen", zone.folder)
    zone.type("appliance ca log export proof.json")
    proven = host.audit(zone.folder / "proof.json", kept=True)
    assert (proven["contains_earlier"], proven["signers"]) == (True, None)
    zone.type("appliance ca log export log.json")
    assert host.audit(export, kept=True)["contains_earlier"] is True
    honest = export.read_bytes()
    export.write_bytes(honest.replace(b'"entries":["', b'"entries":["AAAA","'))
    assert host.audit(export, kept=True, expect=1)["error"]["code"] == "TRUST_LOG_DAMAGED"

    shutil.rmtree(log)
    shutil.copytree(zone.folder / "backup", log)
    zone.type("appliance ca log export log.json")
    assert host.audit(export, kept=True, expect=1)["error"]["code"] == "TRUST_LOG_INCONSISTENT"
    assert zone.act("appliance ca rotate log", {"TIME": rfc3339(lost_from)})["new_keys"] == ["log-2"]
    host.refresh(zone)
    assert host.judge(first)["role"] == "producer"
    assert host.judge(lost, expect=1) == "TRUST_KEY_WINDOW"
    again = zone.sign("again")
    assert host.judge(again)["role"] == "producer"
    (host.folder / "seen").unlink()
    zone.type("appliance ca log export log.json")
    assert host.audit(export, kept=True)["entries"] == 1
