"""The authority's acts: keys encrypted and elsewhere, rotation, renewal, revocation, expiry warnings."""

import shutil
import subprocess
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from appliance import documents
from appliance.errors import ApplianceError, RegistryError
from appliance.files import write_atomic
from appliance.registry.tls import check_revoked
from appliance.trust import ceremony, tls, trusted_root
from appliance.trust.authority import Authority
from appliance.trust.ceremony import Revocation
from appliance.trust.names import statement_type
from appliance.trust.profiles import read_recipes
from appliance.trust.report import authority_report, expiries
from appliance.trust.repository import REVOCATIONS, Repository
from appliance.trust.signing import open_signer
from appliance.trust.verification import verify_statement
from tests.support import children
from tests.support.media import contents
from tests.support.trust import RECIPES, DevelopmentAuthority

PAYLOAD = documents.write_json({"_type": statement_type("release"), "version": "1.2.3"})
DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)


@pytest.fixture
def own(zone, tmp_path):
    shutil.copytree(zone.path, tmp_path / "ca")
    return DevelopmentAuthority(tmp_path / "ca")


@pytest.fixture
def authority(own):
    return Authority.open(own.path)


def refused(code, call, *args, **kwargs):
    with pytest.raises(ApplianceError) as caught:
        call(*args, **kwargs)
    assert caught.value.code == code, caught.value
    return caught.value


def judge(own, bundle, at):
    return verify_statement(PAYLOAD, bundle, kind="release", material=own.material, at=at)


@pytest.mark.parametrize("service", ["signing", "tsa", "log", "ct", "root"])
def test_signatures_from_before_and_after_a_rotation_are_accepted(service, own, authority, now):
    before = own.signer("release-signer", at=now).sign_statement(PAYLOAD)
    later = now + DAY
    ceremony.rotate_service(authority, service, now=later)
    after = own.signer("release-signer", at=later + DAY).sign_statement(PAYLOAD)
    for bundle in (before, after):
        judge(own, bundle, later + 2 * DAY)


@pytest.mark.parametrize("service", ["signing", "tsa", "log", "ct"])
def test_what_a_stolen_key_signs_after_the_theft_is_refused(service, own, authority, now):
    honest = own.signer("release-signer", at=now).sign_statement(PAYLOAD)
    stolen = own.signer("release-signer", at=now + 3 * DAY).sign_statement(PAYLOAD)
    judge(own, stolen, now + 5 * DAY)
    ceremony.rotate_service(authority, service, now=now + 5 * DAY, compromised_since=now + 2 * DAY)
    judge(own, honest, now + 6 * DAY)
    refused("TRUST_KEY_WINDOW", judge, own, stolen, now + 6 * DAY)


@pytest.mark.parametrize("service", ["signing", "tsa", "log", "ct"])
def test_the_second_of_the_theft_itself_is_refused_and_the_one_before_is_not(service, own, authority, now):
    theft = now + DAY
    before, stolen = (own.signer("release-signer", at=at).sign_statement(PAYLOAD) for at in (theft - SECOND, theft))
    ceremony.rotate_service(authority, service, now=now + 2 * DAY, compromised_since=theft)
    judge(own, before, now + 3 * DAY)
    refused("TRUST_KEY_WINDOW", judge, own, stolen, now + 3 * DAY)


@pytest.mark.parametrize("service", ["signing", "tsa", "log", "ct"])
def test_a_key_stolen_at_its_birth_has_never_signed_anything(service, own, authority, birth, now):
    first = own.signer("release-signer", at=birth).sign_statement(PAYLOAD)
    judge(own, first, now)
    ceremony.rotate_service(authority, service, now=now, compromised_since=birth)
    refused("TRUST_KEY_WINDOW", judge, own, first, now + DAY)
    judge(own, own.signer("release-signer", at=now + DAY).sign_statement(PAYLOAD), now + DAY)


