"""From a folder to a router that may serve, and back to the last good one: with real signatures, encoder and router."""

import dataclasses
import os
import socket
import threading
from datetime import UTC, datetime, timedelta

import pytest

from appliance import artifact as artifacts
from appliance import settings
from appliance.errors import ApplianceError, GatewayError
from appliance.gateway import egress, lockdown, server
from appliance.gateway.active import Slot
from appliance.gateway.decision import Deployment
from appliance.gateway.loading import LastGood, Loader
from appliance.gateway.watch import DirectoryWatch, fingerprint
from appliance.registry.directory import DirectoryStore
from appliance.registry.sidecar import Sidecar
from appliance.trust.authority import Authority
from appliance.trust.ceremony import Revocation, revoke
from appliance.trust.store import TrustStore
from tests.support.routing import encoder_files, place, sign, zone
from tests.support.trust import make_authority

LABELS = {"a": "openai/small", "b": "openai/large"}


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return make_authority(tmp_path_factory.mktemp("authority") / "ca")


@pytest.fixture
def here(tmp_path, authority):
    made = zone(tmp_path / "zone", authority, labels=LABELS)
    made.put()
    return made


def configured(here, **router) -> settings.Settings:
    sections = here.sections(router=router)
    litellm = {"inline": {"model_list": []}, "master_key_file": "key"}
    return settings.parse(
        {"schema_version": 1, "state_dir": "state", "litellm": litellm, **sections}, base=here.directory
    )


def watch(here, *, now=lambda: datetime.now(UTC), **router) -> DirectoryWatch:
    chosen = configured(here, **router)
    return DirectoryWatch(
        Slot("default"), chosen.routing.routers["default"], Loader(chosen, now=now),
        directory=here.router_directory, trust=here.directory / "trust", last_good=LastGood(here.directory / "kept"),
        sidecar=Sidecar(DirectoryStore(here.directory / "volume")),
    )  # fmt: skip


def test_an_honest_router_is_verified_loaded_and_kept(here):
    made = watch(here)
    made._judge(made._state())
    assert made.slot.current.digest == here.artifact().digest
    assert artifacts.read(LastGood(here.directory / "kept").find()).digest == made.slot.current.digest


def test_an_unknown_role_may_sign_routers_only_where_the_configuration_does_not_narrow_it(here):
    chosen = configured(here)
    Loader(chosen).from_directory("default", here.router_directory)
    narrowed = chosen.model_copy(update={"trust": chosen.trust.model_copy(update={"router_role": "producer"})})
    with pytest.raises(ApplianceError) as refusal:
        Loader(narrowed).from_directory("default", here.router_directory)
    assert refusal.value.code.startswith("TRUST_")


def test_a_router_that_only_its_producer_signed_is_refused_unless_the_operator_names_the_role(here):
    here.put(role="producer")
    chosen = configured(here)
    with pytest.raises(ApplianceError) as refusal:
        Loader(chosen).from_directory("default", here.router_directory)
    assert refusal.value.code == "REGISTRY_NOT_ADMITTED"
    named = chosen.model_copy(update={"trust": chosen.trust.model_copy(update={"router_role": "producer"})})
    assert Loader(named).from_directory("default", here.router_directory)[0].verdict.role == "producer"


@pytest.mark.parametrize("days", [-20000, 9000])
def test_a_clock_of_1970_or_2050_is_refused_by_name(here, days):
    made = watch(here, now=lambda: datetime.now(UTC) + timedelta(days=days))
    made._judge(made._state())
    assert made.slot.problem["code"] in {"TRUST_CLOCK_BEHIND", "TRUST_CLOCK_AHEAD", "TRUST_METADATA_EXPIRED"}


CANARIES = [{"prompt": "easy the", "label": "a"}, {"prompt": "hard prove", "label": "b"}, {"prompt": "only scored"}]


def test_a_router_that_answers_the_canaries_takes_over_and_one_that_does_not_is_refused(here):
    made = watch(here, canaries=CANARIES)
    made._judge(made._state())
    good = made.slot.current.digest
    here.put(version="2.0.0", swapped=True)
    made._judge(made._state())
    assert made.slot.problem["code"] == "GATEWAY_CANARY"
    assert made.slot.problem["evidence"]["wrong"][0] == {"canary": "0", "expected": "a", "chosen": "b"}
    assert made.slot.current.digest == good


def test_a_share_of_the_canaries_may_be_enough(here):
    here.put(version="2.0.0", swapped=True)
    made = watch(here, canaries=[*CANARIES, {"prompt": "easy", "label": "b"}], canary_agreement=0.3)
    made._judge(made._state())
    assert made.slot.problem is None


