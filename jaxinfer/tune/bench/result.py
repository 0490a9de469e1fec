"""What a benchmark found, as plain data: a row for each side at each batch size."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MEASURED, FAILED, MISSING, SKIPPED = "measured", "failed", "missing", "skipped"
WRONG = 1e-3
"""Largest error, as a share of the largest value, that a float32 side may have."""

BUSY = 0.25
"""Cores that other processes may use before a result says that the machine was busy."""

HEADER = (
    *("batch", "side", "median ms", "MAD", "p99", "min", "samples/s", "x best peer"),
    *("error", "compile s", "first ms", "peak MB", "cores"),
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One side at one batch size.

    Attributes:
      side: its name.
      batch: samples in a call; None: the inputs have no axis of samples.
      status: ``measured``; ``failed`` (raised, crashed, was killed, hung); ``missing`` (a package
        is not installed); ``skipped`` (it does not apply here).
      reason: why it was not measured.
      precision: what it computes in, in words; ``f32`` has to agree with the reference.
      times_ms: of single calls, blocking, in the order measured.
      ratio: its median divided by that of the fastest peer (below 1: faster than every peer).
        float32 sides are held against float32 peers, others against all; peers with wrong numbers
        do not count. None: there is no such peer.
      compile_s: seconds from the model in memory to something that is compiled: export,
        conversion, quantization and compilation. torch.compile compiles when it is called, so
        its compile time holds one call.
      first_call_ms: the first call after that.
      load_s: seconds to import the packages and to read the model.
      error: largest difference from the reference's outputs as a share of the largest value of
        each output, the worst of all; integers: the share that differs.
      cosine: between its outputs and the reference's, the least of all.
      wrong: it computes in float32, and ``error`` is above 1e-3 (or is not a number).
      peak_mb: the most memory that the process had while it compiled and ran (resident, 1e6
        bytes); ``base_mb``: after its packages were imported, before the model was read.
      cores: processor time / wall time while it ran: how many cores it kept busy.
      others: cores that were busy with other processes meanwhile (the whole machine); None: the
        system does not tell.
      device: where it ran.
      notes: fallbacks, weights that differ and the like.
    """

    side: str
    batch: int | None
    status: str = MEASURED
    reason: str = ""
    precision: str = "f32"
    times_ms: Sequence[float] = ()
    ratio: float | None = None
    compile_s: float | None = None
    first_call_ms: float | None = None
    load_s: float | None = None
    error: float | None = None
    cosine: float | None = None
    wrong: bool = False
    peak_mb: float | None = None
    base_mb: float | None = None
    cores: float | None = None
    others: float | None = None
    device: str = ""
    notes: Sequence[str] = ()

    @property
    def measured(self) -> bool:
        """Whether there are times."""
        return self.status == MEASURED

    def _statistic(self, of: Any) -> float | None:
        return float(of(np.asarray(self.times_ms))) if len(self.times_ms) else None

    @property
    def median_ms(self) -> float | None:
        """The median time of a call in milliseconds; None without times, as all of these."""
        return self._statistic(np.median)

    @property
    def mad_ms(self) -> float | None:
        """The median distance from the median in milliseconds."""
        return self._statistic(lambda times: np.median(np.abs(times - np.median(times))))

    @property
    def p99_ms(self) -> float | None:
        """The 99th percentile; of fewer than a hundred calls it is near the largest."""
        return self._statistic(lambda times: np.percentile(times, 99))

    @property
    def min_ms(self) -> float | None:
        """The fastest call in milliseconds."""
        return self._statistic(np.min)

    @property
    def throughput(self) -> float | None:
        """Samples per second by the median."""
        return (self.batch or 1) * 1e3 / self.median_ms if self.median_ms else None

    def replace(self, **changes: Any) -> Row:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object, the statistics included; numbers that JSON lacks become text."""
        data = dataclasses.asdict(self)
        data["times_ms"] = [round(t, 5) for t in self.times_ms]
        data["calls"] = len(self.times_ms)
        names = ("median_ms", "mad_ms", "p99_ms", "min_ms", "throughput")
        data |= {name: getattr(self, name) for name in names}
        return {name: _plain(value) for name, value in data.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Row:
        """Rebuild a row of what ``to_json`` gave."""
        known = {field.name for field in dataclasses.fields(cls)}
        found = {name: value for name, value in data.items() if name in known}
        for name in ("error", "cosine"):
            if isinstance(found.get(name), str):
                found[name] = float(found[name])
        return cls(**found)

    def cells(self) -> tuple[str, ...]:
        """Return the row of a table, as ``HEADER`` names it."""
        head = ("-" if self.batch is None else str(self.batch), self.side)
        if not self.measured:
            return (*head, self.status, *("",) * (len(HEADER) - 3))
        error = _number(self.error, ".1e") + (" WRONG" if self.wrong else "")
        return (
            *head,
            *(_ms(t) for t in (self.median_ms, self.mad_ms, self.p99_ms, self.min_ms)),
            _number(self.throughput, ".4g"),
            _number(self.ratio, ".2f"),
            error,
            _number(self.compile_s, ".2f"),
            _ms(self.first_call_ms),
            _number(self.peak_mb, ".0f"),
            _number(self.cores, ".1f"),
        )


@dataclasses.dataclass(frozen=True)
class BenchResult:
    """All sides at all batch sizes.

    Attributes:
      label: what was run, in words.
      rows: by batch, then by side, in the order asked for.
      reference: the side that ``error`` is measured against, by batch ("" if none ran).
      sizes: of the other named dimensions.
      repeats, block, seed, threads: as given, and as chosen.
      environment: processor, versions, load average before and after, date, command.
      notes: about the whole run.
      profiles: files written by ``profile``.
    """

    label: str
    rows: Sequence[Row]
    reference: str = ""
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    repeats: int = 0
    block: int = 0
    seed: int = 0
    threads: int = 0
    environment: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()
    profiles: Sequence[str] = ()

    def row(self, side: str, batch: int | None = None) -> Row:
        """Return the row of a side; ``batch`` None: its only or first one.

        Raises:
          KeyError: there is none.
        """
        for each in self.rows:
            if each.side == side and batch in (None, each.batch):
                return each
        raise KeyError(f"no row of {side} at batch {batch}")

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        data = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        data |= {"rows": [row.to_json() for row in self.rows]}
        for name in ("sizes", "environment"):
            data[name] = dict(data[name])
        for name in ("notes", "profiles"):
            data[name] = list(data[name])
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BenchResult:
        """Rebuild what ``to_json`` gave.

        Raises:
          TypeError: fields that are none.
        """
        return cls(**{**data, "rows": [Row.from_json(row) for row in data["rows"]]})

    def cells(self) -> list[tuple[str, ...]]:
        """Return the rows of a table, as ``HEADER`` names them."""
        return [row.cells() for row in self.rows]

    def remarks(self) -> list[str]:
        """Return what is to be read with the table: reasons, wrong numbers, notes; once each."""
        found: dict[str, None] = {}
        for row in self.rows:
            at = "" if row.batch is None else f" at batch {row.batch}"
            if row.reason:
                found[f"{row.side}{at}: {row.status}: {row.reason}"] = None
            if row.wrong:
                found[
                    f"{row.side}{at}: WRONG NUMBERS: error {_number(row.error, '.1e')} against "
                    f"{self.reference}, allowed {WRONG:g}"
                ] = None
        for row in self.rows:
            found |= {f"{row.side}: {note}": None for note in row.notes}
        busy = [row.others for row in self.rows if row.others is not None]
        if busy and float(np.median(busy)) > BUSY:
            found[
                f"the machine was busy: other processes kept {np.median(busy):.1f} cores busy "
                "meanwhile, so these times say little (OpenMP, which torch uses, suffers most)"
            ] = None
        return [*found, *self.notes]

    def table(self) -> str:
        """Return everything as plain text: the table, and what is to be read with it."""
        rows = [HEADER, *self.cells()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if place == 1 else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        return "\n".join([*lines, *self.remarks()])


def with_ratios(rows: Sequence[Row], peers: Sequence[str]) -> list[Row]:
    """Return the rows with ``ratio`` filled in; ``peers`` are the sides to be compared with."""
    filled = []
    for row in rows:
        rivals = [
            other.median_ms
            for other in rows
            if other.side in peers
            and other.batch == row.batch
            and other.median_ms
            and not other.wrong
            and (row.precision != "f32" or other.precision == "f32")
        ]
        if rivals and row.median_ms:
            row = row.replace(ratio=row.median_ms / min(rivals))
        filled.append(row)
    return filled


def difference(want: Sequence[np.ndarray], got: Sequence[np.ndarray]) -> tuple[float, float, str]:
    """Return the largest error and the least cosine of two lists of outputs, and what differs else.

    The error of an output is max |got - want| / max |want| in float64, and of integers and
    booleans the share that differs. Where one is NaN or infinite and the other is not the same,
    the error is infinite.
    """
    if len(want) != len(got):
        return math.inf, 0.0, f"{len(got)} outputs, the reference has {len(want)}"
    error, cosine, fault = 0.0, 1.0, ""
    for place, (w, g) in enumerate(zip(want, got, strict=True)):
        if w.shape != g.shape:
            return math.inf, 0.0, f"output {place} is {list(g.shape)}, required {list(w.shape)}"
        if not w.size:
            continue
        if w.dtype.kind in "biu":
            error = max(error, float(np.mean(w != g)))
            continue
        wide = np.complex128 if w.dtype.kind == "c" else np.float64
        a, b = w.astype(wide).ravel(), g.astype(wide).ravel()
        finite = np.isfinite(a)
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        if not (np.isfinite(b) | same)[finite].all() or not same[~finite].all():
            return math.inf, 0.0, f"output {place}: NaN or infinity in other places"
        a, b = a[finite], b[finite]
        if not a.size:
            continue
        scale = float(np.abs(a).max()) or 1.0
        error = max(error, float(np.abs(b - a).max()) / scale)
        norms = float(np.linalg.norm(a / scale) * np.linalg.norm(b / scale))
        if norms:
            cosine = min(cosine, abs(complex(np.vdot(a / scale, b / scale))) / norms)
        elif a.any() or b.any():
            cosine = 0.0
    return error, cosine, fault


def _ms(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if value < 10 else f"{value:.2f}" if value < 100 else f"{value:.1f}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _plain(value: Any) -> Any:
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value