def test_a_rotation_without_the_roots_key_changes_nothing(own, authority, now):
    (own.path / "keys/root-1.pem").unlink()
    before = contents(own.path)
    refused("TRUST_KEY_MISSING", ceremony.rotate_service, authority, "signing", now=now)
    assert contents(own.path) == before


ACTS = {
    "rotating the signing key": lambda a, now: ceremony.rotate_service(a, "signing", now=now),
    "rotating the log": lambda a, now: ceremony.rotate_service(a, "log", now=now),
    "revoking": lambda a, now: ceremony.revoke(a, Revocation(tls_serials=(serial(a),)), now=now),
    "renewing a root that is due": lambda a, now: ceremony.renew(a, now=Repository(a).metadata("root").expires - DAY),
    "setting a policy": lambda a, now: ceremony.set_policy(a, Repository(a).policy(), now=now),
}


def serial(authority):
    return f"{tls.issued_tls(authority)[0].serial_number:x}"


@pytest.mark.parametrize("missing", ["tuf-targets-1", "tuf-snapshot-1", "tuf-timestamp-1", "tls-1"])
@pytest.mark.parametrize("act", ACTS)
def test_an_act_whose_metadata_cannot_be_signed_here_changes_nothing(act, missing, own, authority, now):
    """A rotation left half done would sign from then on with a key that no host knows."""
    tls.issue_tls(authority, "tls-client", "gateway", at=now)
    key = own.path / f"keys/{missing}.pem"
    pem = key.read_bytes()
    key.unlink()
    before = contents(own.path)
    code = "TRUST_KEY_MISSING" if missing == "tls-1" else "TRUST_THRESHOLD"
    refused(code, ACTS[act], Authority.open(own.path), now)
    assert contents(own.path) == before
    key.write_bytes(pem)
    ACTS[act](Authority.open(own.path), now)
    assert contents(own.path) != before


@pytest.mark.parametrize("stolen", [False, True])
@pytest.mark.parametrize("service", ["tls", "root"])
def test_a_tls_authority_whose_key_is_lost_is_replaced(service, stolen, own, authority, now):
    (own.path / "keys/tls-1.pem").unlink()
    since = now - DAY if stolen else None
    assert "tls-2" in ceremony.rotate_service(authority, service, now=now, compromised_since=since)
    ceremony.renew(authority, now=now + DAY)
    assert tls.issue_tls(authority, "tls-client", "gateway", at=now + DAY)


class Killed(BaseException):
    """As of a process that is killed: nothing is cleaned up after it."""


@pytest.mark.parametrize("service", ["signing", "root", "log"])
@pytest.mark.parametrize("writes", range(12))
def test_a_rotation_that_is_killed_ends_the_old_keys_window_or_has_not_begun(
    service, writes, own, authority, now, monkeypatch
):
    """The status tells of a key in force that hosts do not know of; and the act can be repeated."""
    left = iter(range(writes))

    def write(path, data, **options):
        if next(left, None) is None:
            raise Killed
        write_atomic(path, data, **options)

    for module in ("authority", "ceremony", "keys", "repository"):
        monkeypatch.setattr(f"appliance.trust.{module}.write_atomic", write)
    before = len(authority.state.instances)
    stolen = own.signer("release-signer", at=now).sign_statement(PAYLOAD)
    try:
        ceremony.rotate_service(authority, service, now=now + DAY, compromised_since=now)
        finished = True
    except Killed:
        finished = False
    monkeypatch.undo()
    again = Authority.open(own.path)
    if len(again.state.instances) > before:
        assert all(each.end < now + DAY for each in again.state.instances if each.name == f"{service}-1")
    warned = any("interrupted" in each for each in authority_report(again, now=now + DAY)["warnings"])
    assert warned == (own.material.trusted_root != trusted_root.write(again.anchors()))
    assert not (warned and finished)
    ceremony.renew(again, now=now + DAY)
    ceremony.rotate_service(again, service, now=now + DAY, compromised_since=now)
    refused("TRUST_KEY_WINDOW", judge, own, stolen, now + DAY)
    judge(own, own.signer("release-signer", at=now + DAY).sign_statement(PAYLOAD), now + DAY)