def test_what_nobody_foresaw_is_a_refusal_with_a_code_not_a_dead_thread(here):
    made = watch(here)

    def explode(*_, **__):
        raise MemoryError("too much")

    made._loader.from_directory = explode
    made._judge(made._state())
    assert made.slot.problem["code"] == "GATEWAY_ROUTER_LOAD"


def test_a_folder_is_judged_only_when_it_has_held_still(here):
    made = watch(here)
    made._judge(made._state())
    assert not made.look()
    (here.router_directory / "weights.safetensors").write_bytes(b"half a fi")
    assert not made.look(), "seen once"
    (here.router_directory / "weights.safetensors").write_bytes(b"half a file, more of it")
    assert not made.look(), "it moves"
    assert made.look(), "it holds still"
    assert made.slot.problem is not None
    assert not made.look(), "what was refused is not tried again"
    made.reload()
    assert made.look(), "but for whoever asks"


def test_a_file_changed_and_given_its_old_time_and_size_back_is_noticed(here):
    path = here.router_directory / "weights.safetensors"
    before, status = fingerprint(here.router_directory), path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert fingerprint(here.router_directory) != before


def test_the_fingerprint_of_a_missing_folder_is_one_too(tmp_path):
    assert fingerprint(tmp_path / "none") == fingerprint(tmp_path / "none")


def test_the_last_good_router_survives_a_kill_at_any_point_of_its_keeping(here, monkeypatch):
    """Each write is followed by a simulated end; what is found afterwards is the old one or the new one, whole."""
    kept = LastGood(here.directory / "kept")
    old, new = here.artifact(version="1.0.0"), here.artifact(version="2.0.0")
    kept.keep(old)
    from appliance.gateway import loading

    real = loading.write_atomic
    for stop in range(1, 6):
        seen = []

        def write(path, data, *, mode=0o644, stop=stop, seen=seen):
            seen.append(path)
            if len(seen) == stop:
                raise KeyboardInterrupt
            real(path, data, mode=mode)

        monkeypatch.setattr(loading, "write_atomic", write)
        try:
            kept.keep(new)
        except KeyboardInterrupt:
            assert artifacts.read(kept.find()).digest == old.digest
        monkeypatch.setattr(loading, "write_atomic", real)
    kept.keep(new)
    assert artifacts.read(kept.find()).digest == new.digest
    assert [e.name for e in (here.directory / "kept").iterdir() if e.is_dir()] == [new.digest]


def test_a_pointer_that_climbs_out_of_its_folder_leads_nowhere(tmp_path):
    (tmp_path / "current").write_text("../../etc")
    assert LastGood(tmp_path).find() is None


