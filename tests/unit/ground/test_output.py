"""What commands print: names from media, registries and models reach a terminal as text, and `--json` stays JSON."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from appliance.cli import main as entry
from appliance.cli.ca_report import rows
from appliance.cli.output import Json, Steps, console, hang, json_text, print_refusal, printable, refusals, show
from appliance.errors import FileError, TrustError

HOSTILE = "a\x1b]0;owned\x07\x1b[2J\x9b1A\r\u202eb"
runner = CliRunner()


def _command(act):
    app = typer.Typer()

    @app.command()
    def command(as_json: Json = False) -> None:
        with refusals(as_json):
            act(as_json)

    return lambda *options: runner.invoke(app, list(options))


def _refused(cause, **evidence):
    def act(_as_json):
        raise FileError("FILE_MISSING", cause, **evidence)

    return act


@pytest.mark.parametrize("text", ["no [/] such file", "[/red]", "[bold]x", "[link=http://evil]here[/link]", ":100:"])
def test_brackets_and_colons_in_a_cause_are_text_and_no_markup(text, capsys):
    print_refusal(FileError("FILE_MISSING", text, path=text))
    first, second, *_ = capsys.readouterr().err.splitlines()
    assert (first, second) == (f"refused FILE_MISSING {text}", f"  path: {text}")


def test_a_name_cannot_drive_the_terminal(capsys):
    shown = r"a\x1b]0;owned\x07\x1b[2J\x9b1A\x0d\u202eb"
    print_refusal(FileError("FILE_MISSING", HOSTILE, path=HOSTILE))
    console().print(HOSTILE)
    Steps()(HOSTILE)
    said = capsys.readouterr()
    assert said.err.splitlines()[:2] == [f"refused FILE_MISSING {shown}", f"  path: {shown}"]
    assert said.err.splitlines()[-1] == said.out.rstrip("\n") == shown


def test_a_name_cannot_write_lines_of_its_own(capsys):
    print_refusal(FileError("FILE_MISSING", "x\nnext: rm -rf /", path="x\nnext: rm -rf /"))
    rows(console(), {"keys added": {"root x\nkeys retired": "y\nnone"}, "digest": "z\nsigned"})
    said = capsys.readouterr()
    assert [line for line in said.err.splitlines() if line.startswith("next:")] == [
        "next: Check the path; list its folder with `ls -la`."
    ]
    assert said.out.splitlines() == ["keys added", r"  root x\nkeys retired  y\nnone", r"digest             z\nsigned"]


@pytest.mark.parametrize("text", ["plain", "Grüße", "می\u200cخواهم", "👩\u200d💻", "two\nlines"])
def test_text_of_any_language_is_shown_as_it_is(text, capsys):
    console().print(text)
    assert capsys.readouterr().out == text + "\n"
    assert printable(text) == text


def test_json_is_valid_whatever_it_reports():
    value = {"share": float("nan"), "most": [float("inf"), 1.5], "name": HOSTILE + "\udcff"}
    text = json_text(value)
    assert json.loads(text, parse_constant=pytest.fail) == {**value, "share": None, "most": [None, 1.5]}
    assert text.isprintable() or set(text) - {"\n"} == {c for c in text if c.isprintable()}


def test_a_refusal_with_json_is_one_valid_document():
    result = _command(_refused(HOSTILE, size=float("nan")))("--json")
    assert result.exit_code == 1
    error = json.loads(result.stdout, parse_constant=pytest.fail)["error"]
    assert (error["code"], error["cause"], error["evidence"]) == ("FILE_MISSING", HOSTILE, {"size": None})


def test_what_the_operating_system_refuses_is_refused_with_its_reason(tmp_path):
    def act(_as_json):
        (tmp_path / ("x" * 300)).read_bytes()

    result = _command(act)("--json")
    error = json.loads(result.stdout)["error"]
    assert (result.exit_code, error["code"], error["cause"]) == (1, "FILE_SYSTEM", "File name too long")
    assert error["evidence"]["path"].startswith(str(tmp_path))


def test_a_defect_is_said_to_be_one_and_shows_no_traceback():
    def act(_as_json):
        raise ValueError("a [/] surprise")

    result = _command(act)()
    assert result.exit_code == 1
    assert "refused OPERATION_DEFECT ValueError: a [/] surprise" in result.stderr
    assert "Traceback" not in result.stderr
    assert "test_output.py" in result.stderr


def test_a_defect_before_any_command_is_said_to_be_one(monkeypatch, capsys):
    monkeypatch.setattr(entry, "app", lambda: 1 / 0)
    with pytest.raises(SystemExit) as end:
        entry.main()
    assert end.value.code == 1
    assert capsys.readouterr().err.startswith("refused OPERATION_DEFECT ZeroDivisionError")


def test_our_own_refusals_and_usage_errors_pass_as_they_are():
    def refused(_as_json):
        raise TrustError("TRUST_TYPE", "something else")

    def usage(_as_json):
        raise typer.BadParameter("not so")

    assert json.loads(_command(refused)("--json").stdout)["error"]["code"] == "TRUST_TYPE"
    assert _command(usage)().exit_code == 2
    assert _command(lambda as_json: show({"done": True}, as_json, lambda _out: None))("--json").exit_code == 0


@pytest.mark.parametrize("terminal", [True, False])
def test_on_a_terminal_long_text_goes_on_below_itself_and_in_a_pipe_on_its_line(terminal, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = console()
    out._force_terminal = terminal
    hang(out, "  next: ", "word " * 30 + HOSTILE)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("  next: word")
    assert all(line.startswith(" " * 8 + "word") for line in lines[1:-1])
    assert (len(lines) > 2) is terminal
    assert not terminal or max(map(len, lines)) <= 80
    assert "\x1b" not in "".join(lines)