def test_a_metadata_key_is_not_replaced_where_the_others_cannot_sign_on(own, now):
    key = own.path / "keys/tuf-snapshot-1.pem"
    pem = key.read_bytes()
    key.unlink()
    before = contents(own.path / "repository")
    refused("TRUST_THRESHOLD", ceremony.rotate_key, Authority.open(own.path), "tuf-timestamp-1", now=now)
    assert contents(own.path / "repository") == before
    key.write_bytes(pem)
    assert ceremony.rotate_key(Authority.open(own.path), "tuf-timestamp-1", now=now) == "tuf-timestamp-2"


def test_an_authority_whose_clock_fell_back_before_its_birth_does_nothing(own, authority, birth, now):
    """Its rotations would end a key's window before everything that the key has signed."""
    bundle = own.signer("release-signer", at=now).sign_statement(PAYLOAD)
    before = contents(own.path)
    for wrong in (birth.replace(year=1970), birth - SECOND):
        for act in (*ACTS.values(), lambda a, now: ceremony.rotate_key(a, "tuf-targets-1", now=now)):
            if act is not ACTS["renewing a root that is due"] and act is not ACTS["revoking"]:
                refused("TRUST_CLOCK_BEHIND", act, authority, wrong)
        refused("TRUST_CLOCK_BEHIND", ceremony.renew, authority, now=wrong)
        refused("TRUST_CLOCK_BEHIND", ceremony.revoke, authority, Revocation(digests=("a" * 64,)), now=wrong)
        refused("TRUST_CLOCK_BEHIND", own.signer("release-signer", at=wrong).sign_statement, PAYLOAD)
    assert contents(own.path) == before
    judge(own, bundle, now)


def test_no_service_is_rotated_before_what_was_signed_last_and_a_clock_that_ran_ahead_is_got_over(own, now):
    authority = Authority.open(own.path)
    ceremony.renew(authority, now=now + 30 * DAY)
    before = contents(own.path)
    error = refused("TRUST_CLOCK_BEHIND", ceremony.rotate_service, authority, "log", now=now)
    assert "appliance ca renew" in error.cause
    assert contents(own.path) == before
    ceremony.renew(authority, now=now)
    assert ceremony.rotate_service(authority, "log", now=now) == ["log-2"]


DAMAGED = {
    "repository/metadata/timestamp.json": ("cut", "gone"),
    "repository/metadata/1.root.json": ("cut", "gone"),
    "repository/metadata/2.snapshot.json": ("cut", "gone"),
    "repository/metadata/2.targets.json": ("cut", "gone"),
    "repository/targets/*.policy.json": ("cut", "gone", "altered"),
    "certificates/log-1.pub.pem": ("cut", "gone"),
    "issued/*.pem": ("cut",),
}


@pytest.mark.parametrize(("name", "how"), [(name, how) for name in DAMAGED for how in DAMAGED[name]])
def test_damaged_files_of_the_authority_are_said_to_be_and_nothing_is_signed_over_them(name, how, own, authority, now):
    tls.issue_tls(authority, "tls-client", "gateway", at=now)
    ceremony.renew(authority, now=now)
    (path,) = own.path.glob(name)
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:100])
    else:
        path.write_bytes(path.read_bytes().replace(b"onnx", b"pickle"))
    before = contents(own.path / "repository")
    refused("TRUST_AUTHORITY_DAMAGED", ceremony.renew, authority, now=now)
    assert contents(own.path / "repository") == before


