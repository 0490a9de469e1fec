"""Operator rules keyed by overload name, one file a family. Importing this registers all.

No torch is needed: a rule sees JAX arrays, Python numbers and numpy dtypes.
"""

import importlib
import pkgutil

for _module in sorted(info.name for info in pkgutil.iter_modules(__path__)):
    if not _module.startswith("_"):
        importlib.import_module(f"{__name__}.{_module}")
