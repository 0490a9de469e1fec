"""What the commands share that transform a model directory: load, apply, save, say what was done.

Nothing is written unless all of it went well. A parameter that a transform could not change is
named with the reason and the line of the user's code; with ``--strict`` that is an error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from jaxinfer.core.audit import STATUSES, Audit
from jaxinfer.core.errors import ArtefactError
from jaxinfer.core.model import Model
from jaxinfer.core.transform import STAGES, Transform

_COMMON = (
    click.option(
        "-o", "--out", required=True, metavar="SMALL", help="The model directory to make."
    ),
    click.option(
        "--rules",
        "rules_file",
        metavar="FILE.toml",
        help="[[rule]] tables: path = 'a regular expression', and settings or ignore = true. The "
        "first rule that matches a parameter's path decides it.",
    ),
    click.option("--strict", is_flag=True, help="Fail if a parameter cannot be changed."),
    click.option("--overwrite", is_flag=True, help="Replace a model directory that exists."),
    click.option("--json", "as_json", is_flag=True, help="Print the audit as JSON."),
)
_DATA = (
    click.option(
        "--data",
        "data_file",
        metavar="CALIB.npz",
        help="Inputs by name (or arr_0 ...), with samples along axis 0.",
    ),
    click.option(
        "--batch-size",
        type=click.IntRange(1),
        metavar="N",
        help="Samples of --data in a batch.  [default: 8, or what the model takes]",
    ),
)


def common_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that every transforming command has."""
    return _with(_COMMON, command)


def data_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a command that may see data."""
    return _with(_DATA, command)


def _with(options: tuple[Any, ...], command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(options):
        command = option(command)
    return command


@dataclasses.dataclass
class Job:
    """One run of a transforming command; the fields are its options.

    Attributes:
      model_dir: where from.
      out: where to.
      rules_file, strict, overwrite, as_json: as given.
      data_file, batch_size: as given, for commands that have them.
    """

    model_dir: str
    out: str
    rules_file: str | None
    strict: bool
    overwrite: bool
    as_json: bool
    data_file: str | None = None
    batch_size: int | None = None

    def settings(self, **given: Any) -> dict[str, Any]:
        """Return keyword arguments for the transform: rules, strict, and all that was given."""
        from jaxinfer.core.selectors import read_rules

        if self.batch_size is not None and self.data_file is None:
            raise click.UsageError("--batch-size is of use with --data only")
        rules = () if self.rules_file is None else read_rules(self.rules_file)
        known = {name: value for name, value in given.items() if value is not None}
        return {"rules": rules, "strict": self.strict, **known}

    def run(self, what: str, transform: Transform, *, data_for: str = "") -> None:
        """Load, transform, save and print.

        Args:
          what: the transform, as the progress line has it ("quantizing").
          transform: made before the model is loaded, so wrong settings fail at once.
          data_for: the entry that the model's provenance gets where the data were used.

        Raises:
          ArtefactError: the target is taken, the model cannot be read or written.
          InputError: the data, the rules or the model do not suit.
        """
        from jaxinfer.cli import _arrays, _console
        from jaxinfer.io.artefact import check_target, load, save

        check_target(self.out, overwrite=self.overwrite)
        stages, notes = _console.Stages(), []
        with stages.stage("load", f"loading {self.model_dir}"):
            model = load(self.model_dir)
        earlier = len(audits_of(model))
        _require_stages(model)
        data: tuple[Any, ...] = ()
        if self.data_file is not None:
            data = (_arrays.read_batches(model, self.data_file, self.batch_size, notes),)
        size_before = size_on_disk(self.model_dir)
        with stages.stage("transform", what):
            made = transform(model, *data)
        with stages.stage("write", f"writing {self.out}"):
            save(made, self.out, overwrite=self.overwrite)
        old = notes_of(model)
        notes += [note for note in notes_of(made) if note not in old]
        if data and data_for and made.provenance.get(data_for) is None:
            notes.append(f"--data was not used: nothing needed {data_for}")
        found = audits_of(made)[earlier:]
        summary = {
            "model": self.model_dir,
            "out": self.out,
            "bytes": {"before": model.nbytes, "after": made.nbytes},
            "bytes_on_disk": {"before": size_before, "after": size_on_disk(self.out)},
            "audits": [audit_json(audit) for audit in found],
            "notes": notes,
            "seconds": stages.seconds,
        }
        if self.as_json:
            _console.echo_json(summary)
        else:
            _show(summary, found)


def audits_of(model: Model) -> list[Audit]:
    """Return the audits of a model's transforms.

    Raises:
      ArtefactError: the directory's record of them is not what jaxinfer writes.
    """
    try:
        found = list(model.audit())
        sizes = [entry.before + entry.after for audit in found for entry in audit]
        texts = [(e.path, e.why, e.source) for audit in found for e in audit]
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise ArtefactError(
            f"provenance: audits: malformed: {type(error).__name__}: {error}"
        ) from error
    if not all(type(size) is int for size in sizes) or not all(
        isinstance(text, str) for each in texts for text in each
    ):
        raise ArtefactError("provenance: audits: malformed: required texts and numbers of bytes")
    return found


def _require_stages(model: Model) -> None:
    """Raise ArtefactError if the directory's record of stages is not what jaxinfer writes."""
    found = model.provenance.get("stages", [])
    if not isinstance(found, (list, tuple)) or not all(stage in STAGES for stage in found):
        known = ", ".join(STAGES)
        raise ArtefactError(f"provenance: stages: required a list of {known}, got {found!r:.80}")


def audit_json(audit: Audit) -> dict[str, Any]:
    """Return an audit as a JSON object with names for everything."""
    return {
        "transform": audit.transform,
        "counts": counts_of(audit),
        "before": audit.before,
        "after": audit.after,
        "entries": [dataclasses.asdict(entry) for entry in audit],
    }


def counts_of(audit: Audit) -> dict[str, int]:
    """Return how many parameters have each status."""
    return {status: len(audit.of(status)) for status in STATUSES}


def notes_of(model: Model) -> list[str]:
    """Return the notes in a model's provenance."""
    notes = model.provenance.get("notes")
    return [str(note) for note in notes] if isinstance(notes, (list, tuple)) else []


def size_on_disk(path: str) -> int:
    """Return the bytes of all files of a directory."""
    return sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())


def blocked_rows(audit: Audit) -> list[tuple[str, str, str]]:
    """Return path, reason and source line of every parameter that was in the way."""
    return [(entry.path, entry.why, entry.source) for entry in audit.of("blocked")]


def _show(summary: Mapping[str, Any], audits: list[Audit]) -> None:
    from jaxinfer.cli import _console

    console = _console.out()
    rows = [("model", summary["model"])]
    for audit in audits:
        counts = counts_of(audit)
        rows.append((audit.transform, ", ".join(f"{n} {name}" for name, n in counts.items())))
    for what, key in (("parameters", "bytes"), ("on disk", "bytes_on_disk")):
        before, after = summary[key]["before"], summary[key]["after"]
        share = f" ({after / before:.3g} of it)" if before else ""
        rows.append((what, f"{_console.in_bytes(before)} -> {_console.in_bytes(after)}{share}"))
    rows += [("note", note) for note in summary["notes"]]
    times = ", ".join(f"{stage} {value:.1f} s" for stage, value in summary["seconds"].items())
    console.print(_console.table([*rows, ("time", times)]))
    for audit in audits:
        if blocked := blocked_rows(audit):
            console.print()
            console.print(_console.table(blocked, ("blocked", "by", "at")))
    console.print(f"wrote {summary['out']}", markup=False)
