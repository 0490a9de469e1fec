"""The communication of a compiled program, read from its HLO text (``compiled.as_text()``).

    payload   bytes of one collective on one device: the larger of what goes in and what comes out
    wire      bytes that a device sends for it, of p devices in its group, on a ring:
              all-reduce             2 (p - 1) / p * payload
              all-gather, reduce-scatter, all-to-all, ragged-all-to-all     (p - 1) / p * payload
              collective-permute, collective-broadcast                      payload
    loops     a body counts as often as XLA knows that it runs (``known_trip_count``); a loop
              whose trip count is data counts once, and is counted in ``unknown_loops``
    branches  of a conditional the one with most wire bytes counts

An asynchronous pair (``all-gather-start``, ``all-gather-done``) is one collective. Computations
called by ``call``, ``fusion``, ``async-start``, ``while`` and ``conditional`` are followed.

Sources: the HLO text format, https://openxla.org/xla/hlo_ir and
https://openxla.org/xla/operation_semantics; costs of rings: R. Thakur, R. Rabenseifner,
W. Gropp, Optimization of Collective Communication Operations in MPICH, 2005.

What it does not do: time. Nor does it see communication inside custom calls.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

KINDS = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all"),
    *("collective-permute", "collective-broadcast"),
)
"""Kinds of collectives, as HLO names them."""


class Collective(NamedTuple):
    """The collectives of one kind.

    Attributes:
      kind: one of ``KINDS``.
      bytes: payload on one device in one run, summed.
      count: how many run.
    """

    kind: str
    bytes: int
    count: int


class Operation(NamedTuple):
    """One collective of the text.

    Attributes:
      kind: one of ``KINDS``.
      bytes: payload on one device each time that it runs.
      group: devices that take part together.
      times: how often it runs.
      where: the ``op_name`` that JAX gave it, or its name.
    """

    kind: str
    bytes: int
    group: int
    times: int
    where: str

    @property
    def wire(self) -> float:
        """Bytes that one device sends, all runs together."""
        if self.kind in ("collective-permute", "collective-broadcast"):
            return float(self.bytes * self.times)
        share = (self.group - 1) / self.group * self.bytes * self.times
        return 2 * share if self.kind == "all-reduce" else share


@dataclasses.dataclass(frozen=True)
class Communication:
    """The collectives of a program.

    Attributes:
      operations: every collective, in the order of the text.
      unknown_loops: how many loops with collectives have no known trip count.
    """

    operations: tuple[Operation, ...]
    unknown_loops: int = 0

    @property
    def wire(self) -> float:
        """Bytes that one device sends in one run."""
        return sum(operation.wire for operation in self.operations)

    @property
    def by_kind(self) -> list[Collective]:
        """The collectives summed by kind, in the order of ``KINDS``."""
        found = []
        for kind in KINDS:
            own = [op for op in self.operations if op.kind == kind]
            if own:
                payload = sum(op.bytes * op.times for op in own)
                found.append(Collective(kind, payload, sum(op.times for op in own)))
        return found


def collectives(hlo_text: str) -> list[Collective]:
    """Return the collectives of a compiled program by kind; loops in full.

    Args:
      hlo_text: of ``jax.jit(f).lower(...).compile().as_text()``.

    Returns:
      One entry for each kind that there is, bytes of one device in one run. None for a program
      of one device.

    Raises:
      ValueError: the text has no entry computation.
    """
    return communication(hlo_text).by_kind


def communication(hlo_text: str) -> Communication:
    """Return every collective of a compiled program; linear in the text.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations, entry = _computations(hlo_text)
    if entry is None:
        raise ValueError("required the text of a compiled HLO module, got none with an ENTRY")
    match = re.search(r"num_partitions=(\d+)", hlo_text)
    replicas = re.search(r"replica_count=(\d+)", hlo_text)
    devices = int(match[1]) if match else 1
    devices *= int(replicas[1]) if replicas else 1
    return _Walk(computations, devices).of(entry)


class _Instruction(NamedTuple):
    name: str
    shape: str
    opcode: str
    operands: str
    attributes: str


