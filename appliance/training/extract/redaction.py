"""What must never reach the disk is taken out of a prompt before it does."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from appliance import documents
from appliance.errors import TrainingError
from appliance.files import read_regular

MAX_RULES_BYTES = 1024 * 1024


class Rule(BaseModel):
    """One rule: what to find, and what to put in its place."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(min_length=1, max_length=64)]
    pattern: Annotated[str, Field(min_length=1, max_length=2000)]
    replacement: str = ""


class Rules(BaseModel):
    """The rules file: `rules: [{name, pattern, replacement}]`; `defaults: false` leaves ours out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    defaults: bool = True
    rules: tuple[Rule, ...] = ()


DEFAULTS: Sequence[Rule] = (
    Rule(
        name="private-key",
        pattern=r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----[\s\S]{0,20000}?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)",
        replacement="[private key]",
    ),
    Rule(name="bearer", pattern=r"(?i)\bbearer\s+[A-Za-z0-9._~+/=-]{16,}", replacement="[token]"),
    Rule(name="basic", pattern=r"(?i)\bauthorization\W{1,4}basic\s+[A-Za-z0-9+/=_-]{4,}", replacement="[login]"),
    Rule(
        name="api-key",
        pattern=r"\b(?:(?:sk|pk|rk|hf|npm|gh[oprsu]|github_pat|glpat|xox[abeprs])[-_]|AKIA|ASIA|AIza)[-_A-Za-z0-9]{12,}",
        replacement="[key]",
    ),
    Rule(name="jwt", pattern=r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*", replacement="[token]"),
    Rule(name="url-login", pattern=r"(?<=://)[^\s:/@]{0,64}:[^\s/@]{1,256}@", replacement="[login]@"),
    Rule(name="email", pattern=r"\b[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}\b", replacement="[e-mail]"),
    Rule(name="iban", pattern=r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,4})?\b", replacement="[iban]"),
    Rule(name="card", pattern=r"\b(?:\d[ -]?){12,18}\d\b", replacement="[number]"),
    Rule(name="ipv4", pattern=r"\b(?:\d{1,3}\.){3}\d{1,3}\b", replacement="[address]"),
    Rule(
        name="ipv6",  # whole, or shortened behind a first group that no slice of a list is likely to have
        pattern=r"(?<![\w:])(?:(?:[\da-fA-F]{1,4}:){7}[\da-fA-F]{1,4}|[\da-fA-F]{3,4}(?::[\da-fA-F]{1,4}){0,6}::"
        r"(?:[\da-fA-F]{1,4}(?::[\da-fA-F]{1,4}){0,6})?)(?![\w:])",
        replacement="[address]",
    ),
    # the last one: others know to its end what begins so; with a digit or a sign: else it may be talk, or code
    Rule(
        name="password",
        pattern=r"(?i)\b(?:pass(?:word|wd|phrase)|pwd|secret|api[_ -]?key|access[_ -]?(?:key|token))[\"']?"
        r"\s{0,4}(?:[:=]|\bis\b)\s{0,4}[\"']?(?![\[<{$%])(?=[^\s\"'<>]{0,60}[\d!@#$%^&*?])[^\s\"'<>]{4,256}",
        replacement="[password]",
    ),
)


@dataclass(frozen=True)
class Redactor:
    """Applies rules in order.

    Attributes:
        patterns: compiled rules with their replacement.
    """

    patterns: tuple[tuple[re.Pattern[str], str], ...]

    def __call__(self, text: str) -> str:
        """The text without what the rules name."""
        for pattern, replacement in self.patterns:
            text = pattern.sub(replacement.replace("\\", r"\\"), text)  # the replacement is literal
            if not text.isascii():
                text = _redacted_as_seen(text, pattern, replacement)
        return text


def _redacted_as_seen(text: str, pattern: re.Pattern[str], replacement: str) -> str:
    """The text without what a rule finds in it as a reader sees it: no invisible characters, wide forms or odd dashes.

    What is typed on a phone or pasted from a document splits a key by a soft hyphen or a zero-width space, or writes a
    card's number in full-width digits; none of it is a reason to keep it.
    """
    seen: list[str] = []
    places: list[int] = []
    for place, character in enumerate(text):
        plain = character if character.isascii() else _plain(character)
        seen.append(plain)
        places.extend([place] * len(plain))
    kept: list[str] = []
    end = 0
    for match in pattern.finditer("".join(seen)):
        if match.start() < match.end():
            kept += [text[end : places[match.start()]], replacement]
            end = places[match.end() - 1] + 1
    return "".join((*kept, text[end:]))


def _plain(character: str) -> str:
    kind = unicodedata.category(character)
    if kind in ("Cf", "Mn"):
        return ""
    if kind == "Pd" or character == "\N{MINUS SIGN}":
        return "-"
    return " " if kind == "Zs" else unicodedata.normalize("NFKC", character)


def load_redactor(path: Path | None) -> Redactor:
    """The rules of a file, after ours.

    Raises:
        TrainingError: TRAINING_REDACTION for a pattern that does not compile.
        DocumentError, FileError: where the file is malformed or cannot be read.
    """
    chosen = Rules()
    if path is not None:
        data = documents.read_yaml(read_regular(path, max_bytes=MAX_RULES_BYTES), what=path.name)
        chosen = documents.validate(Rules, data, what=path.name)
    rules = [*(DEFAULTS if chosen.defaults else ()), *chosen.rules]
    compiled = []
    for rule in rules:
        try:
            compiled.append((re.compile(rule.pattern), rule.replacement))
        except (re.error, OverflowError, RecursionError) as error:
            raise TrainingError("TRAINING_REDACTION", f"rule {rule.name}: {error}", rule=rule.name) from None
    return Redactor(tuple(compiled))
