"""Run coverage suites and write docs/coverage.md.

    python -m benchmarks.coverage [--suite NAME] [--only GLOB] [--failed] [--missing]

Without --suite: all of them. Every name runs in a worker process: one that aborts or hangs costs
that name and no more. Results are written as they come; --only, --failed and --missing replace
only what they run.
"""

from __future__ import annotations

import fnmatch
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.coverage import report, results
from benchmarks.coverage.common import Case
from benchmarks.coverage.workers import run_all


@click.command(help=__doc__)
@click.option(
    "--suite", "suites", multiple=True, metavar="NAME", help=f"Of {', '.join(report.ORDER)}."
)
@click.option("--only", metavar="GLOB", help="Only names that match.")
@click.option("--failed", is_flag=True, help="Only names with a case that did not pass.")
@click.option("--missing", is_flag=True, help="Only names without a result.")
@click.option("--workers", default=2, show_default=True)
@click.option("--limit", type=int, help="At most so many names of each suite.")
@click.option("--report", "only_report", is_flag=True, help="Run nothing, write the page.")
@click.option("--quiet", is_flag=True, help="No line for each failure.")
def main(
    suites: tuple[str, ...],
    only: str | None,
    failed: bool,
    missing: bool,
    workers: int,
    limit: int | None,
    only_report: bool,
    quiet: bool,
) -> None:
    for name in () if only_report else suites or results.written_suites(report.ORDER):
        _run(name, only, failed, missing, workers, limit, quiet)
    report.write()


def _run(
    suite: str,
    only: str | None,
    failed: bool,
    missing: bool,
    workers: int,
    limit: int | None,
    quiet: bool,
) -> None:
    module = results.load_suite(suite)
    every = module.names()
    book = results.Book(suite, module)
    wanted = [name for name in every if only is None or fnmatch.fnmatch(name, only)]
    if failed:
        wanted = [name for name in wanted if book.failed(name)]
    if missing:
        wanted = [name for name in wanted if not book.has(name)]
    whole = limit is None and wanted == every
    wanted = wanted[:limit]
    console = Console(stderr=True)
    columns = (
        *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()),
        *(TimeRemainingColumn(), TextColumn("{task.fields[state]}", markup=False)),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(suite, total=len(wanted), state="")
        for name, cases in run_all(suite, wanted, workers, module.TIMEOUT):
            book.add(name, cases)
            progress.update(task, advance=1, state=book.summary())
            for case in () if quiet else cases:
                if case.status == "fail":
                    console.print(_line(case), markup=False, highlight=False)
    if whole:
        book.keep_only(every)
    book.write()
    console.print(f"{suite}: {book.summary()}", markup=False, highlight=False)


def _line(case: Case) -> str:
    return f"fail {case.name}: {case.reason}"


if __name__ == "__main__":
    main()
