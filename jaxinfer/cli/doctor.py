"""``jaxinfer doctor``: versions, devices, memory and numerics of this installation.

A version is judged by the table of known-bad versions, and the numbers by probes that detect
wrong ones themselves, whatever the version says. torch is looked up, not imported.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import click

_ENVIRONMENT = ("XLA_FLAGS", "JAX_PLATFORMS", "JAX_ENABLE_X64", "JAX_DEFAULT_MATMUL_PRECISION")


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, and nothing else.")
def command(as_json: bool) -> None:
    """Check versions, devices and numerics; exit 1 if a version or a result is wrong.

    The probes run on the default device, and on the CPU too if that is another.
    """
    from jaxinfer.cli import _console, _versions

    versions = _versions.installed()
    findings = version_findings(versions)
    started = time.perf_counter()
    devices, probed = _devices(), _probe_all()
    findings += probed
    failed = [finding for finding in findings if finding.status == "fail"]
    described = {
        "ok": not failed,
        "versions": versions,
        "devices": devices,
        "host_memory": _host_memory(),
        "settings": _settings(),
        "checks": [vars(finding) for finding in findings],
        "seconds": round(time.perf_counter() - started, 2),
    }
    if as_json:
        _console.echo_json(described)
    else:
        _show(described, findings)
    if failed:
        raise click.exceptions.Exit(1)


def version_findings(versions: dict[str, str | None]) -> list[Any]:
    """Return one failed finding for each known-bad version that is installed, or one that is ok."""
    from jaxinfer.cli._probes import Finding
    from jaxinfer.cli._versions import known_bad

    bad = known_bad(versions)
    if not bad:
        return [Finding("versions", "ok", "none is known to be bad")]
    return [
        Finding(f"{item.package} {item.version}", "fail", f"{item.what} ({item.link})", item.advice)
        for item in bad
    ]


def _probe_all() -> list[Any]:
    import dataclasses

    import jax

    from jaxinfer.cli import _probes

    platforms = [jax.devices()[0]]
    if platforms[0].platform != "cpu":
        platforms += _cpu()
    findings = []
    for device in platforms:
        with jax.default_device(device):
            found = [_probes.run(probe) for probe in _probes.probes()]
            found.append(_probes.matmul_precision())
        where = f" on {device.platform}" if len(platforms) > 1 else ""
        findings += [dataclasses.replace(one, check=one.check + where) for one in found]
    return findings


def _cpu() -> list[Any]:
    """Return the CPU device, if JAX was not told to leave it out (JAX_PLATFORMS)."""
    import jax

    try:
        return [jax.devices("cpu")[0]]
    except RuntimeError:
        return []


def _devices() -> list[dict[str, Any]]:
    import jax

    described = []
    for device in jax.devices():
        memory = device.memory_stats() or {}
        described.append(
            {
                "id": device.id,
                "platform": device.platform,
                "kind": device.device_kind,
                "memory": memory.get("bytes_limit"),
                "in_use": memory.get("bytes_in_use"),
            }
        )
    return described


def _host_memory() -> dict[str, int | None]:
    """Return total and available bytes of the host, as far as the system says."""
    sizes: dict[str, int | None] = {"total": None, "available": None}
    names = {"total": "SC_PHYS_PAGES", "available": "SC_AVPHYS_PAGES"}
    for key, name in names.items():
        if name in getattr(os, "sysconf_names", {}):
            sizes[key] = os.sysconf(name) * os.sysconf("SC_PAGE_SIZE")
    return sizes


def _settings() -> dict[str, Any]:
    import jax

    from jaxinfer.core._compat import x64_enabled

    precision = getattr(jax.config, "jax_default_matmul_precision")  # noqa: B009 (typed as unknown)
    return {
        "x64": x64_enabled(),
        "matmul_precision": precision or "default",
        "environment": {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
    }


def _show(described: dict[str, Any], findings: Sequence[Any]) -> None:
    from jaxinfer.cli import _console

    console = _console.out()
    versions = [(name, text or "not installed") for name, text in described["versions"].items()]
    console.print(_console.table(versions))
    console.print()
    size = lambda count: _console.in_bytes(count) if count is not None else "unknown"
    rows = [
        (
            "device",
            f"{device['id']}: {device['platform']} ({device['kind']})"
            + (f", memory {size(device['memory'])}" if device["memory"] else ""),
        )
        for device in described["devices"]
    ]
    host, settings = described["host_memory"], described["settings"]
    rows += [
        ("host memory", f"{size(host['total'])}, {size(host['available'])} free"),
        ("64-bit types", "on" if settings["x64"] else "off (int64 is computed in int32)"),
        ("matmul precision", settings["matmul_precision"]),
    ]
    rows += [(name, value) for name, value in settings["environment"].items()]
    console.print(_console.table(rows))
    console.print()
    console.print(_console.table([(f.status.upper(), f.check, f.detail) for f in findings]))
    advice = dict.fromkeys(f.advice for f in findings if f.advice and f.status != "ok")
    if advice:
        console.print("\nWhat to do:")
        for text in advice:
            console.print(f"  {text}", markup=False)
    console.print("\nok" if described["ok"] else "\nthis installation is not to be trusted")
