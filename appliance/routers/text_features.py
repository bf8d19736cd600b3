"""What the surface of a prompt tells: how it is built (`structure`) and which words it holds (`hashed_terms`).

Both are part of a router's contract: the same text must give the same numbers for as long as a router lives. They are
versioned by name; a change that moves a number is a new name beside the old one.
"""

from __future__ import annotations

import itertools
import math
import re
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MAX_CHARACTERS = 8_000  # of a text that are looked at, half from each end
MAX_TERM_BITS = 20

_WORD = re.compile(r"\w+")
_TOKEN = re.compile(r"\w+|[^\w\s]")
_ITEM = re.compile(r"(?m)^[ \t]*(?:\(?[A-Za-z0-9]{1,2}[.):]|[-*•])[ \t]+(.*)$")
_OPTION = re.compile(r"(?m)^\(?([A-J])[.):] ?(.*)$")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_NUMERIC_ITEM = re.compile(r"[-+$€£]?[\d.,/%\s]+\w{0,4}\.?\Z")
_SENTENCE_END = re.compile(r"[.!?。！？](?:\s|$)")
_OPERATORS = re.compile(r"[=+*/^<>]")
_MARKUP = re.compile(r"[\\${}]")
_MONEY = re.compile(r"[$€£]\s?\d")
_YEAR = re.compile(r"\b(?:1[5-9]|20)\d\d\b")
_CODE = re.compile(r"\b(?:def|return|import|class|function|python|sql|code)\b|[{};]\s*$", re.MULTILINE)
_QUANTITY = re.compile(r"\b(?:how many|how much|calculate|find|compute|total|solve|evaluate)\b")
_PREMISE = re.compile(r"\b(?:if|suppose|assume|let|given)\b")
_NEGATION = re.compile(r"\b(?:not|except|least|false|incorrect|never|cannot)\b")
_STRESSED_NEGATION = re.compile(r"\b(?:NOT|EXCEPT|LEAST|FALSE)\b")
_CONTEXT = re.compile(r"refer to|passage|following information|according to|based on the")
_STATEMENTS = re.compile(r"\bstatement (?:1|i)\b|\bi+\. ")

STRUCTURE: tuple[str, ...] = (
    "log_characters", "log_words", "characters_per_word", "digit_share", "upper_share", "symbol_share", "lines",
    "items", "options", "option_mean_length", "option_max_length", "option_min_length", "option_length_spread",
    "numeric_options", "log_stem_characters", "stem_numbers", "numbers", "question_marks", "underscores", "bars",
    "statements", "stressed_negation", "negation", "all_or_none", "which", "what", "who_when_where", "how_why",
    "lower_start", "stem_ends_asking", "operators", "markup", "brackets", "quotes", "stem_sentences", "quantity",
    "premise", "year", "context", "distinct_words", "mean_word_length", "long_words", "money", "percent", "non_ascii",
    "the_share", "answer_cue", "code", "boxed",
)  # fmt: skip


def window(text: str) -> str:
    """The part of a text that is looked at: all of it, or head and tail."""
    if len(text) <= MAX_CHARACTERS:
        return text
    return f"{text[: MAX_CHARACTERS // 2]}\n{text[-MAX_CHARACTERS // 2 :]}"


def structure(texts: Sequence[str]) -> NDArray[np.float32]:
    """How each text is built, shape (n, len(STRUCTURE)); cost linear in the text, about 0.2 ms for a page."""
    return np.array([_structure(window(text)) for text in texts], np.float32).reshape(len(texts), len(STRUCTURE))


def _structure(text: str) -> list[float]:
    low = text.lower()
    words = _WORD.findall(text)
    characters, count = max(len(text), 1), max(len(words), 1)
    options = [match[1] for match in _OPTION.findall(text)]
    lengths = [len(option) for option in options] or [0]
    mean_length = sum(lengths) / len(lengths)
    first_option = _OPTION.search(text)
    stem = text[: first_option.start()] if first_option else text
    return [
        math.log1p(len(text)),
        math.log1p(len(words)),
        characters / count,
        sum(c.isdigit() for c in text) / characters,
        sum(c.isupper() for c in text) / characters,
        sum(not c.isalnum() and not c.isspace() for c in text) / characters,
        text.count("\n"),
        len(_ITEM.findall(text)),
        len(options),
        mean_length,
        max(lengths),
        min(lengths),
        math.sqrt(sum((n - mean_length) ** 2 for n in lengths) / len(lengths)),
        sum(bool(_NUMERIC_ITEM.match(option)) for option in options),
        math.log1p(len(stem)),
        len(_NUMBER.findall(stem)),
        len(_NUMBER.findall(text)),
        text.count("?"),
        text.count("_"),
        text.count("|"),
        bool(_STATEMENTS.search(low)),
        bool(_STRESSED_NEGATION.search(text)),
        bool(_NEGATION.search(stem.lower())),
        "of the above" in low,
        low.startswith("which"),
        low.startswith("what"),
        low.startswith(("who", "when", "where")),
        low.startswith(("how", "why")),
        text[:1].islower(),
        stem.rstrip().endswith("?"),
        len(_OPERATORS.findall(text)),
        len(_MARKUP.findall(text)),
        text.count("("),
        text.count('"') + text.count("“"),
        len(_SENTENCE_END.findall(stem)),
        bool(_QUANTITY.search(low)),
        bool(_PREMISE.search(low)),
        bool(_YEAR.search(text)),
        bool(_CONTEXT.search(low)),
        len(set(words)) / count,
        sum(map(len, words)) / count,
        sum(len(word) >= 9 for word in words) / count,
        len(_MONEY.findall(text)),
        text.count("%"),
        not text.isascii(),
        low.count(" the ") / count,
        "answer:" in low,
        len(_CODE.findall(low)),
        "boxed" in low,
    ]


def hashed_terms(text: str, *, bits: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Words, marks and their pairs, hashed into 2**bits columns (the hashing trick, Weinberger et al. 2009).

    Numbers are masked to their length: what matters is that a number stands there, not which.

    Args:
        text: a cleaned prompt.
        bits: at most 20.

    Returns:
        Columns (ascending, distinct) and 1 + log of how often each stands there.
    """
    tokens = [_mask(token.lower()) for token in _TOKEN.findall(window(text))]
    mask = (1 << bits) - 1
    hashes = [zlib.crc32(token.encode()) & mask for token in tokens]
    hashes += [zlib.crc32(f"{left} {right}".encode()) & mask for left, right in itertools.pairwise(tokens)]
    columns, counts = np.unique(np.array(hashes, np.int64), return_counts=True)
    return columns, (1 + np.log(counts)).astype(np.float32)


def _mask(token: str) -> str:
    if not token.isdecimal():
        return token
    return "0" if len(token) < 3 else f"0{len(token)}"
