"""A signed router decides real requests; whatever happens to its file, requests go on."""

import json

import pytest

from tests.support.gateway import deployment, gateway
from tests.support.routing import place, prompts, zone
from tests.support.trust import make_authority
from tests.support.upstream import upstream

LABELS = {"small-label": "openai/small", "large-label": "openai/large"}


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return make_authority(tmp_path_factory.mktemp("authority") / "ca")


@pytest.fixture(scope="module", params=["static", "keep-last-good"])
def served(request, tmp_path_factory, authority):
    home = tmp_path_factory.mktemp("ml")
    here = zone(home / "zone", authority, labels=LABELS)
    here.put()
    with (
        upstream("small") as small,
        upstream("large") as large,
        gateway(
            home / "gateway",
            [deployment("chat", small), deployment("chat", large)],
            **here.sections(router={"on_bad_update": request.param}),
        ) as running,
    ):
        yield running, here, request.param


@pytest.fixture
def restored(served):
    """The router's folder is good again after every test, and the gateway has seen it."""
    running, here, _ = served
    good = here.artifact()
    place(good, here.router_directory)
    serves(running, good)
    yield served
    place(good, here.router_directory)
    serves(running, good)


def router(running) -> dict:
    return running.status()["routers"]["default"]


def serves(running, artifact) -> None:
    running.wait_until(
        lambda: (found := router(running))["digests"] == [artifact.digest] and not found["problem"],
        what="router serves",
    )


def chosen(running, prompt: str) -> tuple[str, str]:
    response = running.chat(prompt)
    assert response.status_code == 200, response.text
    return response.headers["x-appliance-deployment"], response.headers["x-appliance-routing"]


def test_easy_prompts_go_to_the_small_model_and_hard_ones_to_the_large(restored):
    running, _, _ = restored
    for prompt in prompts(3, "easy"):
        assert chosen(running, prompt) == ("small", "ml:knn; success; best_score")
    for prompt in prompts(3, "hard"):
        assert chosen(running, prompt) == ("large", "ml:knn; success; best_score")


def test_the_record_of_a_decision_names_router_scores_and_candidates_but_not_the_prompt(restored):
    running, here, _ = restored
    request_id = running.chat("hard prove the secret theorem").headers["x-appliance-request-id"]
    records = running.client.get("/appliance/decisions").json()["decisions"]
    record = next(r for r in records if r["request_id"] == request_id)
    assert record["selected"] == "large"
    assert set(record["scores"]) == set(LABELS)
    assert record["score"] == max(record["scores"].values())
    assert record["router_digest"] == here.artifact().digest
    assert record["propensity"] == 1.0
    assert "secret" not in json.dumps(records)
    assert "secret" not in running.log.read_text()


def test_status_names_version_digest_signer_and_origin(restored):
    running, _, _ = restored
    serving = router(running)["serving"]
    assert serving["artifact"] == "default 1.0.0"
    assert serving["signer_role"] == "import-officer"
    assert serving["origin"] == "directory"
    assert serving["encoder_digest"]
    text = running.command("status", "--config", str(running.config)).stdout
    assert "router default: default 1.0.0 (knn)" in text


def test_a_new_version_takes_over_without_a_restart(restored):
    running, here, _ = restored
    assert chosen(running, "easy the")[0] == "small"
    serves(running, here.put(version="2.0.0", swapped=True))
    assert chosen(running, "easy the")[0] == "large"
    assert router(running)["serving"]["artifact"] == "default 2.0.0"


@pytest.mark.parametrize(
    ("name", "damage", "code"),
    [
        ("weights.safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 1]), "TRUST_OMS_FILES"),
        ("weights.safetensors", lambda data: data[: len(data) // 2], "TRUST_OMS_FILES"),
        ("router.yaml", lambda data: data + b"\n", "TRUST_OMS_FILES"),
        ("artifact.sigstore.json", lambda _: b"{}", None),
        ("artifact.sigstore.json", None, "ARTIFACT_UNSIGNED"),
        ("router.yaml", None, None),
    ],
)
def test_a_bad_file_never_costs_a_request_and_healing_it_needs_no_restart(restored, name, damage, code):
    running, here, mode = restored
    path = here.router_directory / name
    good = path.read_bytes()
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(good))
    problem = running.wait_until(lambda: router(running)["problem"], what="the damage is noticed")
    assert problem["remedy"]
    if code is not None:
        assert problem["code"] == code
    if mode == "static":
        assert router(running)["mode"] == "weighted-round-robin"
        assert running.status()["groups"]["chat"]["routing"] == "weighted-round-robin"
        assert {chosen(running, "easy the") for _ in range(4)} == {
            ("small", "round-robin; fallback; no_router"), ("large", "round-robin; fallback; no_router")
        }  # fmt: skip
        assert "weighted round-robin serves" in running.command("status", "--config", str(running.config)).stdout
    else:
        assert router(running)["mode"] == "ml"
        assert chosen(running, "easy the") == ("small", "ml:knn; success; best_score")
    path.write_bytes(good)
    running.wait_until(lambda: not router(running)["problem"], what="healed")
    assert chosen(running, "hard of") == ("large", "ml:knn; success; best_score")


def test_a_router_signed_by_another_authority_is_refused(restored, tmp_path_factory):
    running, here, _ = restored
    stranger = make_authority(tmp_path_factory.mktemp("stranger") / "ca")
    from tests.support.routing import router_files, sign

    place(sign(router_files(labels=LABELS), stranger.signer("import-officer")), here.router_directory)
    running.wait_until(
        lambda: (found := router(running)["problem"]) and found["code"] != "TRUST_OMS_FILES",  # which a copy midway has
        what="the stranger is noticed",
    )
    assert router(running)["problem"]["code"].startswith("TRUST_")
    assert running.chat("easy the").status_code == 200
