"""Sides and modules for the tests of the benchmark; imported in processes of their own."""

import os
import signal
import time

import numpy as np


class Prepared:
    """As jaxinfer.tune.bench.Prepared, without importing JAX."""

    compile_s = first_call_ms = None

    def __init__(self, run, outputs, notes=()):
        self.run, self.outputs, self.notes = run, outputs, notes


WEIGHT = np.linspace(-1, 1, 15, dtype=np.float32).reshape(5, 3)


class Numpy:
    """y = x @ W, and whatever else a test asks for."""

    def __init__(self, settings):
        self.settings = settings
        self.facts = {"notes": list(settings.get("notes", ())), "versions": {"numpy": "x"}}
        if "precision" in settings:
            self.facts["precision"] = settings["precision"]
        self.calls = 0
        self.at("open")

    def at(self, place):
        """Do what the settings have for this place."""
        what = self.settings.get(place)
        if what == "raise":
            raise ValueError(f"cannot {place}\nbecause")
        if what == "exit":
            print("a last word", flush=True)
            if os.fork() == 0:  # a child that keeps the pipe open
                time.sleep(600)
            os._exit(3)
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        if what == "hang":
            time.sleep(600)
        if what == "memory":
            raise MemoryError("8 GB")

    def prepare(self, arrays):
        self.at("prepare")
        (x,) = arrays

        def run():
            self.calls += 1
            if self.calls == self.settings.get("after", 5):
                self.at("run")
            if name := self.settings.get("log"):
                with open(name, "a") as file:
                    file.write(f"{self.settings['name']} {len(x)}\n")
            time.sleep(self.settings.get("ms", 0) / 1e3)
            return x @ WEIGHT + self.settings.get("off", 0)

        return Prepared(run, lambda y: [y], ("compiled",))


def numpy_side(settings):
    return Numpy(settings)


def spinner(settings):
    """A side whose thread pool never sleeps."""
    import threading

    def spin():
        while True:
            pass

    threading.Thread(target=spin, daemon=True).start()
    return Numpy(settings)


def echo(settings):
    """A side that returns its environment as numbers."""

    class Adapter:
        facts = {"device": f"on {settings['device'] or 'nothing'}"}  # noqa: RUF012

        def prepare(self, arrays):
            cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
            seen = [int(os.environ["OMP_NUM_THREADS"]), settings["threads"], cpus]
            return Prepared(lambda: None, lambda _: [np.asarray(seen), *arrays])

    return Adapter()


def network():
    """A module with a convolution, a batch norm and nested outputs."""
    import torch

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 8, 3)
            self.norm = torch.nn.BatchNorm2d(8)
            self.head = torch.nn.Linear(8, 5)
            self.norm.running_mean.normal_()

        def forward(self, x):
            y = torch.relu(self.norm(self.conv(x))).mean((2, 3))
            return {"logits": self.head(y), "features": y}

    return Net().eval(), (torch.zeros(2, 3, 7, 11),)


def other_network():
    """Another module with inputs and outputs of the same shapes."""
    import torch

    class Other(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = torch.nn.Conv2d(3, 8, 3)
            self.out = torch.nn.Linear(8, 5)

        def forward(self, x):
            y = torch.tanh(self.stem(x)).mean((2, 3))
            return {"logits": self.out(y), "features": y}

    return Other().eval(), (torch.zeros(2, 3, 7, 11),)