@pytest.mark.parametrize("act", ["init", "trust"])
def test_what_stands_in_the_new_folders_place_is_never_replaced(act, own, tmp_path, now):
    (tmp_path / "file").write_text("notes")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    for name in ("file", "link"):
        if act == "trust":
            refused("TRUST_STATE_EXISTS", own.store, tmp_path / name, now=now)
        else:
            recipes = read_recipes(RECIPES)
            call = {"development": True, "now": now}
            refused("TRUST_AUTHORITY_EXISTS", ceremony.create_authority, tmp_path / name, recipes, **call)
    assert (tmp_path / "link").is_symlink()
    assert own.store(tmp_path / "empty", now=now).directory == tmp_path / "empty"


def test_no_tls_certificate_takes_the_place_of_the_roots(authority, tmp_path, now):
    refused("TRUST_TLS_NAMES", tls.issue_tls, authority, "tls-client", "ca", at=now)
    tls.issue_tls(authority, "tls-client", "cab", at=now).write(tmp_path, "cab")
    assert (tmp_path / "ca.pem").read_bytes() == tls.tls_roots(authority)


def test_hosts_follow_a_rotation_with_their_next_refresh(own, authority, tmp_path, now):
    store = own.store(tmp_path / "state", now=now)
    ceremony.rotate_service(authority, "signing", now=now + DAY)
    bundle = own.signer("release-signer", at=now + 2 * DAY).sign_statement(PAYLOAD)
    later = now + 3 * DAY
    args = {"kind": "release", "at": later}
    refused(
        "TRUST_CERTIFICATE_AUTHORITY", verify_statement, PAYLOAD, bundle, material=store.material(now=later), **args
    )
    store.refresh(own.repository, now=later)
    verify_statement(PAYLOAD, bundle, material=store.material(now=later), **args)


REVOCATIONS_OF = {
    "the certificate": ("TRUST_DENIED", lambda v: Revocation(certificate_serials=(f"{v.certificate_serial:X}",))),
    "the log entry": ("TRUST_DENIED", lambda v: Revocation(log_indices=(v.log_index,))),
    "the content": ("TRUST_DENIED", lambda v: Revocation(digests=(v.digest.upper(),))),
    "the identity": ("TRUST_ROLE", lambda v: Revocation(identities=(v.identity,))),
}


@pytest.mark.parametrize("what", REVOCATIONS_OF)
def test_after_revoking(what, own, authority, now):
    code, make = REVOCATIONS_OF[what]
    policy = Repository(authority).policy()
    role = policy.roles["release-signer"]
    second = role.identities[0].model_copy(update={"identity": "release-signer-2@appliance.internal"})
    two = role.model_copy(update={"identities": (*role.identities, second)})
    ceremony.set_policy(
        authority, policy.model_copy(update={"roles": {**policy.roles, "release-signer": two}}), now=now
    )
    bundle = own.signer("release-signer", at=now).sign_statement(PAYLOAD)
    verdict = judge(own, bundle, now)
    ceremony.revoke(authority, make(verdict), now=now)
    refused(code, judge, own, bundle, now)


def test_a_role_other_than_the_release_signers_can_be_retired_whole(own, authority, now):
    ceremony.revoke(authority, Revocation(roles=("producer",)), now=now)
    assert "producer" not in own.material.policy.roles
    refused("TRUST_ROLE_UNKNOWN", open_signer, own.path, "producer")


MISTYPED = {
    "a serial that is no number": Revocation(certificate_serials=("zz",)),
    "a serial that a variable did not hold": Revocation(certificate_serials=("",)),
    "a serial beyond every certificate's": Revocation(certificate_serials=("1" * 65,)),
    "a digest that was cut": Revocation(digests=("abc",)),
    "an entry that the log does not have": Revocation(log_indices=(1_000_000,)),
    "an entry before the first": Revocation(log_indices=(-1,)),
}


@pytest.mark.parametrize("name", MISTYPED)
def test_a_revocation_of(name, own, authority, now):
    own.signer("release-signer", at=now).sign_statement(PAYLOAD)
    before = contents(own.path)
    refused("TRUST_REVOCATION", ceremony.revoke, authority, MISTYPED[name], now=now)
    assert contents(own.path) == before


