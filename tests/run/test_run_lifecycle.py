"""Signals, terminals, names, and that nothing is left behind however a run ends."""

import json
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lazyfs.run.container import cleanup_stale, stale_containers
from tests.run.containers import PATIENCE, REPOSITORY, Node
from tests.waiting import wait_until

pytestmark = pytest.mark.root

COUNTING = """
for s in INT HUP QUIT USR1 USR2 WINCH; do trap "echo got $s" $s; done
trap "echo bye; exit 5" TERM
echo ready
while :; do sleep 0.02; done
"""
# Two processes, the second in a session of its own, that no signal but SIGKILL ends.
STUBBORN = """
trap "" TERM INT HUP
setsid sh -c 'while :; do sleep 1; done' &
echo ready
while :; do sleep 1; done
"""
ON_TERMINAL = """
trap "stty size" WINCH
trap "echo interrupted; exit 9" INT
tty; stty size; echo $TERM
read line
echo "<$line>"
echo ready
while :; do sleep 0.02; done
"""


def next_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_signals_reach_the_first_process(node: Node) -> None:
    process = node.start("sh", "-c", COUNTING)
    assert next_line(process) == "ready"
    for name in ("INT", "HUP", "QUIT", "USR1", "USR2"):
        process.send_signal(getattr(signal, f"SIG{name}"))
        assert next_line(process) == f"got {name}"
    process.terminate()
    assert next_line(process) == "bye"
    assert process.wait(PATIENCE) == 5


def test_a_signal_to_the_whole_group_comes_once(node: Node) -> None:
    # As timeout(1) does it, and a shell for ^C.
    process = node.start("sh", "-c", COUNTING, wrap=("setsid",))
    assert next_line(process) == "ready"
    os.killpg(process.pid, signal.SIGUSR1)
    assert next_line(process) == "got USR1"
    process.terminate()
    assert next_line(process) == "bye"
    process.wait(PATIENCE)


def test_ignored_signals_stay_ignored(node: Node) -> None:
    process = node.start("sh", "-c", COUNTING, wrap=("nohup",))
    assert next_line(process) == "ready"
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGUSR1)
    assert next_line(process) == "got USR1"
    process.terminate()
    process.wait(PATIENCE)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_by_a_signal(node: Node, number: signal.Signals) -> None:
    process = node.start("sleep", "1000", name="victim")
    wait_until(lambda: len(node.processes()) == 1, "the container's process")
    pid = node.processes()[0]
    if number == signal.SIGTERM:
        # Without a handler the first process of a container survives it, as everywhere.
        process.terminate()
        os.kill(pid, 0)
    os.kill(pid, signal.SIGKILL)
    assert process.wait(PATIENCE) == 137


def test_program_dies_of_a_signal_of_its_own(node: Node) -> None:
    assert node.shell("sh -c 'kill -TERM $$'; exit $?").returncode == 128 + signal.SIGTERM


def test_closed_pipe_ends_the_container(node: Node) -> None:
    process = node.start("yes")
    assert next_line(process) == "y"
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(PATIENCE) in (1, 128 + signal.SIGPIPE)


@pytest.mark.parametrize(
    "moment", ["*", "*/config.json", "*/run.json", "*/runtime", "*/runtime/*", "*/runtime/*/*"]
)
def test_early_signals_leave_nothing(node: Node, moment: str) -> None:
    """Wherever the start is interrupted. A signal that comes before the container's trap has no effect."""
    process = node.start("sh", "-c", COUNTING)
    wait_until(lambda: any(node.state.glob(moment)), moment)

    def ended() -> bool:
        process.terminate()
        return process.poll() is not None

    wait_until(ended, "its end")
    assert process.returncode in (5, 125, 128 + signal.SIGTERM, -signal.SIGTERM)


def test_kill_before_there_is_a_guard(node: Node) -> None:
    """It may leave an empty directory, and nothing else."""
    process = node.start("sh", "-c", COUNTING, name="early")
    wait_until(lambda: any(node.state.glob("*")), "a claim")
    process.kill()
    process.wait(PATIENCE)
    assert cleanup_stale(node.state) in ([], ["early"])


