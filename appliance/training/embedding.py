"""Embeddings for training, by the very encoder that serves: found or exported, cached, computed on every core."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from appliance import artifact
from appliance.artifact import ArtifactFiles
from appliance.errors import ApplianceError, FileError, TrainingError
from appliance.files import locked
from appliance.routers.encoder import Encoder, load_encoder
from appliance.routers.strategies import Floats, Prompts
from appliance.training.encoder_export import export_encoder, write_encoder
from appliance.training.progress import Progress, silent

PROJECT_ENCODER = Path("vendor/models/encoder")
NOWHERE = Path(os.devnull) / "cache"  # can be made by nobody: nothing is found there, and nothing remembered
CHUNK = 256  # texts embedded between two reports


def cache_directory(environment: Mapping[str, str]) -> Path:
    """The user's cache of encoders and embeddings (XDG Base Directory Specification); NOWHERE for who has no home."""
    base = environment.get("XDG_CACHE_HOME")
    if not base:
        try:
            base = str(Path(environment.get("HOME") or "~").expanduser() / ".cache")
        except RuntimeError:  # an account that the host does not know, as containers have
            return NOWHERE
    return Path(base) / "llm-routing-appliance"


def find_encoder(
    *, directory: Path | None, cache: Path, digest: str | None = None, progress: Progress = silent
) -> ArtifactFiles:
    """The encoder to fit or evaluate with.

    Looks at the folder given, then at the project's exported encoder and the user's cache; exports one into the cache
    where there is none.

    Args:
        directory: where the user says it is; nothing else is tried then.
        cache: the user's cache.
        digest: the encoder that a router names; None takes any.
        progress: told of an export.

    Raises:
        TrainingError: TRAINING_ENCODER where no encoder of that digest is found, TRAINING_PACKAGE.
        ArtifactError, FileError: where the folder given holds no artifact.
    """
    if directory is not None:
        return _require(artifact.read(directory), digest)
    places = [PROJECT_ENCODER]
    with contextlib.suppress(OSError):
        places += sorted((cache / "encoders").iterdir())
    for place in places:
        with contextlib.suppress(ApplianceError):
            found = artifact.read(place)
            if found.kind == "encoder" and digest in (None, found.digest):
                return found
    try:
        (cache / "encoders").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(
            "TRAINING_ENCODER", f"there is no encoder here, and {cache} cannot keep one: {error.strerror}"
        ) from None
    with locked(cache / "export.lock"):
        exported = export_encoder(progress=progress)
        with contextlib.suppress(FileError):  # another process was first
            write_encoder(exported, cache / "encoders" / exported.digest)
    return _require(exported, digest)


def _require(found: ArtifactFiles, digest: str | None) -> ArtifactFiles:
    if found.kind != "encoder":
        raise TrainingError("TRAINING_ENCODER", "the folder holds a router, not an encoder", digest=found.digest)
    if digest is not None and found.digest != digest:
        raise TrainingError("TRAINING_ENCODER", "this is another encoder", needed=digest, found=found.digest)
    return found


def embed(encoder: Encoder, texts: Sequence[str], *, cache: Path | None = None, progress: Progress = silent) -> Prompts:
    """Embed texts, each only once ever.

    Args:
        encoder: the encoder that serves.
        texts: cleaned prompts, any number.
        cache: folder of remembered embeddings, or None to remember nothing.
        progress: told of the share done.
    """
    keys = [hashlib.sha256(text.encode("utf-8")).digest() for text in texts]
    known: dict[bytes, Floats] = {}
    with _store(cache, encoder) as store:
        known.update(_recall(store, keys))
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        done = 0
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            for start in range(0, len(missing), CHUNK):
                chunk = list(missing.items())[start : start + CHUNK]
                vectors = pool.map(lambda item: encoder.encode([item[1]])[0], chunk)
                fresh = {key: vector for (key, _), vector in zip(chunk, vectors, strict=True)}
                known.update(fresh)
                _remember(store, fresh)
                done += len(chunk)
                progress("embedding prompts", done, len(missing))
    rows = np.array([known[key] for key in keys], np.float32).reshape(len(texts), encoder.dimensions)
    return Prompts(tuple(texts), rows)


def open_encoder(found: ArtifactFiles) -> Encoder:
    """Build the encoder of the training zone; what it made or was given is not signed yet."""
    return load_encoder(found)


@contextlib.contextmanager
def _store(cache: Path | None, encoder: Encoder) -> Iterator[sqlite3.Connection | None]:
    """The remembered embeddings of one encoder; a damaged or unwritable file is done without."""
    if cache is None:
        yield None
        return
    connection: sqlite3.Connection | None = None
    try:
        cache.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(cache / f"embeddings-{encoder.digest[:32]}.sqlite", timeout=30)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE IF NOT EXISTS vectors (text BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID")
    except (OSError, sqlite3.Error):
        connection = None
    try:
        yield connection
    finally:
        if connection is not None:
            connection.close()


def _recall(store: sqlite3.Connection | None, keys: Sequence[bytes]) -> dict[bytes, Floats]:
    if store is None:
        return {}
    found: dict[bytes, Floats] = {}
    try:
        for start in range(0, len(keys), 500):
            part = keys[start : start + 500]
            marks = ",".join("?" * len(part))
            rows = store.execute(f"SELECT text, vector FROM vectors WHERE text IN ({marks})", part)  # noqa: S608
            found.update((bytes(text), np.frombuffer(vector, np.float32)) for text, vector in rows)
    except sqlite3.Error:
        return {}
    return found


def _remember(store: sqlite3.Connection | None, fresh: Mapping[bytes, Floats]) -> None:
    if store is None:
        return
    with contextlib.suppress(sqlite3.Error), store:
        store.executemany(
            "INSERT OR IGNORE INTO vectors VALUES (?, ?)", [(key, vector.tobytes()) for key, vector in fresh.items()]
        )
