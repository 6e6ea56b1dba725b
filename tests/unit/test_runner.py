"""How a worker ends: real child processes that do what native code does to a process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pytest_ondevice.model.ending import Kind
from pytest_ondevice.probe import runner
from pytest_ondevice.probe.protocol import MeasureJob, ModelJob

JOB = MeasureJob(artifact="model.gguf")
LONG = 20.0
"""A timeout that no test may reach."""

WORKER = """
import json, os, signal, sys, time

def say(event, stage="", **fields):
    line = json.dumps({"event": event, "stage": stage, **fields}).encode() + b"\\n"
    write(line)

def write(data):
    with open(request["events"], "ab", buffering=0) as file:
        file.write(data)

def log(text):
    os.write(2, (text + "\\n").encode())

def done(stage, **payload):
    say("start", stage)
    say("done", stage, payload=payload)

def lasting():
    # A process of the worker's that goes on after it, unless somebody ends it.
    child = os.fork()
    if child:
        return child
    time.sleep(60)
    os._exit(0)

"""
READING = "request = json.loads(sys.stdin.buffer.read())\n"


class Started:
    """Stands for ``subprocess`` in the runner: starts a script in place of the worker."""

    def __init__(self):
        self.script = ""
        self.processes = []
        self.arguments = []

    def Popen(self, argv, **options):  # noqa: N802
        self.arguments.append((argv, options))
        argv = [sys.executable, "-I", "-S", "-c", WORKER + self.script]
        self.processes.append(subprocess.Popen(argv, **options))
        return self.processes[-1]

    def __getattr__(self, name):
        return getattr(subprocess, name)


@pytest.fixture
def started(monkeypatch):
    stand_in = Started()
    monkeypatch.setattr(runner, "subprocess", stand_in)
    monkeypatch.setattr(runner, "_oom_kills", lambda: 3)
    yield stand_in
    for process in stand_in.processes:
        if process.poll() is None:
            process.kill()
            process.wait()
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()


@pytest.fixture
def run(started):
    """Run a script as the worker: the request is read before it unless ``reading`` is False."""

    def run_script(script, *, job=JOB, timeout=LONG, reading=True, **options):
        started.script = (READING if reading else "") + script
        return runner.run(job, timeout=timeout, **options)

    return run_script


def only_ending(result, stage):
    assert list(result.endings) == [stage]
    ending = result.endings[stage]
    assert ending.stage == stage
    return ending


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # What is dead and not yet reaped is dead.
    return Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0] != "Z"


def gone(pid, seconds=3.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not alive(pid):
            return True
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    return False


# The good end


def test_a_worker_that_ends_well(run, started):
    events = []
    result = run(
        """
done("start", system_info="AVX2 = 1")
say("start", "memory")
say("progress", "memory", done=1, total=3)
say("done", "memory", payload={"peak": 12, "buffers_mib": {"a": 1.5}, "none": None})
say("end")
""",
        on_event=events.append,
    )
    assert result.endings == {}
    assert result.payloads == {
        "start": {"system_info": "AVX2 = 1"},
        "memory": {"peak": 12, "buffers_mib": {"a": 1.5}, "none": None},
    }
    assert [(event.event, event.stage) for event in events] == [
        ("start", "start"),
        ("done", "start"),
        ("start", "memory"),
        ("progress", "memory"),
        ("done", "memory"),
        ("end", ""),
    ]
    assert (events[3].done, events[3].total) == (1, 3)
    ((argv, options),) = started.arguments
    assert argv == [sys.executable, "-m", "pytest_ondevice.probe.worker"]
    # Its own folder, which is gone with everything in it.
    assert not Path(options["cwd"]).exists()


def test_the_request_says_what_to_do_and_for_whom(run):
    job = ModelJob(artifact="m.gguf", call="generate", text="Grüße \x00 ☃", max_tokens=3)
    result = run('done("request", **request); done("cwd", at=os.getcwd()); say("end")', job=job)
    request = result.payloads["request"]
    assert request["parent"] == os.getpid()
    assert request["job"]["type"] == "ModelJob"
    assert request["job"]["text"] == "Grüße \x00 ☃"
    assert str(Path(request["events"]).parent) == result.payloads["cwd"]["at"]


def test_a_request_of_any_size_arrives(run):
    job = ModelJob(artifact="m", call="tokenize", text="x" * 1_000_000)
    result = run('done("request", n=len(request["job"]["text"])); say("end")', job=job)
    assert result.payloads == {"request": {"n": 1_000_000}}


def test_events_arrive_while_the_worker_runs(run, tmp_path):
    # It ends only when it has seen that its first event was heard.
    heard = tmp_path / "heard"

    def on_event(event):
        if event.event == "done":
            heard.touch()

    result = run(
        f"""