class _Walk:
    """Follows called computations, each parsed once."""

    def __init__(self, computations: dict[str, list[_Instruction]], devices: int):
        self.computations, self.devices = computations, devices
        self.memo: dict[str, Communication] = {}

    def of(self, name: str) -> Communication:
        """Return the collectives of one run of a computation."""
        if name not in self.memo:
            self.memo[name] = Communication(())  # the text has no recursion; a bad one ends here
            instructions = self.computations.get(name, [])
            sizes = {each.name: each.shape for each in instructions}
            found = [self._instruction(each, sizes) for each in instructions]
            operations = tuple(op for each in found for op in each.operations)
            self.memo[name] = Communication(operations, sum(each.unknown_loops for each in found))
        return self.memo[name]

    def _instruction(self, each: _Instruction, sizes: dict[str, str]) -> Communication:
        kind = each.opcode.removesuffix("-start")
        if kind in KINDS:
            return Communication((self._collective(kind, each, sizes),))
        if each.opcode == "while":
            return self._while(each)
        if each.opcode == "conditional":
            branches = [self.of(name) for name in _branches(each.attributes)]
            return max(branches, key=lambda branch: branch.wire, default=Communication(()))
        if each.opcode in ("call", "fusion", "async-start", "custom-call"):
            called = [self.of(name) for name in _called(each.attributes)]
            operations = tuple(op for one in called for op in one.operations)
            return Communication(operations, sum(one.unknown_loops for one in called))
        return Communication(())

    def _while(self, each: _Instruction) -> Communication:
        names = [_attribute(each.attributes, key) for key in ("condition", "body")]
        inside = [self.of(name) for name in names if name]
        operations = [op for one in inside for op in one.operations]
        trips = re.search(r'known_trip_count\\?"?:\{\\?"n\\?":\\?"(\d+)', each.attributes)
        times = int(trips[1]) if trips else 1
        unknown = sum(one.unknown_loops for one in inside)
        unknown += not trips and bool(operations)
        return Communication(
            tuple(op._replace(times=op.times * times) for op in operations if times), unknown
        )

    def _collective(self, kind: str, each: _Instruction, sizes: dict[str, str]) -> Operation:
        group = self._group(kind, each.attributes)
        result = each.shape
        if each.opcode.endswith("-start") and kind in ("all-gather", "collective-permute"):
            parts = _elements(result)  # (operands, results, ...)
            result = parts[1] if len(parts) > 1 else result
        operands = sum(_operand_bytes(text, sizes) for text in _split(each.operands))
        where = re.search(r'op_name="([^"]*)"', each.attributes)
        payload = max(operands, _bytes(result))
        if kind == "reduce-scatter" and not operands:
            payload = _bytes(result) * group
        return Operation(kind, payload, group, 1, where[1] if where else each.name)

    def _group(self, kind: str, attributes: str) -> int:
        if kind == "collective-permute":
            return 2
        listed = re.search(r"replica_groups=\{\{([^}]*)\}", attributes)
        if listed:
            return max(len(listed[1].split(",")), 1)
        named = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes)
        if named:
            return _of_mesh(named[1], named[2])
        tiled = re.search(r"replica_groups=\[(\d+),(\d+)\]<=", attributes)
        return int(tiled[2]) if tiled else max(self.devices, 1)  # {}: all of them


def _of_mesh(axes: str, chosen: str) -> int:
    """Return the size of groups along axes of a mesh, or along parts of axes.

    >>> _of_mesh("'a'=2,'b'=4", "'a','b':(1)2")
    4
    """
    sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", axes)}
    group = 1
    for name, part in re.findall(r"'([^']*)'(?::\(\d+\)(\d+))?", chosen):
        group *= int(part) if part else sizes.get(name, 1)
    return group


# The text: computations, instructions, shapes.


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str | None]:
    found: dict[str, list[_Instruction]] = {}
    entry = current = None
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{\s*$", line)
        if head and " = " not in line.split("{", 1)[0]:
            current = head[2]
            found[current] = []
            entry = current if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None:
            instruction = _parse(line)
            if instruction is not None:
                found[current].append(instruction)
    return found, entry


def _parse(line: str) -> _Instruction | None:
    match = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)
    if match is None:
        return None
    rest = re.sub(r"/\*.*?\*/", "", line[match.end() :])
    end = _close(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    shape, rest = rest[:end], rest[end:].strip()
    opened = rest.find("(")
    if opened < 0:
        return None
    closed = _close(rest, opened)
    inside, after = rest[opened + 1 : closed], rest[closed + 1 :]
    return _Instruction(match[1], shape, rest[:opened], inside, after)


def _close(text: str, at: int) -> int:
    """Return where the parenthesis at ``at`` closes."""
    depth = 0
    for index in range(at, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if depth == 0:
            return index
    return len(text)


def _split(text: str) -> list[str]:
    """Split at the commas that are in no bracket."""
    parts, depth, start = [], 0, 0
    for index, char in enumerate(text):
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(char, 0)
        if char == "," and depth == 0:
            parts.append(text[start:index].strip())
            start = index + 1
    return [*parts, text[start:].strip()] if text.strip() else []


def _elements(shape: str) -> list[str]:
    return _split(shape[1:-1]) if shape.startswith("(") else [shape]


def _operand_bytes(text: str, sizes: dict[str, str]) -> int:
    """Return the bytes of an operand, printed with its shape or without."""
    shape, _, name = text.rpartition(" ")
    return _bytes(shape or sizes.get(name.removeprefix("%"), ""))


_ARRAY = re.compile(r"\b(pred|bf16|[suf]\d+\w*|c64|c128)\[([\d,<= ]*)\]")


def _bytes(shape: str) -> int:
    """Return the bytes of an HLO shape; of a tuple, of all that is in it.

    >>> _bytes("(f32[2,3]{1,0:T(8,128)}, s4[5], token[])")
    27
    """
    total = 0
    for kind, dims in _ARRAY.findall(shape):
        values = 1
        for dim in dims.split(",") if dims.strip() else ():
            values *= int(dim.replace("<=", ""))
        total += (values * _bits(kind) + 7) // 8
    return total


def _bits(kind: str) -> int:
    if kind == "pred":
        return 8
    digits = re.match(r"[a-z]+(\d+)", kind)
    return int(digits[1]) if digits else 0


def _attribute(attributes: str, key: str) -> str:
    match = re.search(rf"\b{key}=%?([\w.\-]+)", attributes)
    return match[1] if match else ""


def _names(text: str) -> list[str]:
    return [name.strip().removeprefix("%") for name in text.split(",") if name.strip()]


def _branches(attributes: str) -> Sequence[str]:
    listed = re.search(r"branch_computations=\{([^}]*)\}", attributes)
    if listed:
        return _names(listed[1])
    both = [_attribute(attributes, f"{value}_computation") for value in ("true", "false")]
    return [name for name in both if name]


def _called(attributes: str) -> Iterator[str]:
    for key in ("calls", "to_apply"):
        if name := _attribute(attributes, key):
            yield name
    listed = re.search(r"called_computations=\{([^}]*)\}", attributes)
    yield from _names(listed[1]) if listed else ()
