"""`policy.yaml`: what the appliance's owners refuse to carry, with the reason beside each rule."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from appliance import documents
from appliance.artifact import Sha256
from appliance.files import read_regular


def _specifier(text: str) -> str:
    try:
        SpecifierSet(text)
    except InvalidSpecifier as error:
        raise ValueError(f"{text!r} is not a version specifier") from error
    return text


Name = Annotated[str, AfterValidator(lambda text: str(canonicalize_name(text)))]
Specifier = Annotated[str, AfterValidator(_specifier)]
Reason = Annotated[str, Field(min_length=8)]


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RefusedVersions(_Document):
    """Versions that must not enter, e.g. everything below a fix.

    Attributes:
        package: normalised name.
        versions: PEP 440 specifier of what is refused.
        advisories: identifiers (CVE, GHSA), for the reader.
        reason: what is wrong with them.
        source: where identifier, range and fix can be read, for the reader.
    """

    package: Name
    versions: Specifier
    advisories: tuple[str, ...] = ()
    reason: Reason
    source: str = ""

    def covers(self, package: str, version: str) -> bool:
        """Whether the rule refuses a version.

        A pre-release of the fixed version counts as below it, although PEP 440 leaves it out of `<`.
        """
        return package == self.package and all(
            Version(version) < Version(part.version)
            if part.operator == "<"
            else part.contains(version, prereleases=True)
            for part in SpecifierSet(self.versions)
        )


class AllowedStartup(_Document):
    """A start-up file that was read by a person and may stay, to the byte."""

    package: Name
    path: str
    sha256: Sha256
    reason: Reason


class AllowedOutside(_Document):
    """A place outside its own folder where a package may install files.

    Attributes:
        prefix: start of the installed path, e.g. `[data]/share/man/`; it must end in `/`.
    """

    package: Name
    prefix: Annotated[str, Field(pattern=r"^\[(data|headers)\]/.+/$")]
    reason: Reason


class KnownEndpoint(_Document):
    """A telemetry host that stands in a native library, and what keeps it from being called."""

    package: Name
    host: Annotated[str, Field(pattern=r"^[a-z0-9-]+(\.[a-z0-9-]+)+$")]
    reason: Reason


class Ripening(_Document):
    """How long a release must have been public before it may enter.

    Attributes:
        minimum_days: age at admission.
        unknown: what to do where no index tells the upload time.
        exempt: `package==version` -> reason, for what cannot wait; the next version ripens again.
    """

    minimum_days: Annotated[int, Field(ge=0, le=365)]
    unknown: Literal["report", "refuse"] = "report"
    exempt: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*==[0-9][^\s=]*$")], Reason] = {}

    def reason_for(self, package: str, version: str | Version) -> str | None:
        """Why this very release may enter before its time; None where nobody has said."""
        return self.exempt.get(f"{package}=={Version(str(version))}")


class Policy(_Document):
    """The admission policy.

    Attributes:
        refused_versions: known-vulnerable and malicious releases.
        refused_packages: name -> reason, for whole packages.
        refused_licences: SPDX identifiers or words; a licence naming one is refused unless `licence_exceptions` has
            the package.
        licence_exceptions: package -> reason.
        reported_licences: words that the approver should see each time.
        startup: files that may run or be read at interpreter start.
        outside: places outside its own folder that a package may install to.
        telemetry_words: a host of a native library that has one of them as a label (`events`, `telemetry`) is taken
            for a place where it phones home, and refused unless `endpoints` has it.
        endpoints: such hosts, each with what silences it.
        bytecode: package -> reason; packages that may carry compiled Python.
        yanked: package -> reason; withdrawn releases that may enter all the same.
        ripening: see `Ripening`.
    """

    schema_version: Literal[1]
    refused_versions: tuple[RefusedVersions, ...] = ()
    refused_packages: dict[Name, Reason] = {}
    refused_licences: tuple[Annotated[str, Field(min_length=2)], ...] = ()
    licence_exceptions: dict[Name, Reason] = {}
    reported_licences: tuple[Annotated[str, Field(min_length=2)], ...] = ()
    startup: tuple[AllowedStartup, ...] = ()
    outside: tuple[AllowedOutside, ...] = ()
    telemetry_words: tuple[Annotated[str, Field(min_length=3)], ...] = ()
    endpoints: tuple[KnownEndpoint, ...] = ()
    bytecode: dict[Name, Reason] = {}
    yanked: dict[Name, Reason] = {}
    ripening: Ripening

    @classmethod
    def read(cls, folder: Path) -> Policy:
        """Read `policy.yaml` of the vendor folder.

        Raises:
            DocumentError, FileError: the file is missing or malformed.
        """
        data = read_regular(folder / "policy.yaml", max_bytes=documents.MAX_BYTES)
        return documents.validate(cls, documents.read_yaml(data, what="policy.yaml"), what="policy.yaml")

    def allows_startup(self, package: str, path: str, sha256: str) -> bool:
        """Whether a start-up file was allowed, to the byte."""
        return any((rule.package, rule.path, rule.sha256) == (package, path, sha256) for rule in self.startup)

    def allows_outside(self, package: str, installed: str) -> bool:
        """Whether a package may install a file outside its folder, at this installed path."""
        return any(rule.package == package and installed.startswith(rule.prefix) for rule in self.outside)

    def silenced(self, package: str, host: str) -> str | None:
        """What keeps a telemetry host of a package from being called; None where nobody has said."""
        return next((rule.reason for rule in self.endpoints if (rule.package, rule.host) == (package, host)), None)
