"""An engine whose numbers are formulas: what a search decides is then known beforehand."""

import hashlib
import zlib

import numpy as np

GROUPS = tuple(f"layer.{i}" for i in range(8))


class FakeEngine:
    """``ms``: time by precision and back-end; ``harm``: drop of each group at each level."""

    def __init__(
        self, ms=None, harm=None, factors=None, *, batch=4, noise=0.0, broken=(), facts=None
    ):
        self.ms = {"f32": 10.0, "bf16": 6.0, "W8A16": 12.0, "W8A8": 4.0, "int8": 3.0} | (ms or {})
        self.harm = {"bf16": 1e-4, "W8A16": 1e-4, "W8A8": 1e-3, "int8": 1e-3} | (harm or {})
        self.factors = {"fold": 0.9, "openvino": 0.95, "whole": 1.2, "blocked": 1.5} | (
            factors or {}
        )
        self.noise, self.broken = noise, set(broken)
        self.facts = {"batch": batch, "attention": True, "convolutions": False, "scans": False}
        self.facts |= facts or {}
        self.log = []
        self.dead = None  # raises KeyboardInterrupt at that step

    def _step(self, kind, what):
        self.log.append((kind, what))
        if self.dead is not None and len(self.log) >= self.dead:
            raise KeyboardInterrupt

    def levels(self, candidate):
        own = dict(candidate.groups)
        return [own.get(name, candidate.precision) for name in GROUPS]

    def milliseconds(self, candidate):
        levels = self.levels(candidate)
        each = np.mean([self.ms[level] for level in levels])
        for name, factor in self.factors.items():
            if name in (candidate.backend, candidate.attention) or (
                getattr(candidate, name, False) is True
            ):
                each *= factor
        for name, _ in candidate.options:
            each *= self.factors.get(name, 1.0)
        return each * (candidate.batch or self.facts["batch"]) / self.facts["batch"]

    def drop(self, candidate):
        total = 0.0
        for number, level in enumerate(self.levels(candidate)):
            if level != "f32":
                total += self.harm[level] * (2.0 ** (number - len(GROUPS) / 2))
        return total

    def build(self, candidate):
        self._step("build", candidate)
        if candidate.label in self.broken:
            return {"failed": "XlaRuntimeError: it does not compile"}
        size = {"f32": 4, "bf16": 2}.get(candidate.precision, 1)
        return {
            "compile_s": 1.0, "first_call_ms": 2 * self.milliseconds(candidate), "notes": [],
            "peak_bytes": 1000 * size, "weight_bytes": 800 * size,
        }  # fmt: skip

    def judge(self, candidate, full):
        self._step("judge", candidate)
        drop = self.drop(candidate)
        wrong = 1.0 if f"wrong {candidate.label}" in self.broken else drop
        return {"metric": 0.9 - drop, "drop": drop, "similarity": {"max": wrong}}

    def time(self, candidates, calls):
        self._step("time", candidates)
        times = {}
        for each in candidates:
            seed = zlib.crc32(f"{each.key} {len(self.log)}".encode())
            wobble = 1 + self.noise * np.random.default_rng(seed).standard_normal(calls)
            times[each.key] = (self.milliseconds(each) * wobble).tolist()
        return times

    def learn(self, run_s):
        self.learned = run_s

    def same(self, candidate):
        return candidate.unroll

    def bound(self, candidate):
        return 20.0 if candidate.precision == "f16" else 0.5

    def sensitivities(self, level):
        self._step("sensitivities", level)
        return {name: 2.0**number * 1e-3 for number, name in enumerate(GROUPS)}

    def savings(self, level):
        return dict.fromkeys(GROUPS, 1.0)


def digest(value):
    return hashlib.sha256(repr(value).encode()).hexdigest()