@pytest.mark.parametrize("moment", ["*/run.json", "*/runtime", "*/runtime/*", "*/runtime/*/*"])
def test_early_kill_leaves_nothing(node: Node, moment: str) -> None:
    process = node.start("sh", "-c", COUNTING)
    wait_until(lambda: any(node.state.glob(moment)), moment)
    process.kill()
    wait_until(lambda: not node.leftovers(), "nothing left")


def test_killed_lazyfs_leaves_nothing(node: Node) -> None:
    process = node.start("sh", "-c", STUBBORN, name="stubborn", memory="64m")
    assert next_line(process) == "ready"
    groups = node.cgroups("stubborn")
    assert groups
    # A process shows no environment while it becomes another program.
    wait_until(lambda: len(node.processes()) >= 2, "both processes")
    process.kill()
    # The fixture waits for processes, mounts and files.
    wait_until(lambda: not node.leftovers(), "nothing left")
    assert not any(group.exists() for group in groups)


def kill_with_guard(node: Node, process: subprocess.Popen[str]) -> None:
    """Kill lazyfs and all that it started itself, the guard among them, as the OOM killer might."""
    process.send_signal(signal.SIGSTOP)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in (*map(int, children), process.pid):
        os.kill(pid, signal.SIGKILL)
    process.wait(PATIENCE)


def test_stale_container_is_cleaned_up(node: Node) -> None:
    process = node.start("sh", "-c", STUBBORN, name="stale")
    living = node.start("sh", "-c", COUNTING, name="living")
    assert next_line(process) == next_line(living) == "ready"
    groups = node.cgroups("stale")
    assert stale_containers(node.state) == []
    assert cleanup_stale(node.state) == []
    kill_with_guard(node, process)
    wait_until(lambda: stale_containers(node.state) == ["stale"], "a stale container")
    wait_until(lambda: len(node.processes()) > 2, "the processes of both")
    assert cleanup_stale(node.state) == ["stale"]
    assert [path.name for path in node.state.iterdir()] == ["living"]
    assert not any(group.exists() for group in groups)
    assert cleanup_stale(node.state) == []
    living.terminate()
    assert living.wait(PATIENCE) == 5


def test_name_of_a_stale_container_is_free(node: Node) -> None:
    process = node.start("sh", "-c", STUBBORN, name="again")
    assert next_line(process) == "ready"
    kill_with_guard(node, process)
    assert node.shell("echo second", name="again").stdout == "second\n"
    assert node.processes() == []


def test_cleanup_of_what_was_cut_short(node: Node) -> None:
    for name, record in (("empty", None), ("cut", "{"), ("half", '{"program"')):
        (node.state / name).mkdir(parents=True)
        if record:
            (node.state / name / "run.json").write_text(record)
    assert cleanup_stale(node.state) == ["cut", "empty", "half"]
    assert cleanup_stale(node.state / "nowhere") == []


def test_name_that_is_taken(node: Node) -> None:
    process = node.start("sh", "-c", COUNTING, name="taken")
    assert next_line(process) == "ready"
    second = node.run("true", name="taken")
    assert second.returncode == 125
    error = json.loads(second.stderr)
    assert (error["error"], "taken" in error["message"]) == ("BusyError", True)
    assert node.run("true").returncode == 0
    process.terminate()
    assert process.wait(PATIENCE) == 5
    assert node.run("true", name="taken").returncode == 0


def test_nothing_is_left_in_the_cgroups(node: Node) -> None:
    process = node.start("sh", "-c", COUNTING, name="groups", memory="64m")
    assert next_line(process) == "ready"
    groups = node.cgroups("groups")
    assert groups
    process.terminate()
    process.wait(PATIENCE)
    assert not any(group.exists() for group in groups)


def test_hidden_hierarchy_stays_clean() -> None:
    """Where crun was shown something else at /sys/fs/cgroup/unified, nothing may lie underneath."""
    script = "umount /sys/fs/cgroup/unified 2>/dev/null && ls -A /sys/fs/cgroup/unified || true"
    listed = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, check=True)
    assert listed.stdout == ""


@contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    """The user's side and the program's side of a terminal of 33 lines and 101 columns."""
    user, program = pty.openpty()
    termios.tcsetwinsize(program, (33, 101))
    try:
        yield user, program
    finally:
        os.close(user)
        os.close(program)


def start_on_terminal(
    node: Node, program: int, script: str, *, interactive: bool = False, tty: bool = False
) -> subprocess.Popen[str]:
    streams: dict[str, Any] = {"stdin": program, "stdout": program, "stderr": program}
    return node.start(
        "sh", "-c", script, wrap=("setsid", "--ctty"), interactive=interactive, tty=tty, **streams
    )


def read_until(user: int, wanted: str) -> str:
    seen = ""
    while wanted not in seen:
        seen += os.read(user, 1000).decode()
    return seen


def test_terminal(node: Node) -> None:
    with terminal() as (user, program):
        before = termios.tcgetattr(program)
        process = start_on_terminal(node, program, ON_TERMINAL, interactive=True, tty=True)
        assert read_until(user, "xterm").split() == ["/dev/pts/0", "33", "101", "xterm"]
        os.write(user, b"typed\n")
        assert "<typed>" in read_until(user, "ready")
        assert termios.tcgetattr(program) != before
        termios.tcsetwinsize(user, (44, 102))
        read_until(user, "44 102")
        os.write(user, b"\x03")
        read_until(user, "interrupted")
        assert process.wait(PATIENCE) == 9
        assert termios.tcgetattr(program) == before


def test_terminal_is_restored_when_lazyfs_is_killed(node: Node) -> None:
    with terminal() as (user, program):
        before = termios.tcgetattr(program)
        process = start_on_terminal(node, program, "echo ready; sleep 1000", interactive=True, tty=True)
        read_until(user, "ready")
        assert termios.tcgetattr(program) != before
        process.kill()
        wait_until(lambda: not node.leftovers(), "nothing left")
        assert termios.tcgetattr(program) == before


def test_terminal_is_restored_when_the_start_fails(node: Node) -> None:
    (node.rootfs / "proc").rmdir()
    (node.rootfs / "proc").write_text("a file")
    with terminal() as (user, program):
        before = termios.tcgetattr(program)
        process = start_on_terminal(node, program, "true", interactive=True, tty=True)
        read_until(user, "NodeError")
        assert process.wait(PATIENCE) == 125
        assert termios.tcgetattr(program) == before


def test_interrupt_key_without_a_terminal_inside(node: Node) -> None:
    """With and without standard input: lazyfs and the runtime may both get it, the container gets it once."""
    for interactive in (False, True):
        with terminal() as (user, program):
            process = start_on_terminal(node, program, COUNTING, interactive=interactive)
            read_until(user, "ready")
            os.write(user, b"\x03")
            read_until(user, "got INT")
            process.terminate()
            assert "got INT" not in read_until(user, "bye")
            assert process.wait(PATIENCE) == 5


def test_terminal_needs_one(node: Node) -> None:
    result = node.run("true", tty=True)
    assert result.returncode == 125
    assert json.loads(result.stderr)["error"] == "UsageError"


def test_import_is_quick() -> None:
    """The share of this room in the CPU time of a start: 15 ms, twice that where no bytecode is kept."""
    script = (
        "import time, json, ctypes, dataclasses; t = time.process_time(); import lazyfs.run;"
        "print(time.process_time() - t); import sys;"
        "print({'subprocess', 'asyncio', 'shutil', 'numpy', 'typer'} & set(sys.modules))"
    )
    printed = subprocess.check_output([sys.executable, "-c", script], text=True, cwd=REPOSITORY).splitlines()
    assert float(printed[0]) < 0.2
    assert printed[1] == "set()"


def test_connections_are_held_until_the_container_is_gone(node: Node) -> None:
    """So a daemon that sees the connection of a killed lazyfs close can unmount its image at once."""
    reading, writing = os.pipe()
    process = node.start("sh", "-c", STUBBORN, pass_fds=(writing,))
    os.close(writing)
    assert next_line(process) == "ready"
    process.kill()
    assert os.read(reading, 1) == b""
    os.close(reading)
    assert node.processes() == []
