"""What an artifact is: a few files, a metadata document, and a signature over them all.

Two kinds travel: a `router` (metadata in `router.yaml`) and an `encoder` (metadata in `encoder.yaml`). An artifact is
read once into memory (`read`), its signature is checked over those bytes (`trust.verification.verify_artifact`), and
only then are metadata parsed (`router_metadata`, `encoder_metadata`) and files loaded, from the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from appliance import documents
from appliance.errors import ArtifactError, DocumentError
from appliance.files import read_tree, sha256_hex

SIGNATURE_NAME = "artifact.sigstore.json"
METADATA_NAMES: Mapping[str, str] = {"router": "router.yaml", "encoder": "encoder.yaml"}
MAX_FILES = 64
MAX_BYTES = 2 * 1024**3  # bytes, all files together


def _shown(label: str) -> str:
    """A name is what a person sees: no control characters, no marks that hide or turn text."""
    if not label.isprintable():
        raise ValueError(f"{label!a:.80} holds characters that are not shown")
    return label


Kind = Literal["router", "encoder"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Label = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_shown)]


@dataclass(frozen=True)
class ArtifactFiles:
    """The bytes of an artifact, read once.

    Attributes:
        files: relative name -> bytes, without the signature.
        signature: the Sigstore bundle's bytes, or None where the artifact is unsigned.
    """

    files: Mapping[str, bytes]
    signature: bytes | None

    def __post_init__(self) -> None:
        # a copy that nobody can change: the digests below are computed once and stay true
        object.__setattr__(self, "files", MappingProxyType(dict(self.files)))

    @cached_property
    def digests(self) -> Mapping[str, str]:
        """Name -> SHA-256 (hex) of every file."""
        return MappingProxyType({name: sha256_hex(data) for name, data in self.files.items()})

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the canonical listing `{name: sha256}`: names the content wherever it lies."""
        return sha256_hex(documents.write_json(dict(self.digests)))

    @property
    def kind(self) -> Kind:
        """`router` or `encoder`, told by the one metadata file.

        Raises:
            ArtifactError: ARTIFACT_MISSING where there is none, ARTIFACT_METADATA where there are two.
        """
        kinds = [kind for kind, name in METADATA_NAMES.items() if name in self.files]
        if not kinds:
            raise ArtifactError("ARTIFACT_MISSING", "no router.yaml or encoder.yaml", files=sorted(self.files)[:20])
        if len(kinds) > 1:
            raise ArtifactError("ARTIFACT_METADATA", "both router.yaml and encoder.yaml are there")
        return "router" if kinds[0] == "router" else "encoder"

    def require_signature(self) -> bytes:
        """The signature's bytes.

        Raises:
            ArtifactError: ARTIFACT_UNSIGNED.
        """
        if self.signature is None:
            raise ArtifactError("ARTIFACT_UNSIGNED", f"no {SIGNATURE_NAME} in the artifact", digest=self.digest)
        return self.signature


def from_files(files: Mapping[str, bytes]) -> ArtifactFiles:
    """Split a mapping of files (as a registry or a folder gives it) into content and signature."""
    content = {name: data for name, data in files.items() if name != SIGNATURE_NAME}
    return ArtifactFiles(content, files.get(SIGNATURE_NAME))


def read(directory: Path) -> ArtifactFiles:
    """Read an artifact's folder once, without following links.

    Raises:
        FileError: FILE_MISSING, FILE_NOT_REGULAR, FILE_TOO_LARGE, FILE_UNSAFE_NAME, FILE_PERMISSION.
        ArtifactError: ARTIFACT_MISSING for an empty folder.
    """
    files = read_tree(directory, max_files=MAX_FILES, max_bytes=MAX_BYTES)
    if not files:
        raise ArtifactError("ARTIFACT_MISSING", f"{directory} is empty", path=str(directory))
    return from_files(files)


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EncoderMetadata(_Document):
    """`encoder.yaml`: what turns a prompt into a vector.

    Attributes:
        name: e.g. `all-MiniLM-L6-v2-int8`.
        format: `onnx`, or `torch`: the original weights as safetensors, with their `config.json` beside them.
        network, tokenizer: file names within the artifact.
        dimensions: length of the embedding.
        max_tokens: longest input, special tokens included.
        pooling: how token vectors become one.
        normalize: whether embeddings have unit length.
        source: where the weights come from (package, version, digests, licence).
        fidelity: the recorded comparison with the original network (count, cosine mean and minimum, threshold).
    """

    schema_version: Literal[1]
    name: Label
    format: Literal["onnx", "torch"]
    network: Label
    tokenizer: Label
    dimensions: Annotated[int, Field(gt=0, le=65536)]
    max_tokens: Annotated[int, Field(gt=0, le=131072)]
    pooling: Literal["mean", "cls"]
    normalize: bool
    source: dict[str, Any]
    fidelity: dict[str, Any]