def test_two_processes_keeping_at_once_leave_one_whole_router(here):
    versions = [here.artifact(version=f"3.{n}.0") for n in range(4)]
    threads = [threading.Thread(target=LastGood(here.directory / "kept").keep, args=(v,)) for v in versions * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = artifacts.read(LastGood(here.directory / "kept").find())
    assert found.digest in {v.digest for v in versions}


def test_an_encoder_signed_by_nobody_is_not_loaded(here):
    (here.directory / "encoder/artifact.sigstore.json").unlink()
    with pytest.raises(ApplianceError) as refusal:
        Loader(configured(here)).from_directory("default", here.router_directory)
    assert refusal.value.code == "ARTIFACT_UNSIGNED"


def test_a_router_of_another_encoder_is_refused_with_both_digests(here, tmp_path, authority):
    other = zone(tmp_path / "other", authority, labels=LABELS, work=1)
    place(other.artifact(), here.router_directory)
    with pytest.raises(GatewayError) as refusal:
        Loader(configured(here)).from_directory("default", here.router_directory)
    assert refusal.value.code == "GATEWAY_ENCODER_MISSING"
    assert refusal.value.evidence["wanted"] != next(iter(refusal.value.evidence["found"].values()))


MEMBERS = {"chat": [Deployment("one", "openai/small"), Deployment("two", "openai/large")]}


@pytest.mark.parametrize("labels", [{"a": "openai/small", "b": "nowhere"}, {"a": "two", "b": "openai/else"}])
def test_a_router_that_knows_one_deployment_by_its_model_or_its_id_may_serve(here, labels, authority):
    other = dataclasses.replace(here, labels=labels)
    other.put()
    Loader(configured(other), MEMBERS).from_directory("default", here.router_directory)


def test_a_router_whose_labels_stand_for_nothing_here_does_not_take_over(here):
    made = watch(here)
    made._loader.exchange(configured(here), MEMBERS)
    made._judge(made._state())
    good = made.slot.current.digest
    dataclasses.replace(here, labels={"a": "openai/smal", "b": "elsewhere"}).put(version="2.0.0")
    made._judge(made._state())
    assert made.slot.problem["code"] == "GATEWAY_LABELS"
    assert made.slot.problem["evidence"]["labels"] == {"a": "openai/smal", "b": "elsewhere"}
    assert made.slot.current.digest == good
    made._loader.exchange(configured(here), {"chat": [Deployment("elsewhere", "openai/new")]})
    made.reload()
    assert made.look()
    assert made.slot.problem is None, "the deployments are others now"


def test_a_router_that_cannot_be_in_time_does_not_replace_one_that_is_and_serves_where_there_is_none(here):
    slow = encoder_files(work=40)
    place(sign(slow, here.authority.signer("release-signer")), here.directory / "slow")
    chosen = configured(here)
    routing = chosen.routing.model_copy(
        update={"encoders": (*chosen.routing.encoders, here.directory / "slow"), "deadline_ms": 10}
    )
    chosen = chosen.model_copy(update={"routing": routing})
    made = watch(here)
    made._loader.exchange(chosen, {})
    made._judge(made._state())
    good = made.slot.current.digest
    heavy = dataclasses.replace(here, encoder=slow).put(version="2.0.0")
    made._judge(made._state())
    assert (made.slot.problem["code"], made.slot.current.digest) == ("GATEWAY_SLOW", good)
    made.slot.current = None
    made._judge(made._state())
    assert made.slot.current.digest == heavy.digest, "better than none: the deadline sends what is late by weights"


def test_an_encoder_that_the_zone_has_denied_since_ends_the_router_that_rests_on_it(here, tmp_path):
    authority = make_authority(tmp_path / "ca")
    other = zone(tmp_path / "other", authority, labels=LABELS)
    other.put()
    made = watch(other)
    made._judge(made._state())
    assert made.slot.current is not None
    denied = artifacts.read(other.directory / "encoder").digest
    now = datetime.now(UTC)
    revoke(Authority.open(authority.path), Revocation(digests=(denied,)), now=now)
    TrustStore.open(other.directory / "trust").refresh(authority.repository, now=now)
    made.look()
    assert made.look()
    assert made.slot.problem["code"] == "TRUST_DENIED"
    assert made.slot.current is None, "what the zone has denied is not kept as the last good"


def test_a_router_signed_anew_is_told_by_its_new_signature_and_kept_under_it(here):
    made = watch(here)
    made._judge(made._state())
    before = made.slot.current
    place(here.artifact(role="release-signer"), here.router_directory)
    made._judge(made._state())
    assert (made.slot.current.digest, before.verdict.role) == (before.digest, "import-officer")
    assert made.slot.current.verdict.role == "release-signer"
    kept = artifacts.read(LastGood(here.directory / "kept").find())
    assert kept.signature == (here.router_directory / "artifact.sigstore.json").read_bytes()


def test_a_kept_router_that_lost_a_file_is_kept_again(here):
    kept, router = LastGood(here.directory / "kept"), here.artifact()
    kept.keep(router)
    (kept.find() / "weights.safetensors").write_bytes(b"")
    kept.keep(router)
    assert artifacts.read(kept.find()).digest == router.digest


# --- listener and lockdown --------------------------------------------------------------------------------------------


def test_an_address_of_another_host_is_refused_by_name():
    chosen = settings.Listen(port=8443).model_copy(update={"host": "192.0.2.7"})
    with pytest.raises(GatewayError) as refusal:
        server.listen(chosen)
    assert refusal.value.code == "GATEWAY_ADDRESS"


def test_a_guard_that_does_not_hold_keeps_the_gateway_from_serving(here, monkeypatch):
    chosen = configured(here)
    chosen = chosen.model_copy(update={"lockdown": settings.Lockdown(seccomp=False)})
    with socket.create_server(("127.0.0.1", 0)) as reachable:
        monkeypatch.setattr(lockdown, "NOWHERE", reachable.getsockname())  # loopback: the guard lets it pass
        with pytest.raises(GatewayError) as refusal:
            lockdown.before_serving(chosen, lockdown.Lockdown(egress.EgressGuard([])))
    assert refusal.value.code == "GATEWAY_EGRESS_OPEN"


def test_a_serving_pair_is_never_mixed(here):
    made = watch(here)
    made._judge(made._state())
    first = made.slot.current
    here.put(version="2.0.0", swapped=True)
    made._judge(made._state())
    assert made.slot.current is not first
    assert dataclasses.is_dataclass(first)
    assert first.router.metadata.version == "1.0.0", "who holds the old pair keeps it"
