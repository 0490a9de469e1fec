"""``jaxinfer audit SMALL``: what each transform did to every parameter of a model directory."""

from __future__ import annotations

import click


@click.command("audit")
@click.argument("model_dir", metavar="SMALL")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, and nothing else.")
def command(model_dir: str, as_json: bool) -> None:
    """Show what each transform did to every parameter of SMALL, and what was in the way."""
    from jaxinfer.cli import _console
    from jaxinfer.cli._transform import audit_json, audits_of, counts_of
    from jaxinfer.io.artefact import load

    audits = audits_of(load(model_dir))
    if as_json:
        _console.echo_json([audit_json(audit) for audit in audits])
        return
    console = _console.out()
    if not audits:
        console.print("no transform was applied")
    for number, audit in enumerate(audits):
        if number:
            console.print()
        counts = ", ".join(f"{n} {name}" for name, n in counts_of(audit).items())
        sizes = f"{_console.in_bytes(audit.before)} -> {_console.in_bytes(audit.after)}"
        console.print(_console.plain(f"{audit.transform}: {counts}; {sizes}"))
        rows = [
            (
                entry.status,
                entry.path,
                entry.why,
                f"{_console.in_bytes(entry.before)} -> {_console.in_bytes(entry.after)}",
                entry.source,
            )
            for entry in audit
        ]
        console.print(_console.table(rows, ("", "parameter", "what", "bytes", "at")))
