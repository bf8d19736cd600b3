"""What is routed on: the human's request, in any language, without the harness's noise."""

import time
import unicodedata

import pytest

from appliance.routers.prompt import MAX_CHARACTERS, clean, prompt_text


def user(content):
    return {"role": "user", "content": content}


def test_the_last_human_turn_is_taken():
    messages = [
        user("first"),
        {"role": "assistant", "content": "answer"},
        user("second"),
        {"role": "tool", "content": "x"},
    ]
    assert prompt_text(messages) == "second"


def test_a_turn_that_is_only_harness_noise_is_passed_over():
    messages = [
        user("Why does the build fail?"),
        {"role": "assistant", "content": None, "tool_calls": []},
        user("<system-reminder>\nToday is Monday.\n</system-reminder>"),
        user("This session is being continued from a previous conversation that ran out of context."),
        user([{"type": "tool_result", "tool_use_id": "1", "content": "exit 1"}]),
    ]
    assert prompt_text(messages) == "Why does the build fail?"


def test_noise_around_the_request_is_removed_and_the_request_stays():
    text = "<system-reminder>do not mention</system-reminder>\n<user_query>Rename the class</user_query>\n[Image #1]"
    assert prompt_text([user(text)]) == "Rename the class"


def test_a_conversation_of_noise_alone_gives_the_empty_text():
    assert prompt_text([user("<system-reminder>x</system-reminder>")]) == ""
    assert prompt_text([]) == ""
    assert prompt_text([{"role": "system", "content": "be brief"}]) == ""


def test_parts_that_are_no_text_are_ignored():
    parts = [
        {"type": "text", "text": "What is on this picture?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "input_audio", "input_audio": {}},
        {"type": "text", "text": "Be brief."},
    ]
    assert prompt_text([user(parts)]) == "What is on this picture?\nBe brief."


def test_a_tag_that_is_never_closed_is_the_humans_own_text():
    assert prompt_text([user("What does <system-reminder> mean?")]) == "What does <system-reminder> mean?"


@pytest.mark.parametrize(
    "text", ["请解释机器学习", "Объясни, почему небо голубое", "ما هي عاصمة مصر؟", "à la carte", "👩‍🚀 hi"]
)
def test_every_language_passes_unchanged(text):
    assert prompt_text([user(text)]) == text


def test_unicode_is_composed_and_lone_surrogates_and_control_characters_go():
    assert clean("e\u0301\x00\x1b[0m") == "é[0m"
    assert clean("a\ud800b") == "a?b"


@pytest.mark.parametrize("content", [None, 7, {"text": "x"}, [None, 3, {"type": "text", "text": 9}], b"bytes"])
def test_content_of_an_unknown_kind_is_no_text(content):
    assert prompt_text([user(content)]) == ""


def test_a_hostile_turn_costs_no_more_than_its_length():
    hostile = [
        "<system-reminder>" * 100_000,
        "<" * 1_000_000,
        "<system-reminder " + " " * 1_000_000,
        "[Image: source: " * 90_000,
        "a" + "\u0345" * 22_000 + "\u0301" * 22_000 + "\u0316" * 22_000,
        "a" + "\u0301\u0316" * 32_000,
        "\u0344" * 65_000,
    ]
    started = time.perf_counter()
    for _ in range(50):
        for text in hostile:
            clean(text)
    assert time.perf_counter() - started < 60, "what grows with the square of its length takes hours"


def test_marks_heaped_on_a_letter_are_cut_to_what_languages_have():
    heap = "e" + "\u0301\u0316" * 40
    assert clean(f"{heap} f\u0301") == unicodedata.normalize("NFC", f"{heap[:31]} f\u0301")
    devanagari = "स्त्री की क्षमता"
    assert clean(devanagari) == devanagari


def test_many_turns_of_noise_are_not_all_read():
    wall = [user("\x01" * MAX_CHARACTERS)] * 10
    assert prompt_text([user("behind the wall"), *wall]) == ""
    assert prompt_text([user("before it"), *wall[:7]]) == "before it"
    assert prompt_text([user("x"), *[user("<thinking>so</thinking>")] * 10_000]) == "x", "of short ones very many are"


def test_control_characters_are_those_of_unicode():
    every = unicodedata.normalize("NFC", "".join(map(chr, range(0x3000))))
    kept = clean(f"a{every}b")
    assert not {c for c in kept if unicodedata.category(c) == "Cc"} - set("\t\n")
    assert {c for c in every if unicodedata.category(c) == "Zs"} <= set(kept)


def test_a_very_long_turn_keeps_its_head_and_its_tail():
    text = "HEAD " + "x" * 1_000_000 + " TAIL"
    assert clean(text).startswith("HEAD ")
    assert clean(text).endswith(" TAIL")
    assert len(clean(text)) < 70_000
