"""The status page in a real browser, over a real gateway."""

import contextlib
import json
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.registry import sidecar
from appliance.registry.directory import DirectoryStore
from appliance.registry.registry import Registry
from tests.support.chromium import chromium
from tests.support.gateway import deployment, gateway
from tests.support.routing import prompts, zone
from tests.support.servers import stop
from tests.support.upstream import upstream

pytestmark = [pytest.mark.slow, pytest.mark.server]


@pytest.fixture(scope="module")
def served(tmp_path_factory, authority):
    home = tmp_path_factory.mktemp("page")
    here = zone(home / "zone", authority, labels={"small": "small", "large": "large"})
    here.put()
    with (
        upstream("small") as small,
        upstream("large") as large,
        gateway(
            home / "gateway",
            [deployment("chat", small), deployment("chat", large)],
            tls=False,
            **here.sections(router={"on_bad_update": "static"}),
        ) as running,
    ):
        for prompt in [*prompts(12), *prompts(5, "hard")]:
            assert running.chat(prompt).status_code == 200
        yield running, here


@pytest.fixture
def browser(tmp_path):
    with chromium(tmp_path / "profile") as running:
        yield running


def unlock(browser, running):
    browser.look(dark=False)
    browser.open(f"{running.url}/appliance/ui")
    browser.until("document.activeElement.id === 'key'")
    browser.type(running.key)
    browser.press("Enter")
    browser.until("!document.getElementById('main').hidden")


def test_it_tells_the_state_to_whoever_has_the_key(browser, served, request):
    running, _ = served
    unlock(browser, running)
    browser.until("document.querySelectorAll('#decisions tr').length >= 17")
    text = browser.text()
    assert "all is well" in text
    assert "import-officer@appliance.internal" in text
    assert "default 1.0.0" in text
    assert "71 %" in text  # 12 of 17
    assert "best score" in text
    assert "trust metadata: timestamp" in text
    keep(browser, request)


def test_nothing_is_asked_of_another_host_and_no_policy_is_broken(browser, served):
    running, _ = served
    unlock(browser, running)
    browser.until("document.querySelectorAll('#decisions tr').length >= 17")
    asked = {url for url in browser.requested() if not url.startswith(("about:", "data:"))}
    assert asked
    assert all(url.startswith(f"{running.url}/appliance/") for url in asked)
    assert not browser.complaints()


def test_the_policy_really_stops_inline_script_and_markup(browser, served):
    running, _ = served
    unlock(browser, running)
    browser.evaluate(
        "(() => { const s = document.createElement('script'); s.setAttribute('nonce', ''); "
        "document.head.append(s); try { s.text = 'window.broken = 1'; } catch { } })()"
    )
    assert browser.evaluate("window.broken") is None
    assert (
        browser.evaluate("(() => { try { document.body.innerHTML = '<b>x</b>'; } catch { return 'refused' } })()")
        == "refused"
    )


def test_the_key_is_in_no_address_and_gone_when_forgotten(browser, served):
    running, _ = served
    unlock(browser, running)
    assert not [url for url in browser.requested() if running.key in url]
    browser.evaluate("document.getElementById('forget').click()")
    assert browser.evaluate("sessionStorage.length + localStorage.length") == 0
    assert running.key not in browser.evaluate("document.documentElement.outerHTML")


def test_a_wrong_key_is_told_in_words(browser, served):
    running, _ = served
    browser.open(f"{running.url}/appliance/ui")
    browser.until("document.activeElement.id === 'key'")
    browser.type("sk-" + "0" * 40)
    browser.press("Enter")
    browser.until("document.getElementById('hint').textContent.includes('may not read')")


def test_details_open_and_close_with_the_keyboard_alone(browser, served):
    running, _ = served
    unlock(browser, running)
    browser.until("document.querySelector('td button')")
    for _ in range(30):
        browser.press("Tab")
        if browser.evaluate("document.activeElement.matches('td button')"):
            break
    else:
        raise AssertionError("Tab does not reach the details")
    browser.press("Enter")
    browser.until("document.querySelector('tr.detail')")
    assert browser.evaluate("document.activeElement.getAttribute('aria-expanded')") == "true"
    assert "Prompt digest" in browser.text()
    browser.press("Enter")
    browser.until("!document.querySelector('tr.detail')")


def test_a_screen_reader_finds_landmarks_names_and_the_live_state(browser, served):
    running, _ = served
    unlock(browser, running)
    browser.until("document.querySelector('td button')")
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    roles = {}
    for node in nodes:
        if not node.get("ignored"):
            roles.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    assert {"banner", "main", "contentinfo", "heading", "table", "columnheader", "status", "alert"} <= set(roles)
    assert {"Who answers", "Routers", "Recent decisions", "What ends when"} <= set(roles["heading"])
    assert all(name for role in ("button", "link", "meter", "region") for name in roles.get(role, []))
    assert any("small 71 %" in name for name in roles["image"])


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_text_has_enough_contrast(browser, served, dark):
    running, _ = served
    unlock(browser, running)
    browser.look(dark=dark)
    browser.until("document.querySelector('td button')")
    poor = browser.evaluate(CONTRAST)
    assert poor == []


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    """Deque's rules for accessibility, a test's tool alone: the package is in no release."""
    folder = tmp_path_factory.mktemp("axe")
    (folder / "package.json").write_text('{"private": true}')
    subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "axe-core@4.14.1"],
        cwd=folder, check=True, capture_output=True, timeout=600,
    )  # fmt: skip
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text()


