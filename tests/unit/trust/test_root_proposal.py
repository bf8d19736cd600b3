"""A root whose key holders never meet: drafted by the authority, signed by each alone, put together, enforced."""

import json
import shutil
from datetime import timedelta

import pytest

from appliance import documents
from appliance.errors import TrustError
from appliance.trust import authorisation, ceremony, keys, proposal
from appliance.trust.authority import Authority
from appliance.trust.keys import KeyRing
from appliance.trust.profiles import read_recipes
from appliance.trust.proposal import Proposal
from appliance.trust.report import authority_report
from tests.support.media import contents
from tests.support.trust import RECIPES, DevelopmentAuthority

DAY = timedelta(days=1)
ROOT_KEYS = ("tuf-root-1", "tuf-root-2", "tuf-root-3")


@pytest.fixture(scope="module")
def born(tmp_path_factory):
    """An authority without its root keys, and the three holders' key rings."""
    from tests.unit.trust.conftest import BIRTH

    folder = tmp_path_factory.mktemp("holders")
    places = {name: folder / name / "root.pem" for name in ROOT_KEYS}
    ceremony.create_authority(folder / "ca", read_recipes(RECIPES), development=False, now=BIRTH, elsewhere=places)
    return folder / "ca", {name: KeyRing(folder, elsewhere={name: place}).load(name) for name, place in places.items()}


@pytest.fixture
def holders(born):
    return born[1]


@pytest.fixture
def own(born, tmp_path):
    shutil.copytree(born[0], tmp_path / "ca")
    return DevelopmentAuthority(tmp_path / "ca")


@pytest.fixture
def authority(own):
    return Authority.open(own.path)


def refused(code, call, *args, **kwargs):
    with pytest.raises(TrustError) as caught:
        call(*args, **kwargs)
    assert caught.value.code == code, caught.value
    return caught.value


def travelled(draft):
    """A draft as it arrives on another machine."""
    return proposal.read(proposal.write(draft))


def test_the_draft_passes_from_hand_to_hand_and_hosts_follow(own, authority, holders, tmp_path, now):
    store = own.store(tmp_path / "state", now=now)
    carol = keys.generate()
    draft = ceremony.propose_root(authority, {"tuf-root-3": carol.public_key()}, now=now)
    for name in ("tuf-root-1", "tuf-root-2"):
        draft = proposal.sign(travelled(draft), holders[name])
    ceremony.accept_root(authority, [travelled(draft)], now=now)
    store.refresh(own.repository, now=now)
    assert store.state().versions["root"] == 2
    assert proposal.root_key_names(store.state().root) == ["tuf-root-1", "tuf-root-2", "tuf-root-4"]
    assert json.loads(own.anchor)["root"].encode() == (own.repository / "metadata/2.root.json").read_bytes()


def test_each_holder_signs_a_copy_and_the_authority_puts_them_together(authority, holders, now):
    draft = ceremony.propose_root(authority, {}, now=now)
    copies = [travelled(proposal.sign(travelled(draft), holders[name])) for name in ("tuf-root-3", "tuf-root-1")]
    accepted = ceremony.accept_root(authority, copies, now=now)
    assert proposal.describe(accepted)["signed_by"] == ["tuf-root-1", "tuf-root-3"]


def test_one_holder_of_three_is_not_enough_however_often_that_one_signs(own, authority, holders, now):
    draft = proposal.sign(ceremony.propose_root(authority, {}, now=now), holders["tuf-root-1"])
    before = contents(own.path)
    again = proposal.sign(draft, holders["tuf-root-1"])
    refusal = refused("TRUST_THRESHOLD", ceremony.accept_root, authority, [draft, again, draft], now=now)
    assert refusal.evidence["signed"] == ["tuf-root-1"]
    assert contents(own.path) == before


def test_a_root_with_three_new_holders_needs_two_of_the_old_and_two_of_the_new(authority, holders, now):
    new = {name: keys.generate() for name in ROOT_KEYS}
    draft = ceremony.propose_root(authority, {name: key.public_key() for name, key in new.items()}, now=now)
    by_old = proposal.sign(proposal.sign(draft, holders["tuf-root-1"]), holders["tuf-root-2"])
    by_new = proposal.sign(proposal.sign(draft, new["tuf-root-1"]), new["tuf-root-2"])
    refused("TRUST_THRESHOLD", ceremony.accept_root, authority, [by_old], now=now)
    refused("TRUST_THRESHOLD", ceremony.accept_root, authority, [by_new], now=now)
    one_old = proposal.sign(by_new, holders["tuf-root-3"])
    refused("TRUST_THRESHOLD", ceremony.accept_root, authority, [one_old], now=now)
    ceremony.accept_root(authority, [by_old, by_new], now=now)


