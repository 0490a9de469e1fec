"""Versions: what is installed (read, not imported), what is needed, and what is known bad."""

from __future__ import annotations

import dataclasses
import platform
from importlib.metadata import PackageNotFoundError, version

from jaxinfer._version import __version__

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "numpy",
    "ml_dtypes",
    "safetensors",
    "torch",
    "transformers",
    "timm",
)
OPTIONAL = ("jax-cuda12-plugin", "jax-cuda13-plugin", "libtpu")
"""Shown only where installed."""


@dataclasses.dataclass(frozen=True)
class KnownBad:
    """A released version that must not be used, why, and where to read about it."""

    package: str
    version: str
    what: str
    link: str
    advice: str


OTHER_JAXLIB = "install a jaxlib without this fault: pip install 'jax!=0.10.2' 'jaxlib!=0.10.2'"

KNOWN_BAD = (
    KnownBad(
        "jaxlib",
        "0.10.2",
        "jit gives wrong numbers on CPU for vmapped matrix-vector products that are reduced",
        "https://github.com/jax-ml/jax/issues/39103",
        OTHER_JAXLIB,
    ),
    KnownBad(
        "jaxlib",
        "0.10.2",
        "arctan of 50 and more values is wrong on CPU (on some processors)",
        "https://github.com/jax-ml/jax/issues/39352",
        OTHER_JAXLIB,
    ),
)


def installed() -> dict[str, str | None]:
    """Return the version of Python and of each package; None if not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "jaxinfer": __version__}
    for package in (*PACKAGES, *OPTIONAL):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            if package in PACKAGES:
                found[package] = None
    return found


def known_bad(versions: dict[str, str | None]) -> list[KnownBad]:
    """Return the entries of ``KNOWN_BAD`` that are installed; local suffixes do not matter.

    >>> [bad.link[-5:] for bad in known_bad({"jaxlib": "0.10.2+cuda13"})]
    ['39103', '39352']
    >>> known_bad({"jaxlib": "0.10.1"})
    []
    """
    return [
        bad for bad in KNOWN_BAD if (versions.get(bad.package) or "").split("+")[0] == bad.version
    ]
