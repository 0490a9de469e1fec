"""doctor: passes here, and each of its checks fails when given wrong numbers."""

import dataclasses

import numpy as np
import pytest

from jaxinfer.cli import _probes, _versions, doctor

PROBES = _probes.probes()
IDS = [probe.name for probe in PROBES]


def test_this_installation_passes(cli):
    result = cli("doctor")
    assert result.code == 0, result.out + result.err
    for text in ("jaxlib", "device", "host memory", "64-bit types", "jax#39103", "ok"):
        assert text in result.out
    assert "FAIL" not in result.out


def test_json(cli):
    data = cli("doctor", "--json").json
    assert data["ok"] is True
    assert len(data["checks"]) == 1 + len(PROBES) + 1
    assert {check["status"] for check in data["checks"]} <= {"ok", "warn"}
    assert data["devices"]
    assert data["versions"]["jax"]


@pytest.mark.parametrize("probe", PROBES, ids=IDS)
def test_every_probe_finds_one_wrong_value(probe):
    def wrong():
        values = np.array(probe.want(), copy=True)
        values.flat[values.size // 2] += 1 + abs(values.flat[values.size // 2]) * 0.01
        return values

    finding = _probes.run(dataclasses.replace(probe, got=wrong))
    assert finding.status == "fail"
    assert finding.detail.startswith(f"1 of {probe.want().size} values")
    assert finding.advice


@pytest.mark.parametrize("probe", PROBES, ids=IDS)
def test_every_probe_finds_nan_and_a_wrong_shape(probe):
    wanted = np.asarray(probe.want(), np.float64)
    nan = _probes.run(dataclasses.replace(probe, got=lambda: wanted * np.nan))
    short = _probes.run(dataclasses.replace(probe, got=lambda: wanted.reshape(-1)[1:]))
    assert (nan.status, short.status) == ("fail", "fail")


def test_the_wrong_numbers_of_jax_39103_are_found():
    """What jaxlib 0.10.2 gives on CPU: one value, the last, is wrong by 0.8 percent."""
    probe = _probes.row_norms(32769, "float32")

    def wrong():
        values = (np.arange(32769, dtype=np.float64) ** 2).astype(np.float32)
        values[32768] = 1065369600.0
        return values

    finding = _probes.run(dataclasses.replace(probe, got=wrong))
    assert finding.status == "fail"
    assert "the first at [32768]" in finding.detail
    assert "0.10.2" in finding.advice


def test_the_wrong_numbers_of_jax_39352_are_found():
    """arctan that passes some inputs through, as jaxlib 0.10.2 does on some processors."""
    probe = _probes.arctan("float32")

    def wrong():
        values = np.array(probe.want(), np.float32)
        values[60] = np.tan(values[60])
        return values

    assert _probes.run(dataclasses.replace(probe, got=wrong)).status == "fail"


def test_a_probe_that_does_not_run_is_a_failure():
    def broken():
        raise RuntimeError("INTERNAL: no kernel image\nmore")

    finding = _probes.run(dataclasses.replace(PROBES[0], got=broken))
    assert finding.status == "fail"
    assert "no kernel image" in finding.detail


def truncated(x, bits):
    """Round float32 to ``bits`` of fraction, towards zero, as tensor cores do to inputs."""
    mask = np.uint32(0xFFFFFFFF << (23 - bits) & 0xFFFFFFFF)
    return (x.view(np.uint32) & mask).view(np.float32)


@pytest.mark.parametrize(
    ("multiply", "status", "word"),
    [
        (np.matmul, "ok", "float32"),
        (lambda a, b: truncated(a, 10) @ truncated(b, 10), "warn", "TF32"),
        (lambda a, b: truncated(a, 7) @ truncated(b, 7), "warn", "bfloat16"),
        (lambda a, b: (a @ b) * 1.1, "fail", "wrong"),
        (lambda a, b: (a @ b) * np.nan, "fail", "wrong"),
    ],
)
def test_matmul_precision_is_told(multiply, status, word):
    finding = _probes.matmul_precision(multiply)
    assert finding.status == status
    assert word in finding.detail


def test_a_failed_probe_fails_the_command(cli, monkeypatch):
    bad = dataclasses.replace(PROBES[0], got=lambda: PROBES[0].want() + 1)
    monkeypatch.setattr(_probes, "probes", lambda: [bad])
    result = cli("doctor")
    assert result.code == 1
    assert "FAIL" in result.out
    assert "What to do:" in result.out
    assert cli("doctor", "--json").json["ok"] is False


def test_a_known_bad_version_fails_the_command(cli, monkeypatch):
    found = _versions.installed() | {"jaxlib": "0.10.2"}
    monkeypatch.setattr(_versions, "installed", lambda: found)
    monkeypatch.setattr(_probes, "probes", list)
    result = cli("doctor")
    assert result.code == 1
    for number in ("39103", "39352"):
        assert f"https://github.com/jax-ml/jax/issues/{number}" in result.out.replace("\n", "")


def test_known_bad_versions_match_exactly():
    bad = lambda version: _versions.known_bad({"jaxlib": version})
    assert len(bad("0.10.2")) == len(bad("0.10.2+cuda13.local")) == 2
    assert bad("0.10.1") == bad("0.11.0") == bad("0.10.20") == bad(None) == []


def test_torch_is_looked_up_and_not_imported(tmp_path):
    import subprocess
    import sys

    code = (
        "import sys; from jaxinfer.cli import _versions, doctor\n"
        "found = _versions.installed(); doctor._devices(); doctor._settings()\n"
        "assert 'torch' in found; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=tmp_path)


def test_memory_is_in_bytes_or_unknown():
    for size in doctor._host_memory().values():
        assert size is None or size > 10**6