def test_an_online_key_is_replaced_by_holders_who_are_far_away(own, authority, holders, tmp_path, now):
    store = own.store(tmp_path / "state", now=now)
    draft = ceremony.propose_root(authority, {"tuf-targets-1": None}, now=now)
    assert list(proposal.describe(draft)["keys_added"]) == ["targets tuf-targets-2"]
    for name in ("tuf-root-2", "tuf-root-3"):
        draft = proposal.sign(draft, holders[name])
    ceremony.accept_root(authority, [draft], now=now)
    store.refresh(own.repository, now=now)
    assert store.state().versions == {"root": 2, "timestamp": 2, "snapshot": 2, "targets": 2}


def test_a_root_under_which_nobody_here_could_sign_on_is_refused_before_anything_changes(own, authority, holders, now):
    draft = ceremony.propose_root(authority, {"tuf-snapshot-1": keys.generate().public_key()}, now=now)
    for name in ROOT_KEYS:
        draft = proposal.sign(draft, holders[name])
    before = contents(own.path)
    refused("TRUST_THRESHOLD", ceremony.accept_root, authority, [draft], now=now)
    assert contents(own.path) == before


def test_a_holder_does_not_count_for_two(authority, holders, now):
    bob = holders["tuf-root-2"].public_key()
    error = refused("TRUST_KEY_UNUSABLE", ceremony.propose_root, authority, {"tuf-root-1": bob}, now=now)
    assert "tuf-root-2" in error.cause
    carol = keys.generate().public_key()
    twice = {"tuf-root-1": carol, "tuf-root-3": carol}
    refused("TRUST_KEY_UNUSABLE", ceremony.propose_root, authority, twice, now=now)
    renamed = ceremony.propose_root(authority, {"tuf-root-2": bob}, now=now)  # the same holder under the next number
    assert proposal.root_key_names(renamed.proposed.signed) == ["tuf-root-1", "tuf-root-3", "tuf-root-4"]


