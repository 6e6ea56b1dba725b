"""The journal: what may stand for a measurement, what survives a crash, which run goes on."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_ondevice.errors import StorageError
from pytest_ondevice.model.ending import Ending, Kind
from pytest_ondevice.storage import journal as module
from pytest_ondevice.storage.journal import RESUME_SECONDS, Journal, Run

KEY = "ab12cd"
CRASH = Ending(kind=Kind.CRASH, stage="memory", message="SIGSEGV in stage memory", log=("a", "b"))


@pytest.fixture
def sessions(tmp_path):
    """Journals over one folder: ``sessions("s1")`` of run r1, ``sessions("s2", "r2")``."""
    return lambda session, run="r1": Journal(tmp_path, run, session)


def file_of(journal, key=KEY):
    (path,) = journal.folder.rglob(f"{key}.jsonl")
    return path


def payload_of(journal, key=KEY, *, any_run=True):
    record = journal.find(key, any_run=any_run)
    return record and record.payload


# What is found


def test_nothing_is_found_before_anything_is_kept(sessions):
    assert sessions("s1").find(KEY, any_run=True) is None
    assert sessions("s1").find(KEY, any_run=False) is None


def test_a_result_is_found_as_it_was_kept(sessions):
    payload = {"ids": ["a:0", "b:1"], "kld": [0.1, None], "text": "Grüße\n\r\u2028", "n": 3}
    kept = sessions("s1").append(KEY, payload=payload)
    assert (kept.run, kept.session, kept.payload) == ("r1", "s1", payload)
    assert sessions("s1").find(KEY, any_run=False) == kept


def test_keys_are_apart(sessions):
    sessions("s1").append("ab0000", payload={"n": 1})
    sessions("s1").append("ab0001", payload={"n": 2})
    assert payload_of(sessions("s1"), "ab0000") == {"n": 1}
    assert payload_of(sessions("s1"), "ab0001") == {"n": 2}
    assert payload_of(sessions("s1"), "ab0002") is None


def test_the_newest_wins(sessions):
    for n in range(5):
        sessions(f"s{n}").append(KEY, payload={"n": n})
    assert payload_of(sessions("s9")) == {"n": 4}
    assert payload_of(sessions("s2")) == {"n": 4}
    assert payload_of(sessions("s2"), any_run=False) == {"n": 4}


@pytest.mark.parametrize(
    ("session", "run", "deterministic", "of_this_run"),
    [
        ("s1", "r1", True, True),
        ("s2", "r1", True, True),  # the session that resumes an interrupted run
        ("s2", "r2", True, False),
    ],
)
def test_only_deterministic_results_leave_their_run(
    sessions, session, run, deterministic, of_this_run
):
    sessions("s1", "r1").append(KEY, payload={"n": 1})
    reader = sessions(session, run)
    assert (reader.find(KEY, any_run=True) is not None) is deterministic
    assert (reader.find(KEY, any_run=False) is not None) is of_this_run


@pytest.mark.parametrize("any_run", [True, False])
def test_an_ending_counts_in_its_own_session_only(sessions, any_run):
    sessions("s1").append(KEY, ending=CRASH)
    own = sessions("s1").find(KEY, any_run=any_run)
    assert own is not None
    assert own.ending == CRASH
    assert own.payload is None
    assert sessions("s2").find(KEY, any_run=any_run) is None


def test_an_ending_of_another_session_hides_no_result(sessions):
    sessions("s1").append(KEY, payload={"n": 1})
    sessions("s2").append(KEY, ending=CRASH)
    assert payload_of(sessions("s1")) == {"n": 1}
    assert sessions("s2").find(KEY, any_run=True).ending == CRASH


def test_a_result_after_an_ending_stands(sessions):
    sessions("s1").append(KEY, ending=CRASH)
    sessions("s1").append(KEY, payload={"n": 2})
    assert payload_of(sessions("s1")) == {"n": 2}


@pytest.mark.parametrize("any_run", [True, False])
def test_what_a_session_voids_later_ones_measure_again(sessions, any_run):
    sessions("s1").append(KEY, payload={"n": 1})
    sessions("s2").append(KEY, payload={"n": 2})
    sessions("s2").void(KEY)
    assert payload_of(sessions("s2"), any_run=any_run) == {"n": 2}
    # Not even the older one, which the void did not judge, is trusted any more.
    assert sessions("s3").find(KEY, any_run=any_run) is None
    sessions("s3").append(KEY, payload={"n": 3})
    assert payload_of(sessions("s3"), any_run=any_run) == {"n": 3}
    assert payload_of(sessions("s4"), any_run=any_run) == {"n": 3}


def test_a_void_concerns_its_key_only(sessions):
    sessions("s1").append("ab0000", payload={"n": 1})
    sessions("s1").append("ab0001", payload={"n": 2})
    sessions("s1").void("ab0000")
    assert payload_of(sessions("s2"), "ab0000") is None
    assert payload_of(sessions("s2"), "ab0001") == {"n": 2}


# Damage


def test_a_torn_last_line_is_no_record(sessions):
    first = sessions("s1").append(KEY, payload={"n": 1})
    sessions("s1").append(KEY, payload={"n": 2})
    path = file_of(sessions("s1"))
    whole = path.read_bytes()
    start = whole.index(b"\n\n") + 1
    for end in range(start, len(whole) - 1):
        path.write_bytes(whole[:end])
        assert sessions("s1").find(KEY, any_run=True) == first, whole[:end]


def test_what_follows_a_torn_line_is_kept(sessions):
    sessions("s1").append(KEY, payload={"n": 1})
    with file_of(sessions("s1")).open("ab") as file:
        file.write(b'{"run":"r1","session":"s1","payload":{"n":')
    sessions("s2").append(KEY, payload={"n": 2})
    assert payload_of(sessions("s1")) == {"n": 2}


GARBAGE = {
    "words": b"garbage",
    "not an object": b"[1, 2, 3]",
    "another object": b'{"n": 1}',
    "wrong type": b'{"run": 1, "session": "s1", "payload": {"n": 9}}',
    "unknown kind": b'{"run":"r1","session":"s1","ending":{"kind":"?","stage":"","message":""}}',
    "zeros": bytes(200),
    "not UTF-8": b'{"run":"r1","session":"\xff\xfe","payload":{"n":9}}',
    "not a number": b'{"run":"r1","session":"s1","payload":{"n":NaN}}',
}


@pytest.mark.parametrize("line", GARBAGE.values(), ids=GARBAGE)
def test_garbage_between_records_is_skipped(sessions, line):
    sessions("s1").append(KEY, payload={"n": 1})
    path = file_of(sessions("s1"))
    path.write_bytes(line + b"\n" + path.read_bytes() + line + b"\n" + line)
    assert payload_of(sessions("s1")) == {"n": 1}
    sessions("s1").append(KEY, payload={"n": 2})
    assert payload_of(sessions("s1")) == {"n": 2}


def test_records_of_a_newer_version_are_read(sessions):
    sessions("s1").append(KEY, payload={"n": 1})
    path = file_of(sessions("s1"))
    path.write_bytes(path.read_bytes().replace(b'{"run"', b'{"added_later":[1],"run"'))
    assert payload_of(sessions("s1")) == {"n": 1}


def test_a_folder_that_is_a_file_is_one_sentence(tmp_path):
    place = tmp_path / "journal"
    place.write_text("in the way")
    with pytest.raises(StorageError, match=rf"^{place}.*: cannot write it: "):
        Journal(place, "r1", "s1").append(KEY, payload={"n": 1})


def test_a_record_that_the_disk_takes_in_part_is_an_error(sessions, monkeypatch):
    # A full disk makes write(2) take what still fits, without an error.
    sessions("s1").append(KEY, payload={"n": 1})
    real, left = os.write, [20]

    def filling(descriptor, data):
        if not left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data[: left.pop()])

    monkeypatch.setattr(module.os, "write", filling)
    with pytest.raises(StorageError, match="cannot write it"):
        sessions("s1").append(KEY, payload={"n": 2})
    monkeypatch.undo()
    assert payload_of(sessions("s1")) == {"n": 1}
    sessions("s1").append(KEY, payload={"n": 3})
    assert payload_of(sessions("s1")) == {"n": 3}


# Against an oracle

OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["payload", "ending", "void", "torn", "garbage"]),
        st.sampled_from([("r1", "s1"), ("r1", "s2"), ("r2", "s3")]),
        st.sampled_from(["ab0001", "ab0002"]),
    ),
    max_size=14,
)


def oracle(done, run, session, *, any_run):
    """What serves, by the rules as they are written: from the newest record backwards."""
    for kind, (its_run, its_session), number in reversed(done):
        if kind == "void" and its_session != session:
            return None
        if kind == "ending" and its_session == session:
            return number
        if kind == "payload" and (any_run or its_run == run):
            return number
    return None


@settings(max_examples=120, deadline=None, derandomize=True, database=None)
@given(OPERATIONS)
def test_finds_what_the_rules_say(operations):
    with tempfile.TemporaryDirectory() as folder:
        done = {"ab0001": [], "ab0002": []}
        for number, (kind, who, key) in enumerate(operations):
            journal = Journal(Path(folder), *who)
            if kind == "payload":
                journal.append(key, payload={"n": number})
            elif kind == "ending":
                message = str(number)
                journal.append(key, ending=Ending(kind=Kind.CRASH, stage="", message=message))
            elif kind == "void":
                journal.void(key)
            elif done[key]:
                text = b'{"run":"r1","session"' if kind == "torn" else b"\x00\n{}\n\ngarbage\n"
                with file_of(journal, key).open("ab") as file:
                    file.write(text)
                continue
            else:
                continue
            done[key].append((kind, who, number))
        for key, records in done.items():
            for run, session in [("r1", "s1"), ("r1", "s2"), ("r2", "s3"), ("r2", "s4")]:
                for any_run in (True, False):
                    found = Journal(Path(folder), run, session).find(key, any_run=any_run)
                    number = None
                    if found is not None:
                        number = int(found.ending.message) if found.ending else found.payload["n"]
                    assert number == oracle(records, run, session, any_run=any_run)


# More than one process

WRITER = """
import sys, time
from pathlib import Path
from pytest_ondevice.storage.journal import Journal

