"""The documentation builds offline, its links hold, and every command in it can be typed."""

import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import get_args

import pytest
import typer
import typer.main
from typer.testing import CliRunner

from appliance.cli.main import app
from appliance.errors import catalogue
from appliance.gateway import decision, telemetry
from tests.support.guides import commands_in

ROOT = Path(__file__).parents[3]
GUIDES = sorted(
    path.stem for path in (ROOT / "docs").glob("*.md") if path.stem not in {"commands", "errors", "configuration"}
)
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def text(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr  # strict: a broken link or anchor is an error
    return folder


def test_it_builds_with_every_link_and_anchor_sound(site):
    assert (site / "index.html").exists()
    assert (site / "errors.html").exists()


def test_the_built_pages_load_nothing_from_elsewhere(site):
    for page in site.rglob("*.html"):
        for tag in re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*>", page.read_text()):
            assert not re.search(r'(?:src|href)="(?:https?:)?//', tag), f"{page.name}: {tag}"


def test_generated_pages_are_current():
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "generate-docs"), "--check"],
        capture_output=True, text=True, env=ENVIRONMENT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@cache
def commands() -> dict[tuple[str, ...], set[str]]:
    """Every command's words and the options it takes."""

    def walk(command, path):
        if hasattr(command, "list_commands"):
            context = typer.Context(command)
            for name in command.list_commands(context):
                yield from walk(command.get_command(context, name), (*path, name))
        else:
            yield (
                path,
                {option for each in command.params for option in (*each.opts, *each.secondary_opts)} | {"--help"},
            )

    return dict(walk(typer.main.get_command(app), ()))


def test_every_command_takes_json_but_the_one_that_runs_until_it_is_stopped_and_reports_nothing():
    assert {path for path, options in commands().items() if "--json" not in options} == {("train", "receive")}


def test_wrong_usage_of_any_command_exits_with_two():
    others = {path: CliRunner().invoke(app, [*path, "--no-such-option"]).exit_code for path in commands()}
    assert {path: code for path, code in others.items() if code != 2} == {}


def known(line: str) -> None:
    words = shlex.split(line.replace(" ...", ""))[1:]
    match = next((words[:n] for n in (3, 2, 1) if tuple(words[:n]) in commands()), None)
    assert match, f"no such command: {line}"
    for option in (word.split("=")[0] for word in words[len(match) :] if word.startswith("--")):
        assert option in commands()[tuple(match)], f"{option} is no option of: {line}"


@pytest.mark.parametrize("name", GUIDES)
def test_every_command_and_option_in_the_page_exists(name):
    for line in commands_in(text(name)):
        known(line)


def test_an_option_that_does_not_exist_would_be_seen():
    with pytest.raises(AssertionError, match="--no-such is no option"):
        known(commands_in("```\nappliance doctor --no-such  # a comment\n```")[0])
    with pytest.raises(AssertionError, match="no such command"):
        known(commands_in("`appliance dance`")[0])


# real commands that no test types, and why: they need what a test cannot have
NOT_RUN: dict[str, str] = {}


def run_by_a_test(verbs: tuple[str, ...], options: set[str], texts: list[str]) -> bool:
    """Whether tests or runbooks type it, each option included: whole, or by a file's helper that puts the group's name
    in front."""
    whole, rest = (r",\s*".join(f'"{verb}"' for verb in part) for part in (verbs, verbs[1:] or verbs))
    typed = re.compile(rf"{whole}|\bappliance {' '.join(verbs)}\b")
    typing = [
        each for each in texts if typed.search(each) or (re.search(rf'"{verbs[0]}"', each) and re.search(rest, each))
    ]
    return bool(typing) and all(any(re.search(rf"{option}\b", each) for each in typing) for option in options)


def with_what_it_types(test: str) -> str:
    """A test's text, and the whole lines of the pages that it types by their beginnings."""
    begins = tuple(re.findall(r'"(appliance \w[^"]*)"', test))
    pages = re.findall(r'Guide\("([\w-]+)"', test)
    return "\n".join([test, *(line for page in pages for line in commands_in(text(page)) if line.startswith(begins))])


def test_every_command_of_the_guides_is_run_by_a_test_or_a_runbook_with_all_its_options():
    here = Path(__file__)
    files = [path for path in (ROOT / "tests").rglob("*.py") if path != here]
    files += [path for path in (ROOT / "scripts").rglob("*") if path.is_file()]
    texts = [with_what_it_types(path.read_text()) for path in files]
    missing = set()
    for name in GUIDES:
        for line in commands_in(text(name)):
            words = shlex.split(line.replace(" ...", ""))[1:]
            verbs = next(tuple(words[:n]) for n in (3, 2, 1) if tuple(words[:n]) in commands())
            options = {word.split("=")[0] for word in words[len(verbs) :] if word.startswith("--")}
            if not run_by_a_test(verbs, options, texts):
                missing.add(line)
    assert missing == set(NOT_RUN), sorted(missing)


def test_every_command_in_the_catalogue_exists_with_its_options():
    wrong = []
    for entry in catalogue().values():
        for line in re.findall(r"`(appliance [^`]+)`", f"{entry.meaning} {entry.remedy}"):
            try:
                known(line.replace("[", "").replace("]", ""))
            except (AssertionError, ValueError) as error:
                wrong.append(f"{entry.code}: {error}")
    assert not wrong


def test_every_runbook_in_the_catalogue_takes_the_options_named():
    common = (ROOT / "scripts" / "lib" / "runbook.sh").read_text()
    wrong = []
    for entry in catalogue().values():
        for name, rest in re.findall(r"`scripts/([a-z0-9-]+)([^`]*)`", f"{entry.meaning} {entry.remedy}"):
            script = common + (ROOT / "scripts" / name).read_text()
            wrong += [
                f"{entry.code}: {name} {each}" for each in re.findall(r"--[a-z-]+", rest) if f"{each})" not in script
            ]
    assert not wrong