class RouterMetadata(_Document):
    """`router.yaml`: what a router is and where it comes from.

    Attributes:
        name, version: identity in the registry; a version is immutable.
        strategy: name in `routers.strategies`.
        hyperparameters: what it was fitted with.
        labels: model label (as in the training data) -> model name in the gateway's configuration (the deployment's
            `litellm_params.model` or `model_info.id`); order is the order of scores.
        files: name -> SHA-256 of every other file of the artifact.
        encoder_digest: digest (`ArtifactFiles.digest`) of the encoder it was fitted with.
        training_data_digest: SHA-256 of the training data.
        evaluation: the measured figures, with intervals.
        created: RFC 3339, UTC.
        minimum_appliance_version: oldest appliance that can run it.
    """

    schema_version: Literal[1]
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    version: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._+-]{0,63}$")]
    strategy: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
    hyperparameters: dict[str, Any]
    labels: Annotated[dict[Label, Label], Field(min_length=1, max_length=1024)]
    files: dict[str, Sha256]
    encoder_digest: Sha256
    training_data_digest: Sha256
    evaluation: dict[str, Any]
    created: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
    minimum_appliance_version: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]


def router_metadata(artifact: ArtifactFiles) -> RouterMetadata:
    """Parse `router.yaml` of a *verified* artifact and check that it names exactly the files beside it.

    Raises:
        ArtifactError: ARTIFACT_MISSING, ARTIFACT_METADATA, ARTIFACT_VERSION.
    """
    metadata = _metadata(RouterMetadata, artifact, "router")
    actual = {name: digest for name, digest in artifact.digests.items() if name != METADATA_NAMES["router"]}
    if metadata.files != actual:
        differing = sorted(set(metadata.files.items()) ^ set(actual.items()))
        raise ArtifactError(
            "ARTIFACT_METADATA",
            "router.yaml does not describe the files beside it",
            files=[n for n, _ in differing][:10],
        )
    from appliance import __version__

    if _number(metadata.minimum_appliance_version) > _number(__version__):
        raise ArtifactError(
            "ARTIFACT_VERSION",
            f"the router needs appliance {metadata.minimum_appliance_version}, this is {__version__}",
            required=metadata.minimum_appliance_version,
            running=__version__,
        )
    return metadata


def encoder_metadata(artifact: ArtifactFiles) -> EncoderMetadata:
    """Parse `encoder.yaml` of a *verified* artifact.

    Raises:
        ArtifactError: ARTIFACT_MISSING, ARTIFACT_METADATA.
    """
    metadata = _metadata(EncoderMetadata, artifact, "encoder")
    for name in (metadata.network, metadata.tokenizer):
        if name not in artifact.files:
            raise ArtifactError("ARTIFACT_MISSING", f"encoder.yaml names {name}, which is not there", file=name)
    return metadata


def _metadata(model: type[documents.Model], artifact: ArtifactFiles, kind: Kind) -> documents.Model:
    name = METADATA_NAMES[kind]
    if name not in artifact.files:
        raise ArtifactError("ARTIFACT_MISSING", f"the artifact has no {name}", files=sorted(artifact.files)[:20])
    try:
        value = documents.read_yaml(artifact.files[name], what=name)
        return documents.validate(model, value, what=name)
    except DocumentError as error:
        raise ArtifactError("ARTIFACT_METADATA", error.cause, **error.evidence) from None


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