done("memory", peak=1)
while not os.path.exists({str(heard)!r}):
    time.sleep(0.01)
say("end")
""",
        on_event=on_event,
    )
    assert result.endings == {}


def test_every_event_is_heard_once(run):
    heard = []
    result = run(
        """
say("start", "speed")
for i in range(5):
    say("progress", "speed", done=i)
    time.sleep(0.12)
say("end")
""",
        on_event=heard.append,
    )
    assert result.payloads == {}
    assert [event.done for event in heard if event.event == "progress"] == [0, 1, 2, 3, 4]
    assert len(heard) == 7


# Ends of a stage


def test_a_stage_that_fails_is_no_end_of_the_others(run):
    result = run("""
log("last words")
say("start", "memory")
say("failed", "memory", error="EngineError: cannot load it")
done("speed", decode=[1.0])
say("end")
""")
    ending = only_ending(result, "memory")
    assert (ending.kind, ending.message, ending.hint) == (
        Kind.ERROR,
        "EngineError: cannot load it",
        "",
    )
    assert ending.log == ("last words",)
    assert result.payloads == {"speed": {"decode": [1.0]}}


REINSTALL = (
    "llama-cpp-python was compiled for another CPU; reinstall it here with"
    " `pip install --force-reinstall --no-cache-dir llama-cpp-python`"
)
SIGNALS = {
    "SIGSEGV": (Kind.CRASH, "SIGSEGV in stage memory: segmentation fault in native code", ""),
    "SIGBUS": (
        Kind.CRASH,
        "SIGBUS in stage memory: bus error",
        "was the file cut short while it was mapped?",
    ),
    "SIGILL": (
        Kind.CRASH,
        "SIGILL in stage memory: illegal instruction",
        REINSTALL,
    ),
    "SIGABRT": (
        Kind.CRASH,
        "SIGABRT in stage memory: abort",
        "an assertion of the runtime failed; see its last lines",
    ),
    "SIGFPE": (Kind.CRASH, "SIGFPE in stage memory: arithmetic fault in native code", ""),
    "SIGTERM": (Kind.KILLED, "SIGTERM in stage memory: killed", ""),
    "SIGKILL": (
        Kind.KILLED,
        "killed by SIGKILL in stage memory",
        "most often the kernel's out-of-memory killer or a limit of the container",
    ),
}


@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_is_named_with_stage_and_hint(run, name):
    result = run(f"""
