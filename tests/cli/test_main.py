"""The group: help, exit codes, one message for an error, the traceback with --debug."""

import subprocess
import sys

import pytest

from jaxinfer.cli import _COMMANDS, main
from jaxinfer.core.errors import CheckpointError


def test_help_lists_every_command(cli):
    result = cli("--help")
    assert result.code == 0
    for name, text in _COMMANDS.items():
        assert name in result.out
        assert text.split(",")[0][:30] in result.out


@pytest.mark.parametrize("name", _COMMANDS)
def test_every_command_has_help(cli, name):
    result = cli(name, "--help")
    assert result.code == 0
    assert "Usage:" in result.out


def test_version(cli):
    from jaxinfer import __version__

    assert __version__ in cli("--version").out


@pytest.mark.parametrize(
    "args",
    [
        ["nonsense"],
        ["convert"],
        ["convert", "x", "--nope"],
        ["convert", "x", "-o", "y", "--dynamic", "maybe"],
        ["convert", "x", "-o", "y", "--tolerance", "-1"],
        ["verify", "x"],
        ["run", "x", "y"],
        ["inspect", "x", "--size", "batch"],
        ["inspect", "x", "--size", "batch=two"],
    ],
)
def test_wrong_usage_is_2(cli, args):
    result = cli(*args)
    assert result.code == 2
    assert "Traceback" not in result.err


RAISED = [
    (CheckpointError("weights are damaged:\n  a: missing"), "error: weights are damaged:\n  a: "),
    (OverflowError("too big"), "error: too big"),
    (FileNotFoundError(2, "No such file or directory", "w.bin"), "error: w.bin: No such file"),
    (KeyboardInterrupt(), "error: interrupted"),
    (MemoryError("8 GB"), "error: out of memory"),
]


@pytest.mark.parametrize(("error", "message"), RAISED, ids=lambda v: type(v).__name__)
def test_errors_are_one_message_and_exit_1(cli, open_as, error, message):
    def convert(progress):
        raise error

    open_as(convert=convert)
    result = cli("convert", "x", "-o", "out")
    assert result.code == 1
    assert message in result.err
    assert "Traceback" not in result.err
    assert "bug" not in result.err
    assert result.out == ""


def test_the_unexpected_says_that_it_is_a_bug(cli, open_as):
    def convert(progress):
        raise ZeroDivisionError("in the middle\nof something")

    open_as(convert=convert)
    result = cli("convert", "x", "-o", "out")
    assert result.code == 1
    assert "error: ZeroDivisionError: in the middle" in result.err
    assert "bug" in result.err
    assert "--debug" in result.err
    result = cli("--debug", "convert", "x", "-o", "out")
    assert isinstance(result.exception, ZeroDivisionError)


def test_debug_lets_expected_errors_through(cli, tmp_path):
    result = cli("--debug", "inspect", "nowhere")
    assert result.exception is not None
    assert not isinstance(result.exception, SystemExit)


def test_as_a_process(tmp_path):
    def call(*args):
        command = [sys.executable, "-m", "jaxinfer.cli", *args]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)

    done = call("inspect", "nowhere")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr
    debug = call("--debug", "inspect", "nowhere")
    assert debug.returncode == 1
    assert "Traceback" in debug.stderr


def test_help_imports_no_command_and_no_torch(tmp_path):
    code = (
        "import sys; from jaxinfer.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'flax', 'jaxinfer.cli.convert', 'rich.progress'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=tmp_path)


def test_commands_are_found_by_name():
    assert main.get_command(None, "nope") is None
    assert all(main.get_command(None, name).name == name for name in _COMMANDS)