@pytest.mark.parametrize("written", ["00ABcd", "0xabcd", "AB:CD", " abcd "])
def test_a_serial_is_taken_as_tools_print_it(written, authority, now):
    policy = ceremony.revoke(authority, Revocation(certificate_serials=(written,)), now=now)
    assert policy.denied.certificate_serials == ("abcd",)


def test_of_many_acts_at_once_none_is_lost(own, now):
    serials = [f"{number:x}" for number in range(0xA0, 0xA6)]

    def act(serial):
        return lambda: ceremony.revoke(Authority.open(own.path), Revocation(certificate_serials=(serial,)), now=now)

    rotate = [lambda: ceremony.rotate_service(Authority.open(own.path), "ct", now=now + DAY)] * 2
    assert set(children.run_together([*map(act, serials), *rotate])) == {"done"}
    assert sorted(own.material.policy.denied.certificate_serials) == serials
    names = {each.name for each in Authority.open(own.path).state.instances}
    assert {"ct-1", "ct-2", "ct-3"} <= names


def test_of_several_tls_certificates_all_are_revoked_or_none(own, authority, now):
    serial = f"{tls.issue_tls(authority, 'tls-client', 'app', at=now).certificate.serial_number:X}"
    before = contents(own.path)
    refused("TRUST_TLS_UNKNOWN", ceremony.revoke, authority, Revocation(tls_serials=(serial, "ab")), now=now)
    assert contents(own.path) == before
    ceremony.revoke(authority, Revocation(tls_serials=(serial, serial)), now=now)
    assert [each.serial for each in tls.revoked_tls(authority)] == [serial.lower()]


def test_what_does_not_exist_cannot_be_revoked(authority, now):
    refused("TRUST_ROLE_UNKNOWN", ceremony.revoke, authority, Revocation(roles=("pope",)), now=now)
    refused("TRUST_REVOCATION", ceremony.revoke, authority, Revocation(identities=("x@y",)), now=now)
    refused("TRUST_TLS_UNKNOWN", ceremony.revoke, authority, Revocation(tls_serials=("ab",)), now=now)


def test_the_last_release_signer_cannot_be_revoked_without_a_successor(own, authority, now):
    """An authority whose anchor names nobody could never be used again."""
    before = Repository(authority).version("targets")
    refused("TRUST_REVOCATION", ceremony.revoke, authority, Revocation(roles=("release-signer",)), now=now)
    assert Repository(authority).version("targets") == before


def test_a_new_policy_may_not_forget_what_was_denied(authority, now):
    policy = ceremony.revoke(authority, Revocation(digests=("0" * 64,)), now=now)
    from appliance.trust.policy import Denied

    refused("TRUST_REVOCATION", ceremony.set_policy, authority, policy.model_copy(update={"denied": Denied()}), now=now)
    ceremony.set_policy(authority, policy.model_copy(update={"lowest_epochs": {"release": 4}}), now=now)
    assert Repository(authority).policy().lowest_epochs == {"release": 4}


def test_renewal_extends_the_metadata_and_touches_the_root_only_when_it_is_due(own, authority, now):
    repository = Repository(authority)
    assert "root" not in ceremony.renew(authority, now=now)
    late = repository.metadata("root").expires - 30 * DAY
    assert "root" in ceremony.renew(authority, now=late)
    assert repository.metadata("root").expires > late + 1000 * DAY
    assert repository.version("root") == 2


def test_a_due_root_whose_holders_are_elsewhere_keeps_nothing_else_from_being_renewed(own, authority, now):
    root = Repository(authority).metadata("root")
    for number in (1, 2):
        (own.path / f"keys/tuf-root-{number}.pem").unlink()
    late = root.expires - 5 * DAY
    assert ceremony.renew(authority, now=late) == ["targets", "snapshot", "timestamp", "tls-crl"]
    warnings = authority_report(authority, now=late)["warnings"]
    assert any("metadata root" in each and "appliance ca root propose" in each for each in warnings)
    before = contents(own.path)
    refused("TRUST_THRESHOLD", ceremony.renew, authority, now=root.expires)
    assert contents(own.path) == before


