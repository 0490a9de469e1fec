"""``jaxinfer launch``: who is named, that all end, and that nothing stays behind.

Most programs here are a few lines of Python without JAX: what is tested is the launcher.
"""

import contextlib
import io
import os
import pathlib
import queue
import signal
import subprocess
import sys
import textwrap
import threading
import time
import types

import pytest
from click.testing import CliRunner

from jaxinfer.cli import _launch
from jaxinfer.cli._launch import LaunchError, launch
from jaxinfer.cli._launch_env import Settings, environment
from jaxinfer.cli.launch import command
from jaxinfer.core.errors import InputError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs process groups")
PROGRAMS = pathlib.Path(__file__).parent / "programs"


def program(code):
    head = "import os, sys, time, signal, subprocess; me = int(os.environ['JAX_PROCESS_ID'])\n"
    return [sys.executable, "-S", "-c", head + textwrap.dedent(code)]


def run(code, processes=2, **options):
    """Launch a program; returns what it wrote to stdout and stderr, as text."""
    out, err = io.BytesIO(), io.BytesIO()
    argv = program(code) if isinstance(code, str) else code
    try:
        launch(argv, Settings(processes, **options), out=out, err=err)
    finally:
        run.out, run.err = out.getvalue().decode(), err.getvalue().decode()
    return run.out, run.err


def alive(pid):
    """Return whether a process runs; one that waits to be reaped does not."""
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def test_prefixes_and_logs(tmp_path):
    out, err = run(
        """
        print("hello")
        print("it is odd", file=sys.stderr)
        sys.stdout.write("no end of line")
        """,
        processes=3,
        log_dir=tmp_path / "logs",
    )
    want = [f"[{i}] {text}" for i in range(3) for text in ("hello", "no end of line")]
    assert sorted(out.splitlines()) == sorted(want)
    assert sorted(err.splitlines()) == [f"[{i}] it is odd" for i in range(3)]
    for index in range(3):
        log = (tmp_path / "logs" / f"process-{index}.log").read_text()
        assert "it is odd" in log
        assert "hello\nno end of line" in log.replace("it is odd\n", "")


def test_plain():
    out, err = run(
        "print('first'); print('[Gloo] Rank 1 is connected'); print('result', me)", plain=True
    )
    assert out == "first\nresult 0\n"
    assert "[1] result 1\n" in err
    assert "[0] [Gloo] Rank 1 is connected\n" in err


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("sys.exit(3)", "process 1 of 2 ended with code 3"),
        ("os.kill(os.getpid(), 9)", "process 1 of 2 was ended by SIGKILL (9); somebody killed it"),
        ("os.abort()", "process 1 of 2 was ended by SIGABRT (6); it ended itself"),
        ("os.kill(os.getpid(), 40)", "process 1 of 2 was ended by a signal (40)"),
    ],
)
def test_the_first_failure_ends_all(code, message):
    started = time.monotonic()
    with pytest.raises(LaunchError) as error:
        run(
            f"""
            print(os.getpid(), flush=True)
            if me == 1:
                print("the reason", file=sys.stderr)
                sys.stderr.flush()
                {code}
            time.sleep(600)
            """
        )
    assert time.monotonic() - started < 300  # it did not sleep
    text = str(error.value)
    assert text.startswith(f"launch: {message}")
    assert "the last lines of process 1 on stderr:\n  the reason\n" in text
    assert text.endswith("ended with it: process 0")
    pids = [int(line.split()[1]) for line in run.out.splitlines()]
    assert not any(map(alive, pids))


def test_the_log_is_named(tmp_path):
    with pytest.raises(LaunchError, match=f"all output is in {tmp_path}"):
        run("sys.exit(1)", processes=1, log_dir=tmp_path)


def test_stacks_are_left_out_of_the_message():
    with pytest.raises(LaunchError) as error:
        run(
            "sys.exit('F0 fatal\\n*** Check failure stack trace: ***\\n    @ 0x1 f()')", processes=1
        )
    assert str(error.value).splitlines()[2:] == ["  F0 fatal"]


def test_who_ignores_sigterm_is_killed():
    with pytest.raises(LaunchError):
        run(
            """
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            print(os.getpid(), flush=True)
            if me == 1:
                time.sleep(0.2)
                sys.exit(1)
            time.sleep(600)
            """,
            grace=0.1,
        )
    assert not any(alive(int(line.split()[1])) for line in run.out.splitlines())


