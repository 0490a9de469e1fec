"""Results of searches that never ran, for the tests of the report and of the command."""

import dataclasses

import numpy as np

from jaxinfer.tune.candidate import Candidate
from jaxinfer.tune.measurement import Measurement
from jaxinfer.tune.results import Layer, Results, pareto

LEVELS = ("bf16", "f16", "W8A16", "W8A8", "W8A8-static", "bf16+W8A16", "bf16+W8A8", "W4A16")


def measured(candidate, p50, drop, calls=20, **changes):
    """A measurement whose times have this median."""
    times = p50 * np.linspace(0.9, 1.1, calls)
    settings = {
        "stage": "structure",
        "times_ms": tuple(map(float, times)),
        "batch": 8,
        "peak_bytes": 300_000_000,
        "weight_bytes": 100_000_000,
        "compile_s": 2.0,
        "first_call_ms": 3 * p50,
        "metric": 0.8 - drop,
        "drop": drop,
        "similarity": {"cosine": 1 - drop / 10, "max": drop},
    }
    return Measurement(candidate.to_json(), candidate.label, **{**settings, **changes})


def results(
    n=8,
    rejected=6,
    *,
    max_drop=0.005,
    drop=lambda i: 0.0006 * i,
    p50=lambda i: 80 - 5 * i,
    **changes,
):
    """Results of n candidates that were measured and some that were not.

    The first is the baseline; the fastest that is allowed is chosen.
    """
    found = []
    for i in range(n):
        level = "f32" if i == 0 else LEVELS[i % 8]
        candidate = Candidate(precision=level, fold=i % 2 == 1, unroll=i >= 8)
        far = drop(i) > max_drop
        reason = f"drop {drop(i):.4g}, allowed {max_drop:.4g}" if far else ""
        found.append(measured(candidate, p50(i), drop(i), reason=reason))
    for i in range(rejected):
        candidate = Candidate(precision=LEVELS[i % 8], layout="NCHW")
        kind, reason = (
            ("rejected", f"bound: no call is faster than {90 + i} ms here, f32 takes 40 ms"),
            ("failed", "no rule for erf_inv"),
        )[i % 2]
        found.append(
            Measurement(
                candidate.to_json(), candidate.label, "precision", kind, reason, bound_ms=90.0
            )
        )
    allowed = [i for i in range(n) if not found[i].reason]
    layers = tuple(
        Layer(
            f"encoder.layer.{i}.attention", 590_000, 10**9, LEVELS[i % 3], 10.0 ** (-i - 1),
            "W8A8", 1.0 + i, (1.0 + i) / 10, 0.5, 0.5 / (1 + i),
        )
        for i in range(4)
    )  # fmt: skip
    made = Results(
        model="Model(graph, 9 values)",
        objective="latency",
        metric="top1",
        reference=0.8,
        max_drop=max_drop,
        drop_kind="absolute",
        constraints={"p99_ms": 200.0},
        measurements=tuple(found),
        baseline=0,
        chosen=min(allowed, key=lambda i: found[i].p50_ms, default=None),
        front=tuple(pareto(found)),
        layers=layers,
        device={"bandwidth": 1.4e10},
        environment={"jax": "0.10.1", "device": "cpu"},
        seconds={"reference": 2.0, "structure": 6.0},
        notes=("the back-end openvino was not tried: not installed",),
    )
    return dataclasses.replace(made, **changes)