folder, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
journal = Journal(folder, "r1", name)
(folder / f"{name}.ready").touch()
while not (folder / "go").exists():
    time.sleep(0.001)
for n in range(count):
    journal.append("ab12cd", payload={"n": n, "fill": name * (n * 37 % 3000)})
"""


def test_processes_that_append_at_once_lose_nothing(tmp_path):
    names, count = ("x", "y", "z"), 400
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), name, str(count)])
        for name in names
    ]
    end = time.monotonic() + 30
    try:
        while len(list(tmp_path.glob("*.ready"))) < len(names):
            assert time.monotonic() < end
            time.sleep(0.01)
        (tmp_path / "go").touch()
        assert [writer.wait(30) for writer in writers] == [0, 0, 0]
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
    lines = file_of(Journal(tmp_path, "r1", "x")).read_bytes().split(b"\n")
    records = [json.loads(line) for line in lines if line]
    assert len(records) == len(names) * count
    for name in names:
        own = [record["payload"] for record in records if record["session"] == name]
        assert [payload["n"] for payload in own] == list(range(count))
        assert {payload["fill"] == name * (payload["n"] * 37 % 3000) for payload in own} == {True}


KILLER = """
import os, random, signal, sys, time
from pathlib import Path
from pytest_ondevice.storage.journal import Journal