def test_an_acceptance_that_was_killed_is_finished_by_the_same_command(
    own, authority, holders, tmp_path, now, monkeypatch
):
    draft = ceremony.propose_root(authority, {"tuf-timestamp-1": None}, now=now)
    for name in ("tuf-root-1", "tuf-root-3"):
        draft = proposal.sign(draft, holders[name])

    def kill(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr("appliance.trust.repository.Repository.publish", kill)
        with pytest.raises(KeyboardInterrupt):
            ceremony.accept_root(authority, [draft], now=now)
    assert any("interrupted" in each for each in authority_report(authority, now=now)["warnings"])
    accepted = (own.repository / "metadata/2.root.json").read_bytes()
    ceremony.accept_root(authority, [draft], now=now)
    store = own.store(tmp_path / "state", now=now)
    assert store.state().versions["root"] == 2
    assert (own.repository / "metadata/2.root.json").read_bytes() == accepted
    assert not any("interrupted" in each for each in authority_report(authority, now=now)["warnings"])
    refused("TRUST_PROPOSAL", ceremony.accept_root, authority, [draft], now=now)


def test_a_root_keys_successor_is_never_made_at_the_authority(authority, now):
    refused("TRUST_PROPOSAL", ceremony.propose_root, authority, {"tuf-root-1": None}, now=now)
    refused("TRUST_KEY_UNKNOWN", ceremony.propose_root, authority, {"tuf-targets-9": None}, now=now)


def test_drafts_that_do_not_belong_together_or_come_too_late_are_refused(authority, holders, now):
    first = ceremony.propose_root(authority, {}, now=now)
    second = ceremony.propose_root(authority, {}, now=now + DAY)
    signed = [proposal.sign(first, holders["tuf-root-1"]), proposal.sign(second, holders["tuf-root-2"])]
    refused("TRUST_PROPOSAL", ceremony.accept_root, authority, signed, now=now)
    both = proposal.sign(signed[0], holders["tuf-root-2"])
    ceremony.accept_root(authority, [both], now=now)
    refused("TRUST_PROPOSAL", ceremony.accept_root, authority, [both], now=now)


def test_nobody_but_a_root_key_holder_signs(authority, holders, born, now):
    draft = ceremony.propose_root(authority, {}, now=now)
    refused("TRUST_KEY_UNKNOWN", proposal.sign, draft, keys.generate())
    refused("TRUST_KEY_UNKNOWN", proposal.sign, draft, authority.keys.load("tuf-targets-1"))


def test_a_holder_reads_what_would_change_before_signing(authority, holders, now):
    carol = keys.generate()
    draft = ceremony.propose_root(authority, {"tuf-root-3": carol.public_key()}, now=now)
    report = proposal.describe(proposal.sign(draft, holders["tuf-root-1"]))
    assert report["root"] == "1 -> 2"
    assert report["keys_added"] == {"root tuf-root-4": keys.key_id(carol.public_key()).hex()}
    assert report["keys_retired"] == {"root tuf-root-3": keys.key_id(holders["tuf-root-3"].public_key()).hex()}
    assert report["still_needed"] == {
        "of root 1": "1 of tuf-root-2, tuf-root-3",
        "of root 2": "1 of tuf-root-2, tuf-root-4",
    }
    assert report["digest"] == proposal.describe(draft)["digest"]


def lower_threshold(draft):
    draft.proposed.signed.roles["root"].threshold = 1


def skip_a_version(draft):
    draft.proposed.signed.version += 1


def strip_the_present_root(draft):
    draft.previous.signatures.clear()


TAMPERED = {
    "a lower threshold after somebody signed": lower_threshold,
    "a version skipped": skip_a_version,
    "a present root that nobody signed": strip_the_present_root,
    "a stranger's signature": lambda d: d.proposed.signatures.update(
        {"0" * 64: type(next(iter(d.proposed.signatures.values())))("0" * 64, "00")}
    ),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_a_draft_that_was_altered_on_its_way_is_refused(name, authority, holders, now):
    draft = travelled(proposal.sign(ceremony.propose_root(authority, {}, now=now), holders["tuf-root-1"]))
    TAMPERED[name](draft)
    refused("TRUST_PROPOSAL", proposal.read, proposal.write(Proposal(draft.previous, draft.proposed)))


REWRITTEN = {
    "nothing": lambda data: b"",
    "half of it": lambda data: data[: len(data) // 2],
    "not in canonical form": lambda data: data.replace(b":", b": ", 1),
    "another type": lambda data: data.replace(b"root-proposal", b"authorisation"),
    "a list": lambda data: b"[]\n",
    "a key twice within the root": lambda data: edited(
        data, lambda t: t.replace('"version"', '"version": 9, "version"')
    ),
    "another role's metadata": lambda data: edited(data, lambda t: t.replace('"_type": "root"', '"_type": "targets"')),
    "no JSON within": lambda data: edited(data, lambda t: "root"),
    "a root of gigantic size": lambda data: edited(data, lambda t: t + " " * 2_000_000),
}


def edited(data, change):
    document = json.loads(data)
    return documents.write_json({**document, "proposed": change(document["proposed"])})


@pytest.mark.parametrize("name", REWRITTEN)
def test_a_file_that_is_no_draft_is_refused(name, authority, now):
    data = proposal.write(ceremony.propose_root(authority, {}, now=now))
    refused("TRUST_PROPOSAL", proposal.read, REWRITTEN[name](data))


def test_an_authorisation_is_signed_by_holders_one_after_the_other(own, authority, holders, tmp_path, now):
    store = own.store(tmp_path / "state", now=now)
    facts = {"machine": "a" * 64, "version": "1.0.0"}
    asked = {**facts, "now": now, "lifetime": DAY}
    refused("TRUST_THRESHOLD", authorisation.write_token, authority, "downgrade", **asked)
    token = authorisation.write_token(authority, "downgrade", **asked, partial=True)
    redeemed = {"action": "downgrade", **facts, "now": now}
    for name in ("tuf-root-1", "tuf-root-3"):
        refused("TRUST_THRESHOLD", store.redeem, token, **redeemed)
        token, statement = authorisation.add_signature(token, holders[name])
        assert statement.version == "1.0.0"
    store.redeem(token, **redeemed)


def test_an_authorisation_with_a_strangers_signature_among_them_is_refused(own, authority, holders, tmp_path, now):
    store = own.store(tmp_path / "state", now=now)
    token = authorisation.write_token(
        authority, "downgrade", machine="a" * 64, version="1.0.0", now=now, lifetime=DAY, partial=True
    )
    for key in (*list(holders.values())[:2], keys.generate()):
        token, _ = authorisation.add_signature(token, key)
    refused(
        "TRUST_TOKEN_MALFORMED", store.redeem, token, action="downgrade", version="1.0.0", now=now, machine="a" * 64
    )
