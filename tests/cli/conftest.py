import json

import pytest
from click.testing import CliRunner

from jaxinfer.cli import main
from tests.cli import fakes


class Result:
    def __init__(self, result):
        self.code = result.exit_code
        self.out, self.err = result.stdout, result.stderr
        self.exception = result.exception

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def cli(tmp_path, monkeypatch):
    """Run a command in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def call(*args):
        return Result(CliRunner().invoke(main, [str(arg) for arg in args]))

    return call


@pytest.fixture
def open_as(monkeypatch):
    """Let every SRC open as the fake source, changed as asked; returns the options it got."""

    def install(**changes):
        seen = []

        def open_source(source, options):
            seen.append((source, options))
            return fakes.source(**changes)

        monkeypatch.setattr("jaxinfer.cli._source.open_source", open_source)
        return seen

    return install


@pytest.fixture
def model_dir(tmp_path):
    fakes.model().save(tmp_path / "model")
    return "model"