def test_an_expired_service_says_so_and_names_the_command(own, authority, now):
    late = now + 3000 * DAY
    error = refused("TRUST_AUTHORITY_EXPIRED", own.signer("release-signer", at=late).sign_statement, PAYLOAD)
    assert "rotate" in error.remedy


# keys


def passphrase(name):
    return b"correct horse " + name.encode()


@pytest.fixture(scope="module")
def locked_zone(tmp_path_factory):
    from tests.unit.trust.conftest import BIRTH

    folder = tmp_path_factory.mktemp("locked")
    recipes = read_recipes(RECIPES)
    offline = {f"tuf-root-{n}": folder / f"medium-{n}" / "root.pem" for n in (1, 2, 3)}
    ceremony.create_authority(
        folder / "ca", recipes, development=False, now=BIRTH, passphrase=passphrase, elsewhere=offline
    )
    return folder, offline


def test_every_key_of_a_real_authority_is_encrypted_and_for_its_owner_alone(locked_zone):
    folder, offline = locked_zone
    paths = [*(folder / "ca/keys").iterdir(), *offline.values()]
    assert len(paths) == 12
    for path in paths:
        assert path.read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
        assert path.stat().st_mode & 0o777 == 0o600


def test_an_encrypted_authority_signs_with_its_passphrase_and_not_without(locked_zone, now):
    folder, _ = locked_zone
    signer = open_signer(folder / "ca", "release-signer", at=now, passphrase=passphrase)
    judge(DevelopmentAuthority(folder / "ca"), signer.sign_statement(PAYLOAD), now)
    locked = open_signer(folder / "ca", "release-signer", at=now)
    refused("TRUST_KEY_LOCKED", locked.sign_statement, PAYLOAD)
    wrong = open_signer(folder / "ca", "release-signer", at=now, passphrase=lambda _: b"wrong")
    refused("TRUST_KEY_LOCKED", wrong.sign_statement, PAYLOAD)


def test_two_of_three_media_suffice_for_a_root_ceremony_and_one_does_not(locked_zone, tmp_path, now):
    folder, offline = locked_zone
    shutil.copytree(folder / "ca", tmp_path / "ca")

    def opened(*numbers):
        places = {f"tuf-root-{n}": offline[f"tuf-root-{n}"] for n in numbers}
        places["tuf-root-4"] = tmp_path / "medium-4" / "root.pem"
        return Authority.open(tmp_path / "ca", passphrase=passphrase, elsewhere=places)

    refused("TRUST_THRESHOLD", ceremony.rotate_key, opened(3), "tuf-root-3", now=now)
    assert ceremony.rotate_key(opened(1, 2), "tuf-root-3", now=now) == "tuf-root-4"
    assert (tmp_path / "medium-4/root.pem").is_file()


def test_an_authority_is_made_whole_or_not_at_all(tmp_path, now):
    """The passphrase of the eighth key is not given; nothing is left, and the second try succeeds."""

    def forgetful(name):
        if name == "tuf-root-2":
            raise KeyboardInterrupt
        return b"secret"

    recipes = read_recipes(RECIPES)
    with pytest.raises(KeyboardInterrupt):
        ceremony.create_authority(tmp_path / "ca", recipes, development=False, now=now, passphrase=forgetful)
    assert not list(tmp_path.iterdir())
    (tmp_path / "ca").mkdir()  # an empty folder is no obstacle
    ceremony.create_authority(tmp_path / "ca", recipes, development=True, now=now)


def test_an_authority_is_not_made_among_other_files(tmp_path, now):
    (tmp_path / "thesis.txt").write_text("years of work")
    refused(
        "TRUST_AUTHORITY_EXISTS", ceremony.create_authority, tmp_path, read_recipes(RECIPES), development=True, now=now
    )
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


