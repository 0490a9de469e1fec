"""The dtypes of a cast: names, checks, text."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

from jaxinfer.core.errors import InputError, listing

ALIASES = {
    **dict.fromkeys(("bf16", "bfloat16"), "bfloat16"),
    **dict.fromkeys(("f16", "fp16", "float16", "half"), "float16"),
    **dict.fromkeys(("f32", "fp32", "float32"), "float32"),
}
_FIELDS = ("params", "compute", "output", "float64")


@dataclasses.dataclass(frozen=True)
class Policy:
    """The dtypes of parameters, products and outputs: ``bf16``, ``f16`` or ``f32`` (or in full).

    Attributes:
      params: what float32 parameters are stored in; the one of ``compute`` if left out.
      compute: what products take their operands in; the one of ``params`` if left out.
      output: what float outputs come in; "": as the model gives them.
      float64: also cast what is float64 (in a model converted with ``x64=True``).

    Raises:
      InputError: unknown dtypes, or neither params nor compute; all problems at once.

    >>> Policy("bf16", output="f32")
    Policy(params='bfloat16', compute='bfloat16', output='float32', float64=False)
    """

    params: str = ""
    compute: str = ""
    output: str = ""
    float64: bool = False

    def __post_init__(self) -> None:
        problems = []
        for name in ("params", "compute", "output"):
            given = getattr(self, name)
            if given and (problem := dtype_problem(given)):
                problems.append(f"{name}={given}: {problem}")
        if not self.params and not self.compute:
            problems.append("required params or compute, for example params=bf16,compute=bf16")
        if not isinstance(self.float64, bool):
            problems.append(f"float64={self.float64}: required true or false")
        if problems:
            raise InputError(listing("cast: a policy that cannot be used:", problems))
        for name in ("params", "compute", "output"):
            given = getattr(self, name)
            given = given or (self.params or self.compute if name != "output" else "")
            object.__setattr__(self, name, ALIASES.get(given, given))

    @classmethod
    def parse(cls, text: str) -> Policy:
        """Return the policy of ``bf16`` or of ``params=bf16,compute=bf16,output=f32``.

        Raises:
          InputError: unknown or repeated names, unknown dtypes; all problems at once.

        >>> print(Policy.parse("f16"), Policy.parse("compute=bf16, params=f32"))
        params=float16,compute=float16 params=float32,compute=bfloat16
        """
        if "=" not in text:
            return cls(text.strip(), text.strip())
        given: dict[str, Any] = {}
        problems = []
        for item in text.split(","):
            name, found, value = (part.strip() for part in item.partition("="))
            if name not in _FIELDS:
                near = difflib.get_close_matches(name, _FIELDS, n=2) or _FIELDS
                problems.append(f"{item.strip()}: unknown name; known: {', '.join(near)}")
            elif not found or not value:
                problems.append(f"{name}: required a value, for example {name}=bf16")
            elif name in given:
                problems.append(f"{name}: given twice")
            else:
                given[name] = {"true": True, "false": False}.get(value, value)
        try:
            policy = cls(**given)
        except InputError as error:
            problems += [line.strip() for line in str(error).splitlines()[1:]]
        else:
            if not problems:
                return policy
        raise InputError(listing(f"cast: a policy that cannot be used, {text!r}:", problems))

    def __str__(self) -> str:
        shown = [f"{name}={getattr(self, name)}" for name in _FIELDS[:3] if getattr(self, name)]
        return ",".join([*shown, *["float64=true"] * self.float64])

    @property
    def uses_float16(self) -> bool:
        """Whether anything is rounded to float16."""
        return "float16" in (self.params, self.compute, self.output)


def dtype_problem(name: Any) -> str:
    """Return what is wrong with the name of a dtype; "" if nothing is."""
    if isinstance(name, str) and name in ALIASES:
        return ""
    near = difflib.get_close_matches(str(name), ALIASES, n=2) or ("bf16", "f16", "f32")
    return f"unknown dtype {name!r}; known: {', '.join(near)}"
