"""MultiProgram: several functions over one set of parameters (``prefill`` and ``decode``).

Each is a program of its own, with its own signature; the parameters are those that any of
them reads, once. ``Model.components`` gives each as a Model whose leaves are the same arrays.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from jaxinfer.core.errors import InputError
from jaxinfer.core.program import Program, program_kind
from jaxinfer.core.signature import Signature

_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclasses.dataclass(frozen=True, eq=False)
class MultiProgram:
    """Named programs that share parameters, and what a loop around them has to know.

    Attributes:
      programs: program by component name (small letters, digits and underscores).
      settings: plain data for the caller's loop, for example ``{"max_cache_len": 128,
        "eos_token_id": [2]}``. The programs themselves do not read it.
    """

    programs: Mapping[str, Program]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    kind: ClassVar[str] = "multi"
    fixed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        wrong = [name for name in self.programs if not _NAME.fullmatch(name)]
        if wrong or not self.programs:
            raise ValueError(f"components: required names such as 'prefill', got {wrong}")

    @property
    def signature(self) -> Signature:
        """Of nothing: each component has its own."""
        return Signature((), 0, (), (), open=True)

    @property
    def random(self) -> bool:
        """Whether any component samples."""
        return any(program.random for program in self.programs.values())

    @property
    def arrays(self) -> Mapping[str, Any]:
        """The constants of all components, ``component/name``."""
        return {
            f"{name}/{key}": value
            for name, program in self.programs.items()
            for key, value in program.arrays.items()
        }

    @property
    def blobs(self) -> Mapping[str, bytes]:
        """The files of all components, ``components/component/file``."""
        return {
            f"components/{name}/{file}": data
            for name, program in self.programs.items()
            for file, data in program.blobs.items()
        }

    @functools.cached_property
    def param_specs(self) -> Mapping[str, Any] | None:
        """Shape and dtype of each parameter that any component reads; None if one cannot say.

        Raises:
          ValueError: two components read one name with different shapes or dtypes.
        """
        specs: dict[str, Any] = {}
        for name, program in self.programs.items():
            own = getattr(program, "param_specs", None)
            if own is None:
                return None
            for key, aval in own.items():
                if specs.setdefault(key, aval) != aval:
                    raise ValueError(f"{key}: {name} reads {aval}, another {specs[key]}")
        return specs

    @property
    def state_kinds(self) -> Mapping[str, str]:
        """``parameter`` or ``buffer`` for each entry of ``params``."""
        kinds: dict[str, str] = {}
        for program in self.programs.values():
            kinds |= getattr(program, "state_kinds", {})
        return kinds

    def run(self, params: Any, leaves: Sequence[Any], rng_key: Any = None) -> Any:
        """Refuse: one of the components is meant.

        Raises:
          InputError: always.
        """
        del params, leaves, rng_key
        raise InputError(
            f"this model has {len(self.programs)} components; call one of them: "
            + ", ".join(f"model.components[{name!r}]" for name in self.programs)
        )

    def finish(self, flat: Any) -> Any:
        """Return what ``run`` would have."""
        return flat

    def to_json(self) -> dict[str, Any]:
        """Return all but arrays and blobs."""
        programs = {
            name: {"kind": program.kind, **program.to_json()}
            for name, program in self.programs.items()
        }
        return {"programs": programs, "settings": dict(self.settings)}

    @classmethod
    def from_json(
        cls, data: Mapping[str, Any], arrays: Mapping[str, Any], blobs: Callable[[str], bytes]
    ) -> MultiProgram:
        """Rebuild the components from an artefact.

        Raises:
          ValueError: anything malformed, or a component that has components.
        """
        programs: dict[str, Program] = {}
        for name, item in data["programs"].items():
            rest = {key: value for key, value in item.items() if key != "kind"}
            if item["kind"] == cls.kind:
                raise ValueError(f"component {name}: has components itself")
            own = {
                key.removeprefix(f"{name}/"): value
                for key, value in arrays.items()
                if key.startswith(f"{name}/")
            }
            blob = functools.partial(_blob, blobs, name)
            programs[name] = program_kind(item["kind"]).from_json(rest, own, blob)
        if not isinstance(data["settings"], Mapping):
            raise ValueError("settings: required an object")
        return cls(programs, dict(data["settings"]))


def _blob(blobs: Callable[[str], bytes], component: str, file: str) -> bytes:
    return blobs(f"components/{component}/{file}")