import resource
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
done("start")
log("loading model")
log("....")
log("GGML_ASSERT(n > 0) failed")
say("start", "memory")
os.kill(os.getpid(), signal.{name})
time.sleep(60)
""")
    ending = only_ending(result, "memory")
    assert (ending.kind, ending.message, ending.hint) == SIGNALS[name]
    assert ending.log == ("loading model", "GGML_ASSERT(n > 0) failed")
    assert result.payloads == {"start": {}}


def test_a_signal_without_a_name_is_told_by_number(run):
    number = signal.SIGRTMIN + 3
    result = run(f'say("start", "memory"); os.kill(os.getpid(), {number}); time.sleep(60)')
    ending = only_ending(result, "memory")
    assert ending.kind is Kind.KILLED
    assert ending.message == f"signal {number} in stage memory: killed"


def test_killed_for_want_of_memory_is_told_apart(run, monkeypatch):
    counts = iter([3, 4])
    monkeypatch.setattr(runner, "_oom_kills", lambda: next(counts))
    ending = only_ending(
        run('say("start", "memory"); os.kill(os.getpid(), 9); time.sleep(60)'), "memory"
    )
    assert ending.kind is Kind.OUT_OF_MEMORY
    assert ending.message == "killed by the kernel for want of memory in stage memory"
    assert ending.hint == "use a smaller model or method, or free memory"


def test_a_death_before_any_stage_is_of_the_start(run):
    ending = only_ending(run("os.kill(os.getpid(), 11); time.sleep(60)"), "start")
    assert ending.message == "SIGSEGV in stage start: segmentation fault in native code"


def test_a_death_between_stages_says_after_which(run):
    result = run('done("memory", peak=1); os.kill(os.getpid(), 11); time.sleep(60)')
    ending = only_ending(result, "memory")
    assert ending.message == "SIGSEGV after stage memory: segmentation fault in native code"
    # What was measured before stands all the same.
    assert result.payloads == {"memory": {"peak": 1}}


def test_what_arrived_before_a_crash_was_heard(run):
    heard = []
    result = run(
        """
done("memory", peak=1)
done("validate", valid=True)
say("start", "speed")
os.kill(os.getpid(), signal.SIGSEGV)
time.sleep(60)
""",
        on_event=lambda event: heard.append((event.event, event.stage)),
    )
    assert result.payloads == {"memory": {"peak": 1}, "validate": {"valid": True}}
    assert only_ending(result, "speed").kind is Kind.CRASH
    assert [stage for event, stage in heard if event == "done"] == ["memory", "validate"]


@pytest.mark.parametrize(
    ("script", "kind", "message"),
    [
        ("pass", Kind.NO_RESULT, "the worker ended without a result in stage memory"),
        (
            "raise ValueError('of all things')",
            Kind.NO_RESULT,
            "the worker exited with 1 in stage memory: ValueError: of all things",
        ),
        ("os._exit(3)", Kind.NO_RESULT, "the worker exited with 3 in stage memory"),
        (
            "raise MemoryError",
            Kind.OUT_OF_MEMORY,
            "the worker exited with 1 in stage memory: MemoryError",
        ),
        (
            "sys.exit('the host ended before the worker began')",
            Kind.NO_RESULT,
            "the worker exited with 1 in stage memory: the host ended before the worker began",
        ),
    ],
)
def test_an_end_without_a_result(run, script, kind, message):
    ending = only_ending(run(f'say("start", "memory")\n{script}'), "memory")
    assert (ending.kind, ending.message, ending.hint) == (kind, message, "")


@pytest.mark.parametrize(
    "death", ["os.kill(os.getpid(), 11); time.sleep(60)", "os.abort()", "os._exit(1)", "1 / 0"]
)
def test_a_crash_at_teardown_harms_nobody(run, death):
    result = run(f"""