def test_what_a_process_has_started_ends_with_it():
    """Also where the process itself ended well: its group holds what it left behind."""
    for end in ("sys.exit(0)", "sys.exit(1)"):
        code = f"""
            made = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
            print(made.pid, flush=True)
            {end}
            """
        if end == "sys.exit(0)":
            run(code, processes=1)
        else:
            with pytest.raises(LaunchError):
                run(code, processes=1)
        (line,) = run.out.splitlines()
        until = time.monotonic() + 10
        while alive(int(line.split()[1])) and time.monotonic() < until:
            time.sleep(0.01)  # it is no child of ours: it is reaped when it is
        assert not alive(int(line.split()[1]))


def test_timeout():
    with pytest.raises(LaunchError, match=r"the time is over: processes 0, 1 still ran after 0\.3"):
        run("time.sleep(600)", timeout=0.3, grace=1)


def test_one_ends_early_and_the_other_waits():
    text = r"process 1 came to the end, and process 0 still ran 0\.2 s later"
    with pytest.raises(LaunchError, match=text):
        run("me or time.sleep(600)", apart=0.2)
    with pytest.raises(LaunchError, match=text):  # in JAX's barrier at the end: said by the pipe
        run("me and os.write(int(os.environ['JAXINFER_LAUNCH']), b'.'); time.sleep(600)", apart=0.2)
    run("me or time.sleep(0.3)", apart=100)


def test_all_at_their_end_may_take_their_time():
    """The limit is for those that still run: here both are at JAX's barrier, then end."""
    children = [types.SimpleNamespace(index=i, code=None, leaving=True) for i in range(2)]
    ended = queue.SimpleQueue()

    def end():
        for child in children:
            ended.put(child)
        time.sleep(0.2)  # far more than apart
        for child in children:
            child.code = 0
            ended.put(child)

    thread = threading.Thread(target=end)
    thread.start()
    assert _launch._supervise(children, ended, Settings(2, apart=0.01)) is None
    thread.join()


@contextlib.contextmanager
def launcher(options="", first=""):
    """A launcher in a process of its own, with two programs; yields it and their numbers."""
    code = program(f"{first}; print(os.getpid(), flush=True); time.sleep(600)".lstrip("; "))
    text = (  # a shell that runs the tests in the background has them ignore SIGINT: not this
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"from jaxinfer.cli._launch import Settings, launch; launch({code!r}, Settings(2{options}))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as made:
        try:
            yield made, [int(made.stdout.readline().split()[1]) for _ in range(2)]
        finally:
            made.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_launcher(number):
    """Ctrl-C and kill of the launcher itself end all."""
    with launcher(", grace=0.2") as (made, pids):
        assert all(map(alive, pids))
        made.send_signal(number)
        _, err = made.communicate(timeout=60)
        assert "KeyboardInterrupt" in err
        assert not any(map(alive, pids))


def test_a_second_interrupt_does_not_wait():
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    with launcher(", grace=3000", deaf) as (made, pids):
        made.send_signal(signal.SIGINT)
        while made.poll() is None:  # a signal that comes before the first was heard is the first
            time.sleep(0.1)
            with contextlib.suppress(ProcessLookupError):
                made.send_signal(signal.SIGTERM)
        assert not any(map(alive, pids))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells a child")
def test_killed_launcher():
    with launcher() as (made, pids):
        assert all(map(alive, pids))
        made.kill()
        made.communicate(timeout=60)
        until = time.monotonic() + 10
        while any(map(alive, pids)) and time.monotonic() < until:
            time.sleep(0.01)
        assert not any(map(alive, pids))


def test_a_program_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="launch: no-such-program: no such program"):
        run(["no-such-program"])
    file = tmp_path / "program"
    file.write_text("#!/no/such/interpreter")
    file.chmod(0o755)
    with pytest.raises(LaunchError, match=f"{file}: cannot be started: No such file"):
        run([str(file)])


def test_a_system_without_groups(monkeypatch):
    monkeypatch.setattr(_launch.os, "name", "nt")
    with pytest.raises(InputError, match="process groups, which this system lacks"):
        launch(["true"], Settings(1))


