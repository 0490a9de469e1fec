"""Rules for ONNX operators that differ from PyTorch's, keyed ``onnx.<Op>``. Importing registers.

No onnx is needed: a rule sees JAX arrays, Python numbers, dtype names, and numpy arrays where
ONNX computes shapes with tensors (``onnx.host.*``: numpy in, numpy out, while JAX traces).
Formulas are those of the specification, https://onnx.ai/onnx/operators/.
"""

import importlib
import pkgutil

for _module in sorted(info.name for info in pkgutil.iter_modules(__path__)):
    if not _module.startswith("_"):
        importlib.import_module(f"{__name__}.{_module}")