import resource
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
done("memory", peak=1)
say("end")
{death}
""")
    assert result.endings == {}
    assert result.payloads == {"memory": {"peak": 1}}


def test_a_hang_at_teardown_harms_nobody(run):
    result = run('done("memory", peak=1); say("end"); time.sleep(60)', timeout=0.5)
    assert result.endings == {}
    assert result.payloads == {"memory": {"peak": 1}}


def test_a_worker_that_never_reads_its_request(run, started):
    # More than a pipe holds, so that writing it meets its closed end.
    job = ModelJob(artifact="m", call="tokenize", text="x" * 300_000)
    for script in ("os._exit(0)", "os._exit(4)"):
        ending = only_ending(run(script, job=job, reading=False), "start")
        assert ending.kind is Kind.NO_RESULT
        # Nothing is left open for the garbage collector to complain of in somebody's test.
        stdin = started.processes[-1].stdin
        assert stdin is None or stdin.closed


def test_a_worker_that_hangs_before_it_reads_is_a_timeout(run, started):
    # The pipe is full: the host must not wait for somebody to empty it.
    job = ModelJob(artifact="m", call="tokenize", text="x" * 300_000)

    def rescue():
        for process in started.processes:
            process.kill()

    timer = threading.Timer(5, rescue)
    timer.start()
    try:
        result = run("time.sleep(60)", job=job, reading=False, timeout=0.5)
        rescued = not timer.is_alive()
    finally:
        timer.cancel()
        timer.join()
    assert not rescued
    assert only_ending(result, "start").kind is Kind.TIMEOUT


# Silence


def test_a_hang_is_stopped(run, started):
    result = run(
        'done("memory", peak=1); say("start", "speed"); log("hm"); time.sleep(60)', timeout=0.5
    )
    ending = only_ending(result, "speed")
    assert ending.kind is Kind.TIMEOUT
    assert ending.message == "no sign of life for 0.5 s in stage speed; stopped"
    assert ending.hint == "raise --ondevice-timeout if the device is only slow"
    assert ending.log == ("hm",)
    assert result.payloads == {"memory": {"peak": 1}}
    assert started.processes[0].returncode == -signal.SIGKILL


def test_a_worker_that_ignores_every_signal_is_stopped(run, started):
    run(
        """
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
time.sleep(60)
""",
        timeout=0.5,
    )
    assert started.processes[0].returncode == -signal.SIGKILL


@pytest.mark.parametrize("sign", ['log("still here")', 'say("progress", "speed")'])
def test_signs_of_life_keep_a_slow_worker(run, sign):
    result = run(
        f"""
say("start", "speed")
for _ in range(12):
    {sign}
    time.sleep(0.2)
done("speed", n=1)
say("end")
""",
        timeout=1.5,
    )
    assert result.endings == {}
    assert result.payloads == {"speed": {"n": 1}}


def test_a_hang_takes_what_it_started_along(run):
    result = run('done("child", pid=lasting()); say("start", "speed"); time.sleep(60)', timeout=0.5)
    assert only_ending(result, "speed").kind is Kind.TIMEOUT
    assert gone(result.payloads["child"]["pid"])


@pytest.mark.parametrize(
    "end", ["os.kill(os.getpid(), 11); time.sleep(60)", "os._exit(1)", 'say("end"); os._exit(0)']
)
def test_what_a_worker_leaves_running_is_ended_with_it(run, end):
    # It has inherited the device lock, so it would keep everybody else waiting.
    result = run(f'done("child", pid=lasting()); {end}')
    assert gone(result.payloads["child"]["pid"])


def test_ctrl_c_ends_the_worker(run, started):
    # From within, as a signal to the host would.
    def on_event(event):
        if event.stage == "speed":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(
            'done("memory"); say("start", "speed"); lasting(); time.sleep(60)',
            on_event=on_event,
        )
    assert started.processes[0].returncode == -signal.SIGKILL


def test_what_was_said_before_ctrl_c_stands(run):
    # The host sleeps between two looks; the interruption comes before it has looked again.
    heard = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(
                """
time.sleep(0.3)
done("memory", peak=1)
os.kill(request["parent"], signal.SIGINT)
time.sleep(60)
""",
                on_event=heard.append,
            )
    finally:
        signal.signal(signal.SIGINT, before)
    assert [(event.event, event.payload) for event in heard] == [
        ("start", {}),
        ("done", {"peak": 1}),
    ]


def test_a_real_sigint_ends_the_worker_and_all_it_started(run, started, tmp_path):
    note = tmp_path / "pids"

    def interrupt():
        end = time.monotonic() + LONG
        while not (note.exists() and note.read_text().endswith("\n")):
            if time.monotonic() > end:
                return
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            run(f"""
with open({str(note)!r}, "w") as file:
    print(lasting(), file=file)
