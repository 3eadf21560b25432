"""The command line: its options, its errors, and what it shows of settings."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import openai_local
from openai_local.cli.completion import complete_models
from openai_local.cli.failures import explain, one_line
from openai_local.cli.options import all_fields
from openai_local.cli.program import COMMANDS, program
from openai_local.cli.screen import harmless, size
from openai_local.config import Settings


def run(*args: str, stdin: str = "", **env: str) -> Result:
    variables = {name: None for name in os.environ if name.startswith("OPENAI_LOCAL_")}
    ours = logging.getLogger("openai_local")
    before = (ours.handlers[:], ours.level, ours.propagate)
    try:
        return CliRunner().invoke(program, args, input=stdin, env={**variables, **env})
    finally:  # `serve` sets up logging, for a process of its own
        ours.handlers[:], ours.propagate = before[0], before[2]
        ours.setLevel(before[1])


def line_of(result: Result, status: int) -> str:
    """The one line of an error."""
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    (line,) = lines
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def shown(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    return {row["name"]: row for row in json.loads(result.stdout)}


HELP = """
import sys
from openai_local.cli.program import program
try:
    program(["--help"])
except SystemExit as end:
    assert end.code == 0, end.code
heavy = {"pydantic", "numpy", "llama_cpp", "starlette", "httpx", "uvicorn", "rich"} & set(sys.modules)
assert not heavy, heavy
"""  # noqa: E501


def test_help_names_every_command_and_loads_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for name, text in COMMANDS.items():
        assert f"  {name}" in done.stdout
        assert text[:40] in done.stdout
    assert run().stdout == run("--help").stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0, result.output
    assert f"Usage: root {command}" in result.stdout


def test_the_version_is_told() -> None:
    assert run("--version").stdout == f"openai_local {openai_local.__version__}\n"


def test_every_setting_is_an_option_with_its_description_and_variable() -> None:
    words = " ".join(run("serve", "--help").stdout.split())
    assert set(Settings.model_fields) - set(all_fields()) == {"models"}
    for name in all_fields():
        description = Settings.model_fields[name].description
        assert f"--{name.replace('_', '-')} " in words
        assert f"{description}." in words
        assert f"[env:OPENAI_LOCAL_{name.upper()}]" in words


def test_unknown_words_are_named_in_one_line() -> None:
    assert "frobnicate" in line_of(run("frobnicate"), 2)
    assert "--n-ctx" in line_of(run("serve", "--n-ctxt", "5"), 2)
    assert "Try 'root config --help'" in line_of(run("config"), 2)
    assert "takes no 'zsh'" in line_of(run("--install-completion", "zsh"), 2)


def test_a_wrong_setting_is_named_in_one_line() -> None:
    assert line_of(run("config", "show", "--n-ctx", "many"), 2).startswith("n_ctx: ")
    result = run("config", "show", OPENAI_LOCAL_N_CTXT="5")
    assert "OPENAI_LOCAL_N_CTXT" in line_of(result, 2)
    assert "two models" in line_of(run("serve", "a.gguf", "--model", "b.gguf"), 2)


def test_debug_shows_the_traceback_wherever_it_stands() -> None:
    for args in (("--debug", "config", "show"), ("config", "show", "--debug")):
        result = run(*args, "--n-ctx", "many")
        assert result.exit_code == 2
        assert "Traceback" in result.stderr
        assert result.stderr.splitlines()[-1].startswith("error: n_ctx: ")
    assert "No such option" not in run("complete", "--help", "--", "--debug").stderr


def test_any_error_is_one_line_and_a_status() -> None:
    assert explain(FileNotFoundError(2, "No such file", "x.gguf")) == ("x.gguf: No such file", 1)
    line, status = explain(KeyError("a\nb"))
    assert (status, "KeyError" in line, "--debug" in line, "\n" in line) == (1, True, True, False)
    missing = ModuleNotFoundError("no", name="httpx._client")
    assert "pip install 'openai-local[server]'" in explain(missing)[0]
    assert one_line("a\x1b[2J\n  b") == "a [2J b"


def test_the_origin_of_every_setting_is_shown(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('n_batch = 64\nn_ubatch = 32\n[models.small]\npath = "a.gguf"\nn_ctx = 99\n')
    result = run(
        *("config", "show", "--json", "--config", str(file), "--n-ubatch", "16", "--no-docs"),
        *("--cors-origins", "http://a,http://b"),
        OPENAI_LOCAL_KV_MEMORY="2GiB",
        OPENAI_LOCAL_API_KEY="hush",
    )
    rows = shown(result)
    told = {name: (row["value"], row["origin"], row["where"]) for name, row in rows.items()}
    assert told["n_ubatch"] == (16, "argument", "--n-ubatch")
    assert told["docs"] == (False, "argument", "--no-docs")
    assert told["kv_memory"] == (2 << 30, "environment", "OPENAI_LOCAL_KV_MEMORY")
    assert told["n_batch"] == (64, "file", str(file))
    assert told["models.small.n_ctx"] == (99, "file", str(file))
    assert told["n_gpu_layers"] == (-1, "default", None)
    assert told["cors_origins"][0] == ["http://a", "http://b"]
    assert "hush" not in result.output
    assert told["api_key"][1:] == ("environment", "OPENAI_LOCAL_API_KEY")
    assert set(Settings.model_fields) - {"models"} <= set(rows)


def test_values_are_shown_as_they_are_written() -> None:
    options = ("--cors-origins", "http://a http://b", "--cache-ram", "1048576")
    lines = run("config", "show", *options).stdout.splitlines()
    words = {line.split()[0]: line.split("  ") for line in lines}
    shown = {name: [word.strip() for word in row if word][1] for name, row in words.items()}
    assert shown["cors_origins"] == "http://a, http://b"
    assert (shown["cache_ram"], shown["cache_disk"]) == ("1.0MiB", "4.0GiB")


def test_what_is_not_set_says_what_it_becomes() -> None:
    rows = shown(run("config", "show", "--json", "--n-threads", "3"))
    assert rows["n_threads_batch"]["becomes"] == "3"
    assert rows["n_ctx"]["becomes"] == "chosen at load"
    assert "at this moment" in rows["kv_memory"]["becomes"]
    assert all(row["becomes"] for row in rows.values() if row["value"] is None)
    assert not any(row["becomes"] for row in rows.values() if row["value"] is not None)


def test_in_a_pipe_a_row_is_a_line() -> None:
    long = "/" + "x" * 200 + "/[b]/model.gguf"
    result = run("config", "show", "--model", long)
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("model "))
    assert line.split() == ["model", long, "argument:", "--model"]


def test_files_and_folders_are_completed(tmp_path: Path) -> None:
    for name in ("one.gguf", "other.txt", ".hidden.gguf"):
        (tmp_path / name).touch()
    (tmp_path / "only").mkdir()
    assert complete_models(f"{tmp_path}/o") == [f"{tmp_path}/one.gguf", f"{tmp_path}/only/"]
    assert complete_models(f"{tmp_path}/") == [f"{tmp_path}/one.gguf", f"{tmp_path}/only/"]
    assert complete_models(f"{tmp_path}/nothing/") == []


def test_a_shell_completes_commands_options_and_models(tmp_path: Path) -> None:
    (tmp_path / "one.gguf").touch()

    def completed(words: str) -> list[str]:
        variables = {
            "_OPENAI_LOCAL_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
        }
        done = subprocess.run(
            [sys.executable, "-m", "openai_local"],
            env={**os.environ, **variables},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout.split()

    assert completed("openai-local co") == ["complete", "config"]
    assert completed("openai-local serve --kv-m") == ["--kv-memory"]
    assert completed("openai-local serve o") == ["one.gguf"]
    assert completed("openai-local serve -m o") == ["one.gguf"]
    assert completed("openai-local chat --cache-type-k q") == ["q8_0", "q4_0"]
    assert completed("openai-local models rm o") == []


def test_a_terminal_obeys_nothing_in_a_text() -> None:
    assert harmless("a\x1b]0;title\x07\tb\r\n\x9b2Jc") == "a]0;title\tb\n2Jc"


def test_sizes_are_read_at_a_glance() -> None:
    assert [size(n) for n in (0, 1023, 1 << 20, 3 << 29, 500 << 30)] == [
        "0 B", "1023 B", "1.0 MiB", "1.5 GiB", "500 GiB",
    ]  # fmt: skip
