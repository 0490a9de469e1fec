"""Cases for aten/rnn.py."""

import numpy as np

from tests.aten.harness import case, covered_by, rand

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def _arguments(name, layers=1, both=False, bias=True, project=0, kind="float32", batch_first=False):
    """(input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first)."""
    gates, directions, hidden, features = GATES[name], 1 + both, 3, 5
    out = project or hidden
    params = []
    for layer in range(layers):
        for direction in range(directions):
            inputs = features if layer == 0 else directions * out
            shapes = [(gates * hidden, inputs), (gates * hidden, out)]
            shapes += [(gates * hidden,)] * 2 if bias else []
            shapes += [(out, hidden)] if project else []
            seed = 10 * layer + 5 * direction
            params += [rand(*s, dtype=kind, seed=seed + n) * 0.5 for n, s in enumerate(shapes)]
    params = [p.astype(rand(1, dtype=kind).dtype) for p in params]
    h = rand(layers * directions, 2, out, dtype=kind)
    c = rand(layers * directions, 2, hidden, dtype=kind, seed=1)
    x = rand(2, 7, features, dtype=kind) if batch_first else rand(7, 2, features, dtype=kind)
    hx = [h, c] if name == "lstm" else h
    return [x, hx, params, bias, layers, 0.0, False, both, batch_first]


def _drop(name, rate, layers=2):
    args = _arguments(name, layers)
    args[5:7] = rate, True
    return args


def _drops_everything(outputs):
    """With every input of layer 2 dropped, all batch rows with one state see the same input."""
    assert all(np.isfinite(out).all() for out in outputs)


def _layers(name):
    return [
        case(*_arguments(name)),
        case(*_arguments(name, layers=3, batch_first=True)),
        case(*_arguments(name, both=True)),
        case(*_arguments(name, layers=2, both=True, bias=False, batch_first=True)),
        case(*_drop(name, 0.7, layers=1)),  # dropout is between layers: none here
        # torch rounds the gates too at each of 7 steps; here only the state is rounded
        case(*_arguments(name, layers=2, kind="bfloat16"), rtol=5e-2, atol=5e-2),
        case(*_drop(name, 0.3), check=_drops_everything),
    ]


def _cell(name):
    x, hx, params, *_ = _arguments(name)
    state = [h[0] for h in hx] if name == "lstm" else hx[0]
    return [case(x[0], state, *params), case(x[0], state, *params[:2])]


CASES = {}
for _name in GATES:
    CASES[f"aten.{_name}.input"] = _layers(_name)
    CASES[f"aten.{_name}_cell.default"] = _cell(_name)
    CASES[f"aten.{_name}.data"] = [covered_by("aten/test_refusals.py::test_packed_sequences")]
CASES["aten.lstm.input"] += [
    case(*_arguments("lstm", project=2)),
    case(*_arguments("lstm", layers=2, both=True, bias=False, project=2)),
]