folder = Path(sys.argv[1])
rng = random.Random(5)
for kill in range(20):
    told, tell = os.pipe()
    child = os.fork()
    if not child:
        journal = Journal(folder, "r1", str(kill))
        for n in range(400):
            journal.append("ab12cd", payload={"n": n, "fill": "f" * 9000})
            os.write(tell, b".")
        time.sleep(60)
    os.close(tell)
    os.read(told, 1)
    time.sleep(rng.random() * 0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    kept = 1
    while data := os.read(told, 65536):
        kept += len(data)
    os.close(told)
    found = Journal(folder, "r1", "reader").find("ab12cd", any_run=False)
    assert found is not None, kill
    # What append returned from is there; of what it was writing, the whole or nothing.
    assert found.session == str(kill), (found.session, kill)
    assert found.payload["n"] in (kept - 1, kept), (found.payload["n"], kept)
print("survived")
"""


def test_a_killed_writer_loses_at_most_its_last_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("survived\n", "")
    path = file_of(Journal(tmp_path, "r1", "x"))
    assert path.stat().st_size > 20 * 9000


# Runs


@pytest.fixture
def run(tmp_path):
    """Open runs that are closed, unfinished, when the test ends."""
    opened = []

    def open_run(signature="sig"):
        opened.append(Run(tmp_path / "runs", signature))
        return opened[-1]

    yield open_run
    for one in opened:
        one.close(finished=False)


def test_the_first_session_starts_a_run(run):
    first = run()
    assert not first.resumed
    assert len(first.id) == 12


def test_an_unfinished_run_is_resumed(run):
    first = run()
    first.close(finished=False)
    second = run()
    assert (second.id, second.resumed) == (first.id, True)
    second.close(finished=False)
    assert (run().id, second.resumed) == (first.id, True)


def test_a_killed_session_leaves_its_run_to_be_resumed(tmp_path, run):
    script = (
        "import os, sys; from pathlib import Path\n"
        "from pytest_ondevice.storage.journal import Run\n"
        "print(Run(Path(sys.argv[1]), 'sig').id, flush=True); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "runs")],
        stdout=subprocess.PIPE,
        text=True,
        timeout=30,
        check=False,
    )
    resumed = run()
    assert (resumed.id, resumed.resumed) == (killed.stdout.strip(), True)


def test_a_finished_run_is_not_resumed(run):
    first = run()
    first.close(finished=True)
    second = run()
    assert second.id != first.id
    assert not second.resumed
    # Closing twice is closing once: the second close is not this run's any more.
    first.close(finished=True)
    second.close(finished=False)
    assert run().id == second.id


def test_a_resumed_run_that_finishes_is_over(run):
    run().close(finished=False)
    second = run()
    second.close(finished=True)
    third = run()
    assert third.id != second.id
    assert not third.resumed


def test_two_sessions_at_once_are_two_runs(run):
    first, second = run(), run()
    assert first.id != second.id
    assert not second.resumed
    # The one without the lock says nothing about the run of the one with it.
    second.close(finished=True)
    first.close(finished=False)
    assert run().id == first.id


def test_other_signatures_are_other_runs(run):
    first = run("one")
    first.close(finished=False)
    other = run("two")
    assert other.id != first.id
    assert not other.resumed


@pytest.mark.parametrize(("age", "resumed"), [(-60, True), (60, False)])
def test_a_run_is_resumed_only_so_long_after_its_start(run, monkeypatch, age, resumed):
    first = run()
    first.close(finished=False)
    later = time.time() + RESUME_SECONDS + age
    monkeypatch.setattr(module.time, "time", lambda: later)
    second = run()
    assert second.resumed is resumed
    assert (second.id == first.id) is resumed


def test_the_age_of_a_resumed_run_counts_from_its_start(run, monkeypatch):
    start = time.time()
    first = run()
    first.close(finished=False)
    monkeypatch.setattr(module.time, "time", lambda: start + RESUME_SECONDS - 60)
    run().close(finished=False)
    monkeypatch.setattr(module.time, "time", lambda: start + RESUME_SECONDS + 60)
    assert not run().resumed


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"run": 3}', b"null", b'{"run":"\xff","started":0}']
)
def test_a_damaged_run_file_is_a_new_run(tmp_path, run, content):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "sig.json").write_bytes(content)
    first = run()
    assert not first.resumed
    first.close(finished=False)
    assert run().id == first.id


def test_a_run_without_a_place_is_one_sentence(tmp_path):
    (tmp_path / "runs").write_text("in the way")
    with pytest.raises(StorageError, match=r"runs/sig\.lock: cannot write it: "):
        Run(tmp_path / "runs", "sig")