time.sleep(60)
""")
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)
    assert started.processes[0].returncode == -signal.SIGKILL
    assert gone(int(note.read_text()))


def test_the_worker_has_a_group_of_its_own(run):
    # A Ctrl-C on the terminal reaches the host's group only; the host decides what ends.
    result = run('done("group", id=os.getpgid(0), session=os.getsid(0)); say("end")')
    assert result.payloads["group"]["id"] == result.payloads["group"]["session"] != os.getpgid(0)


# Torn and odd


def test_a_torn_last_event_is_tolerated(run):
    result = run("""
done("memory", peak=1)
say("start", "speed")
write(b'{"event":"done","stage":"speed","payl')
os.kill(os.getpid(), signal.SIGKILL)
time.sleep(60)
""")
    assert result.payloads == {"memory": {"peak": 1}}
    assert only_ending(result, "speed").kind is Kind.KILLED


def test_an_event_in_two_pieces_is_one_event(run):
    result = run("""
say("start", "memory")
write(b'{"event":"done","stage":"mem')
time.sleep(0.3)
write(b'ory","payload":{"peak":7}}\\n')
say("end")
""")
    assert result.payloads == {"memory": {"peak": 7}}
    assert result.endings == {}


@pytest.mark.parametrize(
    "line", [b"garbage\\n", b"[]\\n", b'{"event":1}\\n', b'{"event":"\\xff"}\\n', b"\\0\\0\\n"]
)
def test_a_line_that_is_no_event_is_no_event(run, line):
    # A full disk tears a line, and space that is freed lets the next one follow it.
    result = run(f"""
done("memory", peak=1)
write(b'{line.decode()}')
say("start", "speed")
os.kill(os.getpid(), signal.SIGSEGV)
time.sleep(60)
""")
    assert result.payloads == {"memory": {"peak": 1}}
    assert only_ending(result, "speed").kind is Kind.CRASH


def test_an_event_of_a_later_version_is_read(run):
    result = run('say("news"); done("memory", peak=1); say("end", later=[1])')
    assert result.payloads == {"memory": {"peak": 1}}
    assert result.endings == {}


def test_output_of_native_code_is_the_log(run):
    result = run("""
os.write(1, b"\\x00\\xff\\xfe garbage \\x1b[31m\\n")
os.write(2, b"x" * 100_000 + b"\\n")
for i in range(40):
    os.write(1 + i % 2, b"line %d   \\n" % i)
os.write(2, b"\\n   \\n.....\\n. . .\\nno newline at the end \\xff")
say("start", "memory")
os._exit(1)
""")
    ending = only_ending(result, "memory")
    assert ending.log == (*(f"line {i}" for i in range(29, 40)), "no newline at the end \ufffd")
    assert ending.message.endswith("in stage memory: no newline at the end \ufffd")


def test_a_worker_without_a_word_has_no_log(run):
    assert only_ending(run("os._exit(1)"), "start").log == ()


# What a worker may see and hold


def test_no_secrets_are_passed_on(run, monkeypatch):
    for name in (
        "HF_TOKEN",
        "GITHUB_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "SSH_AUTH_SOCK",
        "PYTEST_ADDOPTS",
        "OMP_NUM_THREADS",
        "MY_PASSWORD",
        "LD_PRELOAD_",
    ):
        monkeypatch.setenv(name, "secret")
    for name in ("PATH", "HOME", "TMPDIR", "LANG", "VIRTUAL_ENV", "GGML_CPU_X"):
        monkeypatch.setenv(name, f"/its/{name}")
    monkeypatch.delenv("TEMP", raising=False)
    seen = run('done("seen", **os.environ); say("end")').payloads["seen"]
    assert "secret" not in seen.values()
    assert "TEMP" not in seen
    for name in ("PATH", "HOME", "TMPDIR", "LANG", "VIRTUAL_ENV", "GGML_CPU_X"):
        assert seen[name] == f"/its/{name}"
    assert seen["HF_HUB_OFFLINE"] == "1"
    assert seen["OPENBLAS_NUM_THREADS"] == "1"
    # Python itself may add LC_CTYPE in the C locale.
    allowed = {*runner._ENVIRONMENT, "HF_HUB_OFFLINE", "OPENBLAS_NUM_THREADS"}
    rest = {name for name in seen if not name.startswith("GGML_")} - allowed
    assert rest <= {"PYTHONDONTWRITEBYTECODE", "LC_CTYPE"}


def test_descriptors_are_kept_open_only_on_request(run, tmp_path):
    with (tmp_path / "lock").open("w") as file, (tmp_path / "other").open("w") as other:
        os.set_inheritable(other.fileno(), True)
        result = run(
            """