@pytest.mark.parametrize("name", GUIDES)
def test_every_runbook_file_and_code_that_is_named_exists(name):
    page = text(name)
    for script in re.findall(r"scripts/([a-z][a-z-]+)", page):
        assert (ROOT / "scripts" / script).exists(), script
    made = ("vendor/models/", "vendor/wheelhouse", "ca/authority")  # by commands, not in the source
    for path in re.findall(r"`((?:bundle|docs|vendor|scripts|ca)/[A-Za-z0-9./_-]+)`", page):
        assert path.startswith(made) or (ROOT / path).exists(), path
    areas = {code.split("_")[0] for code in catalogue()}
    for code in re.findall(r"\b([A-Z]+_[A-Z_]+)\b", page):
        assert code.split("_")[0] not in areas or code in catalogue(), code


def test_pictures_are_current_and_every_flow_has_one():
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "draw-flows"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    shown = set(re.findall(r"\(pictures/(\w+)\.svg\)", text("architecture")))
    assert shown == {path.stem for path in (ROOT / "docs" / "pictures").glob("*.svg")}


def reported_checks() -> dict[str, set[str]]:
    """Names under which the doctor and the acceptance report."""
    here = ROOT / "appliance" / "operations"
    doctor = "".join(path.read_text() for path in (here / "doctor" / "checks").glob("*.py"))
    acceptance = (here / "acceptance" / "checks.py").read_text()
    return {
        "doctor": set(re.findall(r'"([a-z][a-z-]+)"', doctor)),
        "validate": set(re.findall(r'(?:Result\(|return Result\(\n)\s*"([^"]+)"', acceptance)),
    }


def test_every_control_that_is_met_names_a_test_and_checks_that_exist():
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text("controls").splitlines()
        if re.match(r"\| [A-Z]{2}-\d", line)
    ]
    assert len(rows) >= 20
    checks = reported_checks()
    for control, state, _, evidence, test in rows:
        assert state in {"met", "helps"}, control
        if state == "met":
            assert evidence, control
            assert (ROOT / test.strip("`")).is_file(), (control, test)
        for command, named in re.findall(r"`appliance (doctor|validate)[^`]*` \(([^)]*)\)", evidence):
            assert {name.strip() for name in named.split(",")} <= checks[command], (control, named)


def test_a_control_that_names_a_check_nobody_reports_would_be_seen():
    assert "permissions" in reported_checks()["doctor"]
    assert "degraded mode" in reported_checks()["validate"]
    assert "phases of the moon" not in reported_checks()["doctor"] | reported_checks()["validate"]


def test_the_operators_guide_names_every_attribute_of_a_decision_and_every_word_for_it():
    page = text("operator")
    table = page[page.index("## What a trace tells") : page.index("## What the doctor checks")]
    decided = decision.Decision(
        "r", "c", "t", "chat", "a", "ml:knn", "success", "best_score", score=1, router_digest="d"
    )
    names, values = zip(*re.findall(r"(?m)^\| (`.*?) \| (.*) \|$", table), strict=True)
    assert set(re.findall(r"`([\w.]+)`", " ".join(names))) == set(telemetry.attributes(decided))
    told = dict(zip(names, values, strict=True))
    reasons = {value for name, value in vars(decision).items() if name.isupper() and isinstance(value, str)}
    assert set(re.findall(r"`(\w+)`", told["`router.decision_reason`"])) == reasons
    assert set(re.findall(r"`(\w+)`", told["`router.decision_outcome`"])) == set(get_args(decision.Outcome))


def test_every_runbook_of_the_table_runs():
    table = text("runbook").split("## ")[0]
    rows = re.findall(r"^\| [^|]+ \| `([a-z-]+)", table, re.MULTILINE)
    assert len(rows) >= 15
    for name in rows:
        done = subprocess.run([str(ROOT / "scripts" / name), "--help"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, name


def test_every_command_has_a_man_page_without_a_complaint(tmp_path):
    subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "generate-docs"), "--check", "--man", str(tmp_path)],
        env=ENVIRONMENT, check=False, capture_output=True,
    )  # fmt: skip
    pages = {path.stem for path in tmp_path.glob("*.1")}
    assert pages == {"-".join(("appliance", *path)) for path in commands()}
    for path in tmp_path.glob("*.1"):
        page = path.read_text()
        assert page.startswith(".TH ")
        for section in ("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS"):
            assert f".SH {section}\n" in page
        assert not [line for line in page.splitlines() if line.startswith("'")]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shells_completion_is_generated_and_answers(shell, tmp_path):
    subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "generate-docs"), "--check", "--completion", str(tmp_path)],
        env=ENVIRONMENT, check=False, capture_output=True,
    )  # fmt: skip
    assert "_APPLIANCE_COMPLETE" in (tmp_path / f"appliance.{shell}").read_text()


def test_completion_knows_commands_and_options():
    command = str(Path(sys.executable).with_name("appliance"))

    def offered(words: str, position: int) -> set[str]:
        asked = {"COMP_WORDS": words, "COMP_CWORD": str(position), "_APPLIANCE_COMPLETE": "complete_bash"}
        done = subprocess.run([command], env={**os.environ, **asked}, capture_output=True, text=True, check=False)
        return set(done.stdout.split())

    assert "doctor" in offered("appliance doc", 1)
    assert "--nagios" in offered("appliance doctor --na", 2)
