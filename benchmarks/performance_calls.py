"""What a call of the OpenVINO back-end costs beside OpenVINO itself; a part of docs/performance.md.

    python benchmarks/performance_calls.py [--repeats 400]

Three sides in turn, in one process, on the same model in float32 and the same inputs:

    engine  OpenVINO's own request, on inputs that are set already; results stay in its memory
    numpy   our function: inputs are checked and given over, results are new numpy arrays
    call    the executable: the same, and results are JAX arrays, waited for

The models are those of ``performance.py`` (``--train`` makes them).
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

if __name__ == "__main__":  # not this folder, in which ``import openvino`` finds another file
    sys.path[0] = str(pathlib.Path(__file__).parents[1])

from benchmarks import common
from benchmarks.performance_form import SHORT, as_table, ms, paragraph

WHERE = (("digits", 1), ("digits", 8), ("digits", 32), ("language_model", 1), ("minilm", 1))
SIDES = ("engine", "numpy", "call")
BLOCK = 20


def measure(repeats: int) -> list[dict[str, Any]]:
    """Return the times of each model and batch size, in milliseconds."""
    found = []
    for model, batch in WHERE:
        times = common.interleave(sides_of(model, batch), repeats=repeats, block=BLOCK)
        found.append({"model": model, "batch": batch, **times})
        print(model, batch, *(f"{name} {each['median_ms']} ms" for name, each in times.items()))
    return found


def sides_of(name: str, batch: int) -> dict[str, Callable[[], Any]]:
    """Return the three sides of a model at a batch size."""
    import jax
    import numpy as np

    import jaxinfer as ji
    from benchmarks import performance_models as models
    from benchmarks.performance_search import converted
    from jaxinfer.tune.bench._jaxinfer import narrowed

    model, data = ji.load(converted(name)), models.data(name)["search"]
    leaves = [leaf for leaf in model.inputs if leaf.is_array]
    inputs = [np.asarray(data[key][:batch]) for key in models.CASES[name].inputs]
    arrays = narrowed(model, inputs)
    shapes = {leaf.path: array.shape for leaf, array in zip(leaves, arrays, strict=True)}
    executable = ji.compile(model, shapes, backend="openvino", check=False, warm_up=False)
    function: Any = executable._entries[0].code.function
    request, outputs = function._request(), [None] * len(function.out_avals)
    request.run(function._given(arrays), outputs)  # which the request goes on writing to

    def engine(kept: Any = outputs) -> Any:
        return request._request.infer(share_outputs=True)

    return {
        "engine": engine,
        "numpy": lambda: function(arrays),
        "call": lambda: jax.block_until_ready(executable(*arrays)),
    }


def section(results: Mapping[str, Any]) -> list[str]:
    """Return the part of the page."""
    rows = [
        [
            f"{SHORT[each['model']]}, batch {each['batch']}",
            *(_spread(each[name]) for name in SIDES),
            f"{(each['call']['median_ms'] - each['engine']['median_ms']) * 1e3:.0f}",
        ]
        for each in results["calls"]
    ]
    head = [
        "OpenVINO in float32",
        "its request alone, ms",
        "our function, ms",
        "a call, ms",
        "it adds, us",
    ]
    return [
        "## What a call costs beside the computation\n",
        paragraph("""
            Where OpenVINO runs the program, and a call is slower than OpenVINO's own of the same
            model: its request alone, on inputs that it has already; our function, which checks
            inputs (shapes, dtypes, NaN) and gives numpy arrays; the call, which gives JAX arrays
            and waits for them. In turn, in one process; medians and quartiles. The last column is
            the difference of a call from the request alone.
        """),
        as_table(head, rows),
    ]


def _spread(time: Mapping[str, float]) -> str:
    return f"{ms(time['median_ms'])} ({ms(time['p25_ms'])}–{ms(time['p75_ms'])})"


def main() -> None:
    """Measure and write the results."""
    from benchmarks.performance_search import write

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=400, help="timed calls of a side")
    calls = measure(parser.parse_args().repeats)
    data = {"benchmark": "performance", "environment": common.environment()}
    path = common.RESULTS / "performance" / "cpu-calls.json"
    write(path, {**data, "results": {"calls": calls}})


if __name__ == "__main__":
    main()