def test_environment():
    base = {"XLA_FLAGS": "--a --xla_force_host_platform_device_count=3 --b", "HOME": "/h"}
    first, second = (environment(Settings(2, 4, apart=7), i, 1234, base) for i in range(2))
    assert first["HOME"] == "/h"
    assert first["JAX_COORDINATOR_ADDRESS"] == "127.0.0.1:1234"
    assert first["JAX_COORDINATOR_BIND_ADDRESS"] == "127.0.0.1:1234"  # not on every interface
    assert (first["JAX_NUM_PROCESSES"], first["JAX_PROCESS_ID"]) == ("2", "0")
    assert first["JAX_NUM_CPU_DEVICES"] == "4"
    assert first["JAX_CPU_COLLECTIVES_IMPLEMENTATION"] == "gloo"
    assert first["JAX_PLATFORMS"] == "cpu"
    assert first["XLA_FLAGS"] == "--a --b"
    assert int(first["JAXINFER_SHUTDOWN_TIMEOUT"]) > 7  # the launcher speaks first
    assert second == first | {"JAX_PROCESS_ID": "1"}
    assert "no_proxy" not in first
    proxied = environment(Settings(1), 0, 1, {"http_proxy": "p", "no_proxy": "x"})
    assert proxied["no_proxy"] == "x,127.0.0.1,localhost"
    assert proxied["JAX_CHECK_PROXY_ENVS"] == "false"


def test_cuda_devices_are_divided():
    settings = Settings(2, 2, "cuda")
    made = [environment(settings, i, 1, {}) for i in range(2)]
    assert [env["CUDA_VISIBLE_DEVICES"] for env in made] == ["0,1", "2,3"]
    assert "JAX_NUM_CPU_DEVICES" not in made[0]
    base = {"CUDA_VISIBLE_DEVICES": "7,3,GPU-a,0,1"}
    made = [environment(settings, i, 1, base) for i in range(2)]
    assert [env["CUDA_VISIBLE_DEVICES"] for env in made] == ["7,3", "GPU-a,0"]
    with pytest.raises(InputError, match="need 4, CUDA_VISIBLE_DEVICES=7,3,1 has 3"):
        environment(settings, 0, 1, {"CUDA_VISIBLE_DEVICES": "7,3,1"})


def test_command(monkeypatch):
    seen = []
    monkeypatch.setattr(_launch, "launch", lambda *a: seen.append(a))
    line = (
        "-n 2 --devices-per-process 4 --plain --timeout 9 --log-dir d -- python p.py --plain -n 3"
    )
    done = CliRunner().invoke(command, line.split())
    assert done.exit_code == 0, done.output
    ((argv, settings),) = seen
    assert argv == ("python", "p.py", "--plain", "-n", "3")
    want = Settings(2, 4, "cpu", pathlib.Path("d"), True, 9.0, 300.0, 5.0)
    assert settings == want
    for wrong in ("-- true", "-n 0 -- true", "-n 2", "-n 2 --timeout 0 -- true"):
        assert CliRunner().invoke(command, wrong.split()).exit_code == 2


def some(*codes):
    """Processes that have ended with codes, or still run (None)."""
    return [
        types.SimpleNamespace(index=i, code=code, leaving=False, tail=["a line"])
        for i, code in enumerate(codes)
    ]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_who_was_killed_is_blamed_whoever_is_seen_first(order):
    """The one whose connection broke may be seen to end first."""
    children = some(1, -signal.SIGKILL, None)
    ended = queue.SimpleQueue()
    for index in order:
        ended.put(children[index])
    fault = _launch._supervise(children, ended, Settings(3))
    assert fault.text.startswith("process 1 of 3 was ended by SIGKILL (9)")
    assert fault.also == {0}
    text = _launch._message(fault, children, [2], Settings(3))
    assert "ended with it: processes 0, 2" in text


def test_an_abort_is_not_blamed_for_the_fault_before_it():
    children = some(1, -signal.SIGABRT)
    ended = queue.SimpleQueue()
    for child in children:
        ended.put(child)
    fault = _launch._supervise(children, ended, Settings(2))
    assert fault.text == "process 0 of 2 ended with code 1"
