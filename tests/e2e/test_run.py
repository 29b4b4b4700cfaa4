"""`lazyfs run`: what the image wants is done, what the container says is heard, and nothing is left."""

import os
import re
import signal
import subprocess
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random

import pytest

from benchmarks.images import BuiltImage
from tests.waiting import wait_until

from .conftest import PATIENCE, Node, assert_error, succeed

COUNTING = "trap 'echo bye; exit 5' TERM; trap 'echo hup' HUP; echo ready; while :; do sleep 0.02; done"


def shell(reference: str, script: str) -> list[str]:
    """A shell in the image instead of its Entrypoint."""
    return ["--entrypoint", "sh", reference, "-c", script]


def next_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.image
def test_what_the_image_wants(node: Node, demo: str) -> None:
    """Entrypoint, Cmd, Env, User and WorkingDir of the demo image."""
    assert succeed(node.run(demo)).stdout.startswith("ready 1.")
    script = "import os, sys; print(os.getuid(), os.getcwd(), os.environ['LANG'], os.environ['HOME'], sys.argv[1:])"
    said = succeed(node.run(demo, "-c", script, "an argument", "--env", "x")).stdout
    assert said == "1000 /srv/app C.UTF-8 /home/app ['an argument', '--env', 'x']\n"
    said = succeed(node.run(*shell(demo, "id -un; pwd; exit 0"))).stdout
    assert said == "app\n/srv/app\n"


@pytest.mark.image
def test_file_capabilities_and_setuid_programs_work(node: Node, demo: str) -> None:
    """The mount of the image is nosuid; the overlay on it is not."""
    script = "ping -c 1 -W 5 127.0.0.1 >/dev/null && echo pong; stat -c %a /usr/bin/passwd; passwd -S app | cut -c1-3"
    assert succeed(node.run(*shell(demo, script))).stdout == "pong\n4755\napp\n"


def test_small_image(node: Node, small: str) -> None:
    assert succeed(node.run(small)).stdout == "ready small\n"
    assert succeed(node.run(small, "other", "words")).stdout == "ready other words\n"


def test_options(node: Node, small: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data").chmod(0o777)
    (tmp_path / "data" / "file").write_text("from outside\n")
    (tmp_path / "env").write_text("# comment\nFROM_FILE=yes\nBOTH=file\n")
    script = """
        echo $GREETING $BOTH $FROM_FILE; pwd; id -u; id -g; hostname; cat /data/file /ro/file
        echo written >/data/new; (echo no >/ro/new) 2>/dev/null || echo read-only; ls /sys/class/net
    """
    options: list[str | Path] = [
        "-e",
        "BOTH=option",
        "--env-file",
        tmp_path / "env",
        "-v",
        f"{tmp_path}/data:/data",
    ]
    options += ["-v", f"{tmp_path}/data:/ro:ro", "--hostname", "box", "-w", "/tmp/made", "-u", "7:8"]
    options += ["--network", "none", "--rm", "--name", "chosen"]
    said = succeed(node.run(*options, *shell(small, script))).stdout.splitlines()
    assert said == [
        *("hello option yes", "/tmp/made", "7", "8", "box"),
        *("from outside", "from outside", "read-only", "lo"),
    ]
    assert (tmp_path / "data" / "new").read_text() == "written\n"


def test_the_root_can_be_written_and_nothing_of_it_stays(node: Node, small: str) -> None:
    look = "cd /srv/app; ls -d /new many; wc -c <random"
    written = node.run(*shell(small, f"cd /srv/app; echo new >random; rm -r many; mkdir /new; {look}"))
    assert written.stdout == "/new\n4\n"
    assert node.run(*shell(small, look)).stdout == "many\n3145728\n"


def test_read_only(node: Node, small: str) -> None:
    said = node.run("--read-only", *shell(small, "echo x >/new || echo refused; wc -c </srv/app/random"))
    assert said.stdout == "refused\n3145728\n"
    assert "Read-only file system" in said.stderr


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("exit 0", 0),
        ("exit 3", 3),
        ("exit 125", 125),
        ("sh -c 'kill -9 $$'; exit $?", 137),
        ("exit 255", 255),
    ],
)
def test_exit_codes(node: Node, small: str, script: str, code: int) -> None:
    assert node.run(*shell(small, script)).returncode == code


