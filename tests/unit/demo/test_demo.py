"""The demo's own parts: what it needs, what it reuses, and the bridges that do not open the room."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from scripts.demo import __main__ as demo
from scripts.demo.bridges import bridged_upstreams, inner_half

ROOT = Path(__file__).parents[3]
NEEDS = ROOT / "scripts" / "demo" / "needs.py"


def test_this_machine_has_what_the_demo_needs():
    run = subprocess.run([sys.executable, NEEDS], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout
    assert "MISSING" not in run.stdout


def test_what_is_missing_is_named_with_the_command_that_gets_it(tmp_path):
    run = subprocess.run(
        [sys.executable, NEEDS], capture_output=True, text=True, check=False, env={"PATH": str(tmp_path)}
    )
    assert run.returncode == 1
    assert "MISSING openssl" in run.stdout
    assert "sudo apt-get install openssl" in run.stdout


def test_a_folder_is_made_again_only_when_its_inputs_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    made = []

    def make():
        made.append(1)
        (tmp_path / "router").mkdir()

    for key in ("first", "first", "second"):
        demo.made_once(tmp_path / "router", key, make)
    assert len(made) == 2


def test_a_make_that_failed_is_done_again(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "ROOT", tmp_path)

    def fail():
        (tmp_path / "router").mkdir()
        raise SystemExit("failed")

    with pytest.raises(SystemExit):
        demo.made_once(tmp_path / "router", "key", fail)
    demo.made_once(tmp_path / "router", "key", lambda: (tmp_path / "router" / "whole").mkdir(parents=True))
    assert (tmp_path / "router" / "whole").exists()


class Echo(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def model_server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def test_a_real_server_is_reached_through_both_halves_of_its_bridge(tmp_path, model_server):
    body = os.urandom(300_000)
    with (
        bridged_upstreams(tmp_path, {"DEMO_SMALL_URL": f"http://127.0.0.1:{model_server}/v1/"}) as bridges,
        inner_half(bridges["small"]["socket"]) as port,
    ):
        assert list(bridges) == ["small"]
        assert bridges["small"]["path"] == "/v1"
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=200)
        connection.request("POST", "/v1/chat", body)
        assert connection.getresponse().read() == body
        connection.close()
    assert not (tmp_path / "small.sock").exists()


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host/v1", "http://"])
def test_a_url_that_is_none_stops_the_demo_with_an_example(tmp_path, url):
    with (
        pytest.raises(SystemExit, match="DEMO_LARGE_URL must be"),
        bridged_upstreams(tmp_path, {"DEMO_LARGE_URL": url}),
    ):
        pass