def violations(browser, axe) -> list[str]:
    browser.evaluate(f"{axe}; 0")
    found = browser.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [f"{each['id']}: {[node['html'] for node in each['nodes']][:3]}" for each in found["violations"]]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_has_no_violation_to_report(browser, served, axe, dark):
    running, _ = served
    browser.look(dark=dark)
    unlock(browser, running)
    browser.until("document.querySelector('td button')")
    browser.evaluate("document.querySelector('td button').click()")
    browser.until("document.querySelector('tr.detail')")
    assert violations(browser, axe) == []


def test_axe_would_report_one(browser, served, axe):
    running, _ = served
    unlock(browser, running)
    browser.evaluate(
        "(() => { const i = document.createElement('input'); document.querySelector('main').append(i); })()"
    )
    assert any(each.startswith("label:") for each in violations(browser, axe))


def test_it_fits_a_narrow_screen_without_sideways_scrolling(browser, served):
    running, _ = served
    unlock(browser, running)
    browser.look(dark=False, width=380, height=800)
    browser.until("document.querySelector('td button')")
    assert browser.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_a_corrupt_router_is_told_with_its_code_and_remedy(browser, served, request):
    running, here = served
    good = here.artifact()
    unlock(browser, running)
    files = sorted(path for path in here.router_directory.iterdir() if path.name != "router.yaml")
    files[0].write_bytes(b"broken")
    browser.until("document.getElementById('state').textContent === 'serving, degraded'")
    browser.until("document.getElementById('notes').textContent.includes('serves nothing')")
    for prompt in prompts(3):
        assert running.chat(prompt).status_code == 200
    browser.until("document.getElementById('decisions').textContent.includes('by weight')")
    browser.until("document.getElementById('routers').textContent.includes('Its signer')")
    assert "Last known good\ndefault 1.0.0" in browser.text(), "not served, as configured, and not lost"
    keep(browser, request)
    from tests.support.routing import place

    place(good, here.router_directory)
    browser.until("document.getElementById('state').textContent === 'all is well'")


def keep(browser, request):
    """Screenshots beside the test's temporary files, for eyes."""
    folder = Path(request.getfixturevalue("tmp_path")).parent / "screenshots"
    folder.mkdir(exist_ok=True)
    for dark in (False, True):
        browser.look(dark=dark, height=900)
        browser.screenshot(folder / f"{request.node.name}-{'dark' if dark else 'light'}.png")
        assert (folder / f"{request.node.name}-{'dark' if dark else 'light'}.png").stat().st_size > 10_000


GONE = {
    "model_name": "spare",
    "litellm_params": {"model": "openai/gone", "api_base": "http://127.0.0.1:9/v1", "api_key": "none"},
    "model_info": {"id": "gone"},
}
CONTRAST = r"""(() => {
  const linear = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const parse = (c) => c.match(/[\d.]+/g).map(Number);
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0.9) return c;
    }
    return [255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const poor = [];
  for (let node; (node = walker.nextNode());) {
    const e = node.parentElement;
    if (!node.textContent.trim() || !e.checkVisibility() || e.closest('.unseen,.skip,noscript')) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) poor.push(`${node.textContent.trim().slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return poor;
})()"""


def registry_in(folder: Path, here, authority) -> Path:
    """A registry with one router in it."""
    folder.mkdir()
    home = Registry(DirectoryStore(folder), material=lambda: authority.material, clock=lambda: datetime.now(UTC))
    home.publish(here.artifact(), name="default", version="1.0.0")
    home.promote("default", "1.0.0", authority.signer("import-officer"))
    return folder


def following(here, folder: Path) -> dict:
    """The zone's sections, with the router from a channel."""
    sections = here.sections()
    followed = {"registry": {"home": "directory", "path": str(folder)}, "channel": "default", "poll_interval_s": 0.2}
    sections["routing"]["routers"]["default"] = followed
    return sections


@contextlib.contextmanager
def syncing(registry: Path, here, home: Path):
    """`appliance sync`, between a registry and the volume beside a gateway's state."""
    command = [sys.executable, "-m", "appliance.cli.main", "sync", "--registry", registry, "--interval", "0.2"]
    command += ["--trust", here.directory / "trust", "--to", home / "volume", "--cache", home / "sync"]
    with open(home / "sync.log", "wb") as log:
        process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log, start_new_session=True)
    try:
        yield process
    finally:
        stop(process)