def test_errors(node: Node, small: str, tmp_path: Path) -> None:
    layout = small.rpartition(":")[0]
    assert_error(node.run("--entrypoint", "/no/such", small), 127, "/no/such")
    assert_error(node.run("--entrypoint", "/etc/passwd", small), 126, "/etc/passwd")
    assert_error(node.run("--user", "nobody-here", small), 125, "nobody-here")
    assert_error(node.run(f"{layout}:nothing"), 125, "nothing", "its tags are")
    assert_error(node.run("oci:/no/such:tag"), 125, "/no/such")
    assert_error(node.run("nonsense"), 125, "nonsense")
    assert_error(node.run("--runtime", "/no/such/runtime", small), 125, "/no/such/runtime")
    assert_error(node.run("-v", "/no/such/dir:/data", small), 125, "/no/such/dir")
    assert_error(node.run("--memory", "much", small), 125, "much")
    assert_error(node("run"), 2, "REF", "lazyfs run --help")
    assert_error(node.run("--no-such-option", small), 2, "--no-such-option")
    assert_error(node.run("--timeline", tmp_path / "no" / "x.svg", small), 2, "not a directory")


def test_an_image_that_is_not_converted(node: Node, built_small: BuiltImage) -> None:
    assert_error(node.run(built_small.reference), 125, "is not a lazyfs layer", "lazyfs convert")


@pytest.mark.image
def test_timeline(node: Node, demo: str, tmp_path: Path) -> None:
    picture = tmp_path / "start <&> Übung.svg"
    succeed(node.run("--no-fill", "--timeline", picture, demo))
    root = ET.parse(picture).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    shapes = [element.tag.rpartition("}")[2] for element in root.iter()]
    assert shapes.count("rect") > 50
    words = " ".join(element.text or "" for element in root.iter())
    assert re.search(r"\b[1-9]\d* fetches", words)
    # Of what is here already nothing is fetched, and that can be drawn as well.
    succeed(node.run("--no-fill", "--timeline", picture, demo))
    words = " ".join(element.text or "" for element in ET.parse(picture).iter())
    assert re.search(r"\b0 fetches, 0 B;", words)


def test_signals_are_forwarded(node: Node, small: str) -> None:
    process = node.start_run(*shell(small, COUNTING))
    assert next_line(process) == "ready"
    process.send_signal(signal.SIGHUP)
    assert next_line(process) == "hup"
    process.terminate()
    assert next_line(process) == "bye"
    assert process.wait(PATIENCE) == 5


def test_output_is_streamed_and_input_connected(node: Node, small: str) -> None:
    process = node.start_run(
        "-i", *shell(small, "echo first; read line; echo got $line >&2"), stdin=subprocess.PIPE
    )
    assert next_line(process) == "first"
    out, err = process.communicate("typed\n", timeout=PATIENCE)
    assert (out, err, process.returncode) == ("", "got typed\n", 0)


def test_killed_and_another_command(node: Node, small: str) -> None:
    """SIGKILL cannot be undone by who gets it; the next command does. The first of them may come at once."""
    for command in (["shutdown"], ["run", small], ["mount", small, node.root.parent / "mnt"]):
        process = node.start_run(*shell(small, COUNTING))
        assert next_line(process) == "ready"
        process.kill()
        (node.root.parent / "mnt").mkdir(exist_ok=True)
        succeed(node(*command))
        assert node.processes() == []
        assert list((node.root / "mounts").iterdir()) == []
        assert list((node.root / "containers").iterdir()) == []
    node.umount(node.root.parent / "mnt")


def test_killed_with_all_its_children(node: Node, small: str) -> None:
    """The guard that would have cleaned up among them."""
    succeed(node.run(small))  # else the daemon was one of them
    process = node.start_run(*shell(small, COUNTING))
    assert next_line(process) == "ready"
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in (*map(int, children), process.pid):
        with suppress(ProcessLookupError):  # the runtime's command may end just now
            os.kill(pid, signal.SIGKILL)
    process.wait(PATIENCE)
    succeed(node("shutdown"))
    assert node.leftovers() == []


def end_somewhere(node: Node, small: str, number: signal.Signals, after: float) -> subprocess.Popen[str]:
    """Send the signal `after` seconds, wherever the run is then."""
    process = node.start_run(*shell(small, COUNTING))
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(after)
    process.send_signal(number)
    return process


def ended_by_another(process: subprocess.Popen[str]) -> bool:
    if process.poll() is None:
        process.terminate()
    return process.returncode is not None