BAD_KEYS = {
    "nothing": ("TRUST_KEY_UNUSABLE", b""),
    "no PEM": ("TRUST_KEY_UNUSABLE", b"key"),
    "half a key": ("TRUST_KEY_UNUSABLE", b"-----BEGIN PRIVATE KEY-----\nMIGHAgEA\n-----END PRIVATE KEY-----\n"),
}


@pytest.mark.parametrize("name", BAD_KEYS)
def test_a_key_file_with(name, own, now):
    code, data = BAD_KEYS[name]
    (own.path / "keys/signing-1.pem").write_bytes(data)
    refused(code, own.signer("release-signer", at=now).sign_statement, PAYLOAD)


def test_an_rsa_key_in_a_keys_place_is_refused(own, now):
    subprocess.run(
        ["openssl", "genpkey", "-algorithm", "RSA", "-out", own.path / "keys/log-1.pem"],
        check=True,
        capture_output=True,
    )
    refused("TRUST_KEY_UNUSABLE", own.signer("release-signer", at=now).sign_statement, PAYLOAD)


DAMAGE = {
    "no authority": ("TRUST_AUTHORITY_MISSING", lambda p: (p / "authority.json").unlink()),
    "an authority file with nonsense": ("TRUST_AUTHORITY_DAMAGED", lambda p: (p / "authority.json").write_bytes(b"{}")),
    "no certificate": ("TRUST_AUTHORITY_DAMAGED", lambda p: (p / "certificates/signing-1.pem").unlink()),
    "no key": ("TRUST_KEY_MISSING", lambda p: (p / "keys/signing-1.pem").unlink()),
    "no repository": ("TRUST_AUTHORITY_DAMAGED", lambda p: shutil.rmtree(p / "repository/metadata")),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_an_authority_with(name, own, now):
    code, damage = DAMAGE[name]
    damage(own.path)
    refused(code, lambda: own.signer("release-signer", at=now).sign_statement(PAYLOAD))


RECIPES_WITH = {
    "an unknown field": lambda d: (d / "policy.yaml").write_text("schema_version: 1\nroles: {}\nadmin: me\n"),
    "a threshold out of reach": lambda d: _replace(d, "keys: 3, threshold: 2", "keys: 3, threshold: 4"),
    "a missing profile": lambda d: _replace(d, "  tls-client: { days: 397 }\n", ""),
    "both days and minutes": lambda d: _replace(d, "{ minutes: 10 }", "{ minutes: 10, days: 1 }"),
    "signing certificates of two days": lambda d: _replace(d, "{ minutes: 10 }", "{ days: 2 }"),
    "no YAML": lambda d: (d / "profiles.yaml").write_text("{{"),
}


def _replace(folder, old, new):
    text = (folder / "profiles.yaml").read_text()
    assert old in text
    (folder / "profiles.yaml").write_text(text.replace(old, new))


@pytest.mark.parametrize("name", RECIPES_WITH)
def test_recipes_with(name, tmp_path):
    for file in ("profiles.yaml", "policy.yaml"):
        shutil.copy(RECIPES / file, tmp_path)
    read_recipes(tmp_path)
    RECIPES_WITH[name](tmp_path)
    refused("TRUST_RECIPE", read_recipes, tmp_path)


# expiry


def test_nothing_is_due_in_a_young_authority_and_everything_is_in_an_old_one(authority, now):
    assert authority_report(authority, now=now)["warnings"] == [
        "a development authority: its keys lie unencrypted in one place"
    ]
    old = authority.state.created + 470 * DAY
    warnings = authority_report(authority, now=old)["warnings"]
    assert any(each.startswith("metadata timestamp expires") and "ca renew" in each for each in warnings)


def test_a_tls_certificate_that_runs_out_is_named_until_it_is_renewed(authority, now):
    tls.issue_tls(authority, "tls-server", "gateway", sans=["gateway.zone"], at=now)
    due = now + 380 * DAY
    assert any("tls gateway" in each for each in authority_report(authority, now=due)["warnings"])
    renewed = tls.renew_tls(authority, "gateway", at=due)
    assert tls.alternative_names(renewed.certificate) == ["gateway.zone"]
    assert not any("tls gateway" in each for each in authority_report(authority, now=due)["warnings"])
    assert [each.what for each in expiries(authority, now=due)].count("tls gateway") == 1


# TLS


def test_a_server_certificate_needs_names_and_they_must_be_names(authority, now):
    refused("TRUST_TLS_NAMES", tls.issue_tls, authority, "tls-server", "gw", at=now)
    for nonsense in ("", "two words", "https://x/", "ümlaut", "a..b", "x" * 64, "gw\nzone", "gw,DNS:zone", "-gw"):
        refused("TRUST_TLS_NAMES", tls.issue_tls, authority, "tls-server", "gw", sans=[nonsense], at=now)
    for san in ("gw", "gw.zone.example", "*.zone.example", "my_gw", "10.0.0.5", "::1"):
        assert tls.issue_tls(authority, "tls-server", "gw", sans=[san], at=now)
    for name in ("", "a/b", "x" * 65):
        refused("TRUST_TLS_NAMES", tls.issue_tls, authority, "tls-client", name, at=now)


def test_a_certificate_for_an_unknown_name_cannot_be_renewed(authority, now):
    refused("TRUST_TLS_UNKNOWN", tls.renew_tls, authority, "nobody", at=now)


def test_a_tls_certificate_never_outlives_its_authority(authority, now):
    identity = tls.issue_tls(authority, "tls-client", "c", at=now, lifetime=timedelta(days=9999))
    assert identity.certificate.not_valid_after_utc == authority.current("tls", now).end


def test_openssl_refuses_a_revoked_certificate_by_the_list_that_travels(own, authority, tmp_path, now):
    revoked = tls.issue_tls(authority, "tls-server", "old", sans=["old.zone"], at=now)
    spared = tls.issue_tls(authority, "tls-server", "new", sans=["new.zone"], at=now)
    serial = f"{revoked.certificate.serial_number:x}"
    ceremony.revoke(authority, Revocation(tls_serials=(serial,)), now=now)
    ceremony.revoke(authority, Revocation(tls_serials=(serial,)), now=now)  # twice is once
    store = own.store(tmp_path / "state", now=now)
    listed = store.revocation_list()
    assert len(x509.load_pem_x509_crl(listed)) == 1
    (tmp_path / "ca.pem").write_bytes(tls.tls_roots(authority))
    (tmp_path / "issuing.pem").write_bytes((own.path / "certificates/tls-1.pem").read_bytes() + listed)

    def check(identity, name):
        identity.write(tmp_path, name)
        return subprocess.run(
            ["openssl", "verify", "-crl_check", "-attime", str(int(now.timestamp()) + 60), "-CAfile", "ca.pem",
             "-CRLfile", "issuing.pem", "-untrusted", f"{name}.pem", f"{name}.pem"],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip

    assert "certificate revoked" in check(revoked, "old").stderr
    assert check(spared, "new").returncode == 0
    with pytest.raises(RegistryError) as info:
        check_revoked(revoked.certificate.public_bytes(Encoding.DER), store.revocation_list)
    assert info.value.code == "REGISTRY_CERTIFICATE_REVOKED"
    check_revoked(spared.certificate.public_bytes(Encoding.DER), store.revocation_list)


def test_the_revocation_list_is_a_target_of_the_trust_repository(authority, now):
    ceremony.renew(authority, now=now)
    assert b"BEGIN X509 CRL" in Repository(authority).target(REVOCATIONS)


def test_a_damaged_list_of_revocations_is_not_taken_for_an_empty_one(own, authority, now):
    (own.path / "revoked.json").write_bytes(b"{}x")
    refused("TRUST_AUTHORITY_DAMAGED", ceremony.renew, authority, now=now)
