"""The live receiver, driven by the OpenTelemetry SDK's own exporters over mutual TLS."""

import json
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from datetime import timedelta
from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult

from appliance.errors import FileError, TrainingError
from appliance.training.extract.receiver import SpanLog, Tls, receiving
from appliance.training.extract.redaction import load_redactor
from appliance.training.extract.run import Sources, extract
from appliance.training.extract.traces import read_spans, spans_of
from appliance.training.outcomes import read_outcomes
from tests.support.small_authority import SmallAuthority
from tests.unit.training.test_extract import call, otlp

LOOPBACK = ("127.0.0.1", 0)
MESSAGES = json.dumps([{"role": "user", "parts": [{"type": "text", "content": "Mail jane@example.org: why?"}]}])


class Remembering:
    """An exporter that remembers whether the receiver took the spans."""

    def __init__(self, exporter):
        self.exporter, self.results = exporter, []

    def export(self, spans):
        self.results.append(self.exporter.export(spans))
        return self.results[-1]

    def shutdown(self):
        self.exporter.shutdown()


def emit(exporter, call_id):
    remembering = Remembering(exporter)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(remembering))
    with provider.get_tracer("t").start_as_current_span("chat m1") as span:
        span.set_attributes({"gen_ai.request.model": "m1", "litellm.call_id": call_id, "judge.score": 0.5})
        span.set_attributes({"gen_ai.input.messages": MESSAGES, "gen_ai.output.messages": "[secret answer]"})
    provider.shutdown()
    return remembering.results


@pytest.fixture
def tls(authority, tmp_path):
    server = authority.issue("127.0.0.1", "localhost").write(tmp_path, "server")
    client = authority.issue("collector", client=True).write(tmp_path, "client")
    return Tls(*server), client


def test_spans_of_the_sdks_exporters_become_outcomes_redacted(tls, tmp_path, monkeypatch):
    import grpc

    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):  # requests prefers these to the exporter's own argument
        monkeypatch.delenv(name, raising=False)
    server, (certificate, key, ca) = tls
    log = SpanLog(tmp_path / "live.jsonl", load_redactor(None))
    with receiving(log, tls=server, http_address=LOOPBACK, grpc_address=LOOPBACK) as (http, grpc_port):
        over_http = HttpExporter(
            endpoint=f"https://127.0.0.1:{http}/v1/traces", certificate_file=str(ca),
            client_certificate_file=str(certificate), client_key_file=str(key), timeout=2000,
        )  # fmt: skip
        credentials = grpc.ssl_channel_credentials(ca.read_bytes(), key.read_bytes(), certificate.read_bytes())
        over_grpc = GrpcExporter(endpoint=f"https://127.0.0.1:{grpc_port}", credentials=credentials, timeout=2000)
        assert emit(over_http, "http-1") == [SpanExportResult.SUCCESS]
        assert emit(over_grpc, "grpc-1") == [SpanExportResult.SUCCESS]
    log.close()
    written = (tmp_path / "live.jsonl").read_text()
    assert "jane@example.org" not in written
    assert "secret answer" not in written
    out = tmp_path / "outcomes.jsonl"
    card = extract(Sources(traces=[tmp_path / "live.jsonl"]), out, redact=load_redactor(None))
    made = {outcome.query_id: outcome for outcome, _ in read_outcomes(out)}
    assert card["written"] == 2
    assert made["http-1"].query == made["grpc-1"].query == "Mail [e-mail]: why?"
    assert made["http-1"].latencies_ms["m1"] > 0


def heard(port, alpn, greeting, ca, identity) -> bytes:
    """What a server answers to the first bytes of a client with this certificate; nothing where it hangs up."""
    context = ssl.create_default_context(cafile=str(ca))
    context.set_alpn_protocols([alpn])
    if identity is not None:
        context.load_cert_chain(*identity[:2])
    try:
        with socket.create_connection(("127.0.0.1", port)) as plain:
            plain.settimeout(200)
            with context.wrap_socket(plain, server_hostname="127.0.0.1") as secure:
                secure.sendall(greeting)
                return secure.recv(100)
    except (ssl.SSLError, ConnectionError):
        return b""


def test_who_has_no_certificate_of_ours_may_not_send(tls, authority, tmp_path):
    server, (*client, ca) = tls
    day = timedelta(days=1)
    strangers = {
        "of nobody": None,
        "of another authority": SmallAuthority().issue("collector", client=True).write(tmp_path, "foreign"),
        "expired": authority.issue("collector", client=True, starts=-2 * day, ends=-day).write(tmp_path, "expired"),
        "of a server": authority.issue("127.0.0.1").write(tmp_path, "server-only"),
    }
    log = SpanLog(tmp_path / "live.jsonl", load_redactor(None))
    with receiving(log, tls=server, http_address=LOOPBACK, grpc_address=LOOPBACK) as (http, grpc_port):
        post = b"POST /v1/traces HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)  # and empty settings
        for port, alpn, greeting in ((http, "http/1.1", post), (grpc_port, "h2", preface)):
            assert heard(port, alpn, greeting, ca, client)
            for name, identity in strangers.items():
                assert not heard(port, alpn, greeting, ca, identity), (alpn, name)
    log.close()