def test_a_gateway_behind_a_sidecar_tells_of_the_registry_and_not_of_its_copy(
    browser, tmp_path_factory, authority, request
):
    home = tmp_path_factory.mktemp("behind")
    (home / "volume").mkdir()
    here = zone(home / "zone", authority, labels={"small": "small", "large": "large"})
    registry = registry_in(home / "registry", here, authority)
    note = home / "volume" / sidecar.KEY
    with (
        upstream("small") as small,
        upstream("large") as large,
        syncing(registry, here, home) as process,
        gateway(
            home, [deployment("chat", small), deployment("chat", large)], tls=False, **following(here, home / "volume")
        ) as running,
    ):

        def tile(text: str) -> None:
            browser.until(f"document.getElementById('numbers').textContent.includes({json.dumps(text)})")

        def channel() -> dict:
            assert running.chat("hard prove the theorem").headers["x-appliance-deployment"] == "large"
            return running.status()["routers"]["default"]["channel"]

        running.wait_until(lambda: channel().get("heard_by") == "sidecar", what="the sidecar's word")
        unlock(browser, running)
        tile("answers" + "channel default: answered the sidecar")
        browser.until("document.getElementById('state').textContent === 'all is well'")

        registry.rename(home / "gone")
        browser.until("document.getElementById('notes').textContent.includes('does not answer soundly')")
        tile("no answer")
        assert channel()["problem"] == "REGISTRY_NOT_FOUND"
        keep(browser, request)
        (home / "gone").rename(registry)
        browser.until("document.getElementById('state').textContent === 'all is well'")

        stop(process)
        told = json.loads(note.read_text())
        long_ago = datetime.now(UTC) - timedelta(hours=3)
        told["channels"]["default"] = sidecar.heard(long_ago, None).model_dump()
        DirectoryStore(home / "volume").put(sidecar.KEY, json.dumps(told).encode())
        browser.until("document.getElementById('notes').textContent.includes('Nothing is heard of the registry')")
        tile("silent" + "channel default: answered the sidecar 3 hours ago")
        assert 3 * 3600 <= channel()["contact_age_s"] < 4 * 3600
        metrics = running.client.get("/appliance/metrics").text
        (age,) = [line for line in metrics.splitlines() if line.startswith("appliance_registry_contact_age_seconds{")]
        assert float(age.split()[-1]) >= 3 * 3600, "what the alert rule looks at"
        said = running.command("status", "--config", str(running.config)).stdout
        assert "channel default: epoch 1; the registry answered the sidecar 3 hours ago" in said

        note.write_bytes(b'{"channels": "' + b"<script>window.broken = 1</script>" * 1000)
        tile("not known")
        assert channel()["problem"] == "REGISTRY_SIDECAR"
        assert running.status()["routers"]["default"]["mode"] == "ml"
        assert browser.evaluate("window.broken") is None


def test_a_sidecar_whose_channels_no_router_follows_is_told_as_that(browser, served):
    running, _ = served
    unlock(browser, running)
    browser.until("document.getElementById('numbers').textContent.includes('no sidecar runs here')")
    volume = running.directory / "volume"
    volume.mkdir()
    sidecar.leave(DirectoryStore(volume), {"default": sidecar.heard(datetime.now(UTC), None)})
    browser.until("document.getElementById('numbers').textContent.includes('no router follows it')")
    assert "answers" in browser.text()
    said = running.command("status", "--config", str(running.config)).stdout
    assert "comes from a folder, not from the sidecar's channel default; the registry answered" in said
    sidecar.leave(DirectoryStore(volume), {"default": sidecar.heard(datetime.now(UTC), "REGISTRY_UNREACHABLE")})
    browser.until("document.getElementById('numbers').textContent.includes('no answer')")
    shutil.rmtree(volume)


def test_a_dead_registry_is_told_and_costs_no_request(browser, tmp_path_factory, authority, request):
    home = tmp_path_factory.mktemp("dead")
    here = zone(home / "zone", authority, labels={"small": "small", "large": "large"})
    folder = registry_in(home / "registry", here, authority)
    with (
        upstream("small") as small,
        upstream("large") as large,
        gateway(
            home / "gateway",
            [deployment("chat", small), deployment("chat", large), deployment("spare", small, id_="there"), GONE],
            tls=False,
            **following(here, folder),
        ) as running,
    ):
        assert running.chat("hard prove the theorem").headers["x-appliance-deployment"] == "large"
        unlock(browser, running)
        browser.until("document.getElementById('state').textContent === 'all is well'")
        while not running.status()["groups"]["spare"]["deployments"][1]["out_on"]:
            assert running.chat("easy the", model="spare").status_code == 200
        browser.until("document.getElementById('notes').textContent.includes('1 of 2 model servers of group spare')")
        assert "3 of 4" in browser.text()
        assert "left out: unreachable" in browser.text()
        folder.rename(home / "gone")
        browser.until("document.getElementById('notes').textContent.includes('does not answer')")
        for prompt in prompts(3):
            assert running.chat(prompt).headers["x-appliance-deployment"] == "small"
        assert "serving, degraded" in browser.text()
        keep(browser, request)
        running.process.kill()
        browser.until("document.getElementById('state').textContent === 'no answer'")
        assert "This is how it was at" in browser.text()