def open_files():
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink("/proc/self/fd/" + name)
        except OSError:
            pass
    return found
done("open", **open_files()); say("end")
""",
            keep_open=[file.fileno()],
        )
        seen = result.payloads["open"]
        assert seen[str(file.fileno())] == str(tmp_path / "lock")
        assert str(tmp_path / "other") not in seen.values()


LOCK_HOLDER = """
import fcntl, os, sys, types, subprocess
from pytest_ondevice.devices import locked
from pytest_ondevice.probe import runner
from pytest_ondevice.probe.protocol import MeasureJob
from pathlib import Path

class Started:
    def __getattr__(self, name):
        return getattr(subprocess, name)
    def Popen(self, argv, **options):
        script = "import time; print('running', flush=True); time.sleep(60)"
        process = subprocess.Popen([sys.executable, "-I", "-S", "-c", script], **options)
        print(process.pid, flush=True)
        return process

runner.subprocess = Started()
with locked(Path(sys.argv[1])) as descriptor:
    runner.run(MeasureJob(artifact="m"), timeout=60, keep_open=[descriptor])
"""


def held(path):
    with path.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def test_the_lock_is_held_as_long_as_the_worker_lives(run, started, tmp_path):
    path, note = tmp_path / "lock", tmp_path / "note"
    path.touch()
    seen = []

    def on_event(event):
        if event.event == "done":
            # The host lets go of it, as a host does that is killed.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.close(descriptor)
            seen.append(held(path))
            note.touch()

    descriptor = os.open(path, os.O_RDWR)
    result = run(
        f"""
done("started")
while not os.path.exists({str(note)!r}):
    time.sleep(0.01)
say("end")
""",
        on_event=on_event,
        keep_open=[descriptor],
    )
    assert result.endings == {}
    assert seen == [True]
    assert not held(path)


def test_the_lock_outlives_a_killed_host(tmp_path):
    path = tmp_path / "lock"
    host = subprocess.Popen(
        [sys.executable, "-c", LOCK_HOLDER, str(path)], stdout=subprocess.PIPE, text=True
    )
    worker = int(host.stdout.readline())
    try:
        assert held(path)
        host.kill()
        host.wait()
        # This stand-in for a worker does not die with its parent, as a real one does.
        assert alive(worker)
        assert held(path)
    finally:
        os.kill(worker, signal.SIGKILL)
        host.stdout.close()
    assert gone(worker)
    assert not held(path)


# Counting the kernel's kills


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("low 0\nhigh 0\nmax 3\noom 2\noom_kill 2\noom_group_kill 0\n", 2),
        ("low 0\n", 0),
        ("", 0),
        ("nonsense\noom_kill 7\nx y z\n", 7),
        (None, 0),
    ],
)
def test_kills_for_want_of_memory_are_counted(tmp_path, monkeypatch, text, count):
    path = tmp_path / "memory.events"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(runner, "Path", lambda _: path)
    assert runner._oom_kills() == count