@pytest.mark.parametrize(
    ("path", "kind", "data", "status"),
    [
        ("/v1/traces", "application/json", b"{}", 200),
        ("/v1/traces", "application/json", b"{", 400),
        ("/v1/traces", "application/x-protobuf", b"\xff\xff", 400),
        ("/v1/traces", "text/plain", b"x", 415),
        ("/v1/metrics", "application/json", b"{}", 404),
        ("/v1/traces", "application/json", b"[" * 100_000, 400),
    ],
)
def test_what_is_no_trace_is_answered_as_the_protocol_says(tmp_path, path, kind, data, status):
    log = SpanLog(tmp_path / "live.jsonl", load_redactor(None))
    with receiving(log, tls=None, http_address=LOOPBACK, grpc_address=None) as (http, _):
        request = urllib.request.Request(f"http://127.0.0.1:{http}{path}", data=data, headers={"Content-Type": kind})
        try:
            answered = urllib.request.urlopen(request, timeout=2000).status
        except urllib.error.HTTPError as error:
            answered = error.code
    log.close()
    assert answered == status


def test_a_bomb_is_not_inflated(tmp_path):
    import gzip

    log = SpanLog(tmp_path / "live.jsonl", load_redactor(None))
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    with receiving(log, tls=None, http_address=LOOPBACK, grpc_address=None) as (http, _):
        bomb = gzip.compress(b" " * (64 * 1024 * 1024))
        request = urllib.request.Request(f"http://127.0.0.1:{http}/v1/traces", data=bomb, headers=headers)
        with pytest.raises(urllib.error.HTTPError) as answered:
            urllib.request.urlopen(request, timeout=200)
    log.close()
    assert answered.value.code == 400


def posted(port, data, kind="application/json"):
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/traces", data=data, headers={"Content-Type": kind})
    try:
        return urllib.request.urlopen(request, timeout=2000).status
    except urllib.error.HTTPError as error:
        return error.code


def test_only_what_the_extraction_reads_reaches_the_disk(tmp_path):
    """OpenInference, OpenLLMetry and whoever comes next put prompts and answers under names of their own."""
    hidden = [
        "llm.prompts.0.content", "llm.input_messages.0.message.content", "gen_ai.user.message", "gen_ai.response.text",
        "llm.invocation_parameters", "gen_ai.tool.definitions", "litellm.request.body", "gen_ai.content.completion",
        "task", "error.type", "router.note", "gen_ai.prompt.0.content",
    ]  # fmt: skip
    log = SpanLog(tmp_path / "live.jsonl", load_redactor(None))
    with receiving(log, tls=None, http_address=LOOPBACK, grpc_address=None) as (port, _):
        for number, name in enumerate(hidden):
            text = {
                name: "jane@example.org",
                "llm.input_messages.0.message.role": "user",
                "gen_ai.prompt.0.role": "user",
            }
            assert posted(port, json.dumps(otlp(number, litellm__call_id=f"c{number}", **text)).encode()) == 200
    log.close()
    written = (tmp_path / "live.jsonl").read_text()
    assert log.received == len(hidden)
    assert "jane" not in written
    assert written.count("[e-mail]") == 5  # two prompts, and what is kept redacted


def test_a_second_receiver_is_refused_and_half_a_line_swallows_no_other(tmp_path):
    path = tmp_path / "live.jsonl"
    path.write_text('{"resourceSpans": [{"sc')
    log = SpanLog(path, load_redactor(None))
    with pytest.raises(FileError) as refused:
        SpanLog(path, load_redactor(None))
    assert refused.value.code == "FILE_LOCKED"
    log.append(list(spans_of(call(1))))
    log.close()
    assert [span is None for _, _, span in read_spans(path)] == [True, False]


ON_A_FULL_DISK = """
import sys, subprocess
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from tests.integration.training.test_receiver import LOOPBACK, SpanLog, call, json, load_redactor, posted, receiving
root = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", root], check=True)
log = SpanLog(root / "live.jsonl", load_redactor(None))
with receiving(log, tls=None, http_address=LOOPBACK, grpc_address=None) as (port, _):
    answers = [posted(port, json.dumps(call(n)).encode()) for n in range(60)]
    subprocess.run(["mount", "-o", "remount,size=1m", root], check=True)
    answers.append(posted(port, json.dumps(call(60)).encode()))
lines = [json.loads(line) for line in (root / "live.jsonl").read_text().splitlines()]
print(sorted(set(answers)), answers[-1], len(lines) == log.received == answers.count(200))
"""


def test_on_a_full_disk_the_exporter_is_told_to_keep_its_spans_and_no_half_line_stays(tmp_path):
    root = Path(__file__).parents[3]
    command = ["unshare", "-rm", sys.executable, "-c", ON_A_FULL_DISK, tmp_path, root]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.stdout, run.stderr) == ("[200, 503] 200 True\n", "")


def test_beyond_loopback_it_listens_only_with_tls(tmp_path):
    log = SpanLog(tmp_path / "live.jsonl", load_redactor(None))
    with (
        pytest.raises(TrainingError) as refused,
        receiving(log, tls=None, http_address=("0.0.0.0", 0), grpc_address=None),
    ):
        pass
    log.close()
    assert refused.value.code == "TRAINING_ARGUMENT"


def test_a_taken_port_is_named(tmp_path):
    log = SpanLog(tmp_path / "live.jsonl", load_redactor(None))
    with receiving(log, tls=None, http_address=LOOPBACK, grpc_address=LOOPBACK) as (http, grpc_port):
        for addresses in ((("127.0.0.1", http), None), (None, ("127.0.0.1", grpc_port))):
            with (
                pytest.raises(TrainingError) as refused,
                receiving(log, tls=None, http_address=addresses[0], grpc_address=addresses[1]),
            ):
                pass
            assert refused.value.code == "TRAINING_SOURCE"
    log.close()