def python_was_interrupted(process: subprocess.Popen[str]) -> bool:
    """Where SIGINT comes before it knows what program to run, Python ends as if that were not there."""
    _, said = process.communicate()
    return process.returncode == 1 and said.startswith(("Fatal Python error: init", "Could not import runpy"))


def typical_time_to_ready(node: Node, small: str) -> float:
    began = time.monotonic()
    process = node.start_run(*shell(small, COUNTING))
    assert next_line(process) == "ready"
    seconds = time.monotonic() - began
    process.terminate()
    assert process.wait(PATIENCE) == 5
    return seconds


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_at_any_moment_leave_nothing(node: Node, small: str, number: signal.Signals) -> None:
    """Before the container's trap is set the signal ends lazyfs, or is without effect: then another comes."""
    succeed(node.run(small))
    ready = typical_time_to_ready(node, small)
    for part in range(7):
        process = end_somewhere(node, small, number, ready * (part + 1) / 7)
        wait_until(partial(ended_by_another, process), "its end")
        # Negative before lazyfs has made anything, and after it has undone it.
        codes = (5, 128 + number, 128 + signal.SIGTERM, -number, -signal.SIGTERM)
        assert process.returncode in codes or python_was_interrupted(process)
        assert node.leftovers() == []


def test_kill_at_any_moment_leaves_nothing(node: Node, small: str) -> None:
    succeed(node.run(small))
    ready = typical_time_to_ready(node, small)
    rng = Random(1)
    for _ in range(8):
        end_somewhere(node, small, signal.SIGKILL, ready * rng.uniform(0.2, 1.1)).wait(PATIENCE)
        assert succeed(node.run(small)).stdout == "ready small\n"
        wait_until(lambda: not node.leftovers(), "nothing left")


def test_killed_again_and_again_before_the_first_start(make_node: Callable[..., Node], small: str) -> None:
    """While the daemon is being started, too."""
    for number in range(3):
        node = make_node(f"node{number}")
        process = node.start_run(small)
        wait_until((node.root / "start.lock").exists, "its start")
        process.kill()
        process.wait(PATIENCE)
        assert succeed(node.run(small)).stdout == "ready small\n"


def test_thirty_at_once(node: Node, small: str) -> None:
    """Without a daemon at first: one of them starts it."""
    script = "wc -c </srv/app/random; echo $$ >/srv/app/random; cat /srv/app/random"
    processes = [node.start_run(*shell(small, script)) for _ in range(30)]
    said = [process.communicate(timeout=2 * PATIENCE) for process in processes]
    assert {err for _, err in said} == {""}
    assert {out for out, _ in said} == {"3145728\n1\n"}
    assert {process.returncode for process in processes} == {0}
    assert node.leftovers() == []


def test_names(node: Node, small: str) -> None:
    process = node.start_run("--name", "taken", *shell(small, COUNTING))
    assert next_line(process) == "ready"
    assert_error(node.run("--name", "taken", small), 125, "taken")
    process.terminate()
    assert process.wait(PATIENCE) == 5
    succeed(node.run("--name", "taken", small))


def test_two_nodes_side_by_side(make_node: Callable[..., Node], small: str) -> None:
    one, two = make_node("one"), make_node("two")
    processes = [node.start_run(*shell(small, COUNTING)) for node in (one, two)]
    assert [next_line(process) for process in processes] == ["ready", "ready"]
    assert one.pid() != two.pid()
    assert one("shutdown").returncode == 8
    processes[1].terminate()
    assert processes[1].wait(PATIENCE) == 5
    succeed(two("shutdown"))
    assert one.status()["pid"] == one.pid()
    processes[0].terminate()
    assert processes[0].wait(PATIENCE) == 5


def test_the_daemon_is_killed_under_a_container(node: Node, small: str) -> None:
    """It does not notice; its files are read on through the next daemon."""
    script = "echo ready; read line; sha256sum </srv/app/random"
    process = node.start_run("-i", *shell(small, script), stdin=subprocess.PIPE)
    assert next_line(process) == "ready"
    node.kill_daemon()
    out, err = process.communicate("go\n", timeout=PATIENCE)
    assert (err, process.returncode) == ("", 0)
    assert out == succeed(node.run(*shell(small, "sha256sum </srv/app/random"))).stdout
    assert succeed(node.run(small)).stdout == "ready small\n"
