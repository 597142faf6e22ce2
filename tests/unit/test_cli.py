"""The command line: exit codes, where words go, help that stays in step with the modules."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from overproof import __version__, cli, outcome
from overproof.core.errors import PolicyError, StageError, TrustError, UsageError
from overproof.core.recipe import Recipe

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "overproof"
VERBS = {
    "distill": "pipeline",
    "certify": "data/certify",
    "verify": "trust/verify",
    "terms": "policy/terms",
    "ask": "release/ask",
    "keys": "trust/keys",
    "doctor": "doctor",
}


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """The real command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "overproof.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "COLUMNS": "80", **env},
    )


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException, *more: str) -> int:
    """The exit code when the verb `terms` raises."""
    from overproof.policy import terms

    def fail(config: object) -> object:
        raise error

    monkeypatch.setattr(terms, "run", fail)
    return cli.dispatch(["terms", "gpt-4o", *more])


def test_version_goes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.dispatch(["--version"]) == 0
    assert capsys.readouterr().out == f"overproof {__version__}\n"


def test_no_argument_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.dispatch([]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {verb} " in shown for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_help_is_the_first_line_of_the_verb_module(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = PACKAGE / f"{VERBS[verb]}.py"
    wanted = (ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or "").split("\n")[0]
    assert cli.dispatch([verb, "--help"]) == 0
    assert wanted in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("verb", [*(v for v in VERBS if v != "keys"), "keys new", "keys show"])
def test_help_of_each_verb_has_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.dispatch([*verb.split(), "--help"]) == 0
    examples = capsys.readouterr().out.partition("Examples:\n")[2]
    assert examples.startswith(f"    overproof {verb}")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["vrify"], "No such command 'vrify'. Did you mean 'verify'"),
        (["terms"], "Missing argument 'MODEL'"),
        (["terms", "gpt-4o", "--channel", "wights"], "'wights' is not one of 'weights', 'api'"),
        (["terms", "gpt-4o", "--on", "yesterday"], "'yesterday'"),
        (["terms", "gpt-4o", "--jsn"], "No such option: --jsn"),
        (["certify", "x.jsonl", "--max-record-bytes", "0"], "--max-record-bytes: got 0"),
        (["certify", "x.jsonl", "--max-record-bytes", "many"], "'--max-record-bytes'"),
        (["keys"], "Missing command"),
        (["keys", "new", "a", "b"], "b"),
    ],
)
def test_wrong_usage_is_exit_code_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.dispatch(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert said in printed.err
    assert printed.out == ""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StageError("the disk is full", details=["/x"], hint="free some"), 1),
        (UsageError("no such file"), 2),
        (PolicyError("the terms forbid it"), 3),
        (TrustError("a file differs", step=4), 3),
    ],
)
def test_each_error_renders_on_stderr_with_its_code(
    error: StageError,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert raising(monkeypatch, error) == code
    printed = capsys.readouterr()
    assert printed.err == error.render() + "\n"
    assert printed.out == ""
    assert raising(monkeypatch, error, "--json") == code
    told = json.loads(capsys.readouterr().out)
    assert (told["error"]["message"], told["exit_code"]) == (error.what, code)


def test_markup_in_an_error_is_printed_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(monkeypatch, UsageError("no file [bold]x[/] :smile: [link"))
    assert "no file [bold]x[/] :smile: [link" in capsys.readouterr().err


def test_an_unexpected_exception_is_two_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(outcome.TRACEBACK, raising=False)
    assert raising(monkeypatch, ZeroDivisionError("division by zero\nmore")) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: unexpected ZeroDivisionError: division by zero"
    assert outcome.TRACEBACK in lines[1]
    assert len(lines) == 2


def test_the_traceback_is_there_for_those_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(outcome.TRACEBACK, "1")
    with pytest.raises(ZeroDivisionError):
        raising(monkeypatch, ZeroDivisionError("division by zero"))


def test_ctrl_c_says_that_work_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert raising(monkeypatch, KeyboardInterrupt()) == 130
    assert capsys.readouterr().err.strip() == outcome.STOPPED


def test_sigterm_ends_it_as_ctrl_c_does() -> None:
    """As `docker stop`, systemd and `timeout` send it.

    Sleeps are short: a signal just before one waits for its end.
    """
    script = (
        "import sys, time\nfrom overproof import cli\nfrom overproof.policy import terms\n"
        "terms.run = lambda _: print('up', flush=True) or [time.sleep(0.1) for _ in range(600)]\n"
        "sys.argv = ['overproof', 'terms', 'gpt-4o']\ncli.main()\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.terminate()
        _, said = process.communicate(timeout=30)
    assert (process.returncode, said.decode().strip()) == (130, outcome.STOPPED)


def test_a_missing_extra_names_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = ModuleNotFoundError("No module named 'torch'", name="torch.nn")
    assert raising(monkeypatch, absent) == 1
    printed = capsys.readouterr().err
    assert "needs the extra `distill`" in printed
    assert "in the checkout: pip install -c constraints.txt -e '.[distill]'" in printed


@pytest.mark.parametrize("name", ["overproof.nothing", "_sqlite3", None])
def test_a_missing_module_of_ours_or_of_python_is_a_fault(
    name: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(outcome.TRACEBACK, raising=False)
    assert raising(monkeypatch, ModuleNotFoundError("gone", name=name)) == 1
    assert "unexpected ModuleNotFoundError" in capsys.readouterr().err


def test_print_schema_is_the_schema_of_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.dispatch(["distill", "--print-schema"]) == 0
    assert json.loads(capsys.readouterr().out) == Recipe.model_json_schema()


def test_terms_as_json_with_the_exit_code_of_the_verdict(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.dispatch(["terms", "nobody/unheard-of", "--on", "2026-11-24", "--json"]) == 3
    shown = json.loads(capsys.readouterr().out)
    assert (shown["verdict"], shown["on"]) == ("unknown", "2026-11-24")


def test_keys_new_and_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.dispatch(["keys", "new", "demo", "--dir", str(tmp_path), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["made"] == "demo"
    assert cli.dispatch(["keys", "new", "demo", "--dir", str(tmp_path)]) == 2
    assert "never overwritten" in capsys.readouterr().err
    assert cli.dispatch(["keys", "show", "--dir", str(tmp_path)]) == 0
    assert made["keys"][0]["hint"] in capsys.readouterr().out


def test_certify_from_file_to_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "Where is my parcel?"}\n', encoding="utf-8")
    arguments = ["certify", str(source), "--out", str(tmp_path / "set"), "--licence", "CC0-1.0"]
    assert cli.dispatch([*arguments, "--personal-data", "warn", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["certificate"]["accepted"] == 1


@pytest.mark.parametrize("name", ["none", "in.jsonl", "folder"])
def test_certify_without_the_data_set_to_exclude(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "Where is my parcel?"}\n', encoding="utf-8")
    (tmp_path / "folder").mkdir()
    out = tmp_path / "set"
    arguments = ["certify", str(source), "--out", str(out), "--licence", "CC0-1.0"]
    assert cli.dispatch([*arguments, "--exclude", str(tmp_path / name)]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path / name} is no certified data set" in said
    assert "hint: make one with: overproof certify FILE" in said
    assert not out.exists()


def test_the_command_in_a_process_of_its_own() -> None:
    done = run("terms", "gpt-4o", "--channel", "api")
    assert (done.returncode, done.stderr) == (3, "")
    assert "DENY" in done.stdout


def test_a_closed_pipe_leaves_no_traceback() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "overproof.cli", "distill", "--print-schema"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()
    _, said = process.communicate(timeout=60)
    assert "Traceback" not in said
    assert "Exception ignored" not in said


@pytest.mark.parametrize(
    "arguments", [["--help"], ["terms", "gpt-4o"], ["verify", "."], ["distill", "--print-schema"]]
)
def test_light_verbs_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from overproof import cli; cli.dispatch(sys.argv[1:]);"
        "heavy = {'torch', 'numpy', 'transformers', 'pyarrow', 'matplotlib'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
