"""Containers as images and options want them, with both runtimes. What runs in them is busybox."""

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lazyfs.mount.syscalls import MS_BIND, MS_RDONLY, bind, mount, unmount
from tests.run.containers import Node

MS_REMOUNT = 32

pytestmark = pytest.mark.root

SHELL = {"entrypoint": ["sh", "-c"], "cmd": ["echo image"]}


def error_of(result: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The only line on standard error: lazyfs's own."""
    error: dict[str, Any] = json.loads(result.stderr)
    return error


@pytest.mark.parametrize(
    ("image", "options", "args", "printed"),
    [
        ({"cmd": ["echo", "a b", "c"]}, {}, [], "a b c"),
        ({"entrypoint": ["echo", "e"], "cmd": ["c"]}, {}, [], "e c"),
        ({"entrypoint": ["echo", "e"], "cmd": ["c"]}, {}, ["x", "y"], "e x y"),
        ({"cmd": ["false"]}, {}, ["echo", "x"], "x"),
        ({"entrypoint": ["false"], "cmd": ["c"]}, {"entrypoint": "echo"}, [], ""),
        ({"entrypoint": ["false"], "cmd": ["c"]}, {"entrypoint": "echo"}, ["x"], "x"),
        ({"entrypoint": ["false"], "cmd": ["c"]}, {"entrypoint": ""}, ["echo", "x"], "x"),
    ],
)
def test_entrypoint_and_cmd(
    node: Node, image: dict[str, Any], options: dict[str, Any], args: list[str], printed: str
) -> None:
    result = node.run(*args, image=image, **options)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{printed}\n", "")


def test_no_command_is_a_usage_error(node: Node) -> None:
    for result in (node.run(image={}), node.run(image=SHELL, entrypoint="")):
        assert result.returncode == 125
        assert error_of(result)["error"] == "UsageError"


def test_environment(node: Node) -> None:
    image = {"env": ["A=image", "B=image", "GONE=image", "PATH=/bin", "EQ=a=b"]}
    result = node.run("env", image=image, env=["B=mine", "GONE", "NEW=ü\n\"'"])
    env = set(result.stdout.split("\n"))
    assert {"A=image", "B=mine", "PATH=/bin", "EQ=a=b", "HOME=/root", "NEW=ü", "\"'"} <= env
    assert f"HOSTNAME={os.uname().nodename}" in env
    assert not any(line.startswith(("GONE", "TERM")) for line in env)


def test_what_systemd_gives_to_lazyfs_is_not_the_containers(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("LISTEN_FDS", "1")
        result = node.shell("env; ls /run/notify /proc/self/fd")
    assert "LISTEN" not in result.stdout
    assert "NOTIFY" not in result.stdout
    # The fourth is ls's own.
    assert result.stdout.split("/proc/self/fd:\n")[1].split() == ["0", "1", "2", "3"]


def test_environment_of_an_empty_image(node: Node) -> None:
    result = node.run("env", hostname="box")
    assert set(result.stdout.split()) == {
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOSTNAME=box",
        "HOME=/root",
        node.mark,
    }


@pytest.mark.parametrize(
    ("image_user", "user", "ids"),
    [
        ("", "", "0 0 [44] /root"),
        ("app", "", "1000 1001 [44, 50] /home/app"),
        ("app", "0", "0 0 [44] /root"),
        ("", "app:video", "1000 44 [] /home/app"),
        ("", "1000", "1000 1001 [44, 50] /home/app"),
        ("", "4711", "4711 0 [] /"),
        ("", "4711:4712", "4711 4712 [] /"),
    ],
)
def test_user(node: Node, image_user: str, user: str, ids: str) -> None:
    script = "grep -E '^(Uid|Gid|Groups):' /proc/self/status; echo $HOME"
    uids, gids, groups, home = node.shell(script, image={"user": image_user}, user=user).stdout.splitlines()
    others = sorted({int(group) for group in groups.split()[1:]})
    assert f"{uids.split()[1]} {gids.split()[1]} {others} {home}" == ids
    assert len(set(uids.split()[1:])) == len(set(gids.split()[1:])) == 1


def test_only_root_has_capabilities_at_once(node: Node) -> None:
    script = "grep -E 'Cap(Eff|Prm|Bnd|Amb|Inh)|NoNewPrivs' /proc/self/status"
    as_root = dict(line.split() for line in node.shell(script).stdout.splitlines())
    as_app = dict(line.split() for line in node.shell(script, user="app").stdout.splitlines())
    docker, none = "00000000a80425fb", "0" * 16
    assert as_root == {
        "CapEff:": docker, "CapPrm:": docker, "CapBnd:": docker, "CapAmb:": none, "CapInh:": none, "NoNewPrivs:": "0",
    }  # fmt: skip
    assert as_app == as_root | {"CapEff:": none, "CapPrm:": none}


def test_unknown_user(node: Node) -> None:
    result = node.run("true", user="nobody-here")
    assert result.returncode == 125
    assert error_of(result)["error"] == "NotFoundError"
    assert "nobody-here" in error_of(result)["message"]


def test_users_of_the_host_are_not_the_images(node: Node, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("hostile:x:0:0::/:/bin/sh\n")
    (node.rootfs / "etc/passwd").unlink()
    for target in (str(outside), "../../../../../.." + str(outside), "/proc/self/cwd"):
        (node.rootfs / "etc/passwd").symlink_to(target)
        result = node.run("true", user="hostile")
        assert error_of(result)["error"] == "NotFoundError"
        (node.rootfs / "etc/passwd").unlink()


def test_working_directory(node: Node) -> None:
    assert node.run("pwd").stdout == "/\n"
    assert node.run("pwd", image={"working_dir": "/tmp"}).stdout == "/tmp\n"
    assert node.run("pwd", image={"working_dir": "tmp/../tmp/."}).stdout == "/tmp\n"
    assert node.run("pwd", image={"working_dir": "/tmp"}, workdir="/new/deep").stdout == "/new/deep\n"
    made = (node.rootfs / "new/deep").stat()
    assert (made.st_mode, made.st_uid) == (0o40755, 0)


def test_working_directory_stays_inside(node: Node, tmp_path: Path) -> None:
    (node.rootfs / "out").symlink_to(tmp_path)
    (node.rootfs / "up").symlink_to("../../../../../../../..")
    node.run("true", workdir=f"/up{tmp_path}/escaped")
    assert node.run("pwd", workdir="/out/sub").stdout == f"{tmp_path}/sub\n"
    assert not (tmp_path / "escaped").exists()
    assert not (tmp_path / "sub").exists()
    assert (node.rootfs / tmp_path.relative_to("/") / "sub").is_dir()


def test_working_directory_that_cannot_be(node: Node) -> None:
    (node.rootfs / "dangling").symlink_to("/nowhere/at/all")
    for directory in ("/bin/busybox/x", "/dangling/x", "/etc/passwd"):
        result = node.run("true", workdir=directory)
        assert result.returncode == 125
        assert directory in error_of(result)["message"]


@pytest.fixture
def fixed_rootfs(node: Node) -> Iterator[Path]:
    """The root file system mounted read-only, like an image without an overlay."""
    target = node.state.parent / "fixed"
    target.mkdir()
    bind(node.rootfs, target)
    remount = MS_REMOUNT | MS_BIND | MS_RDONLY
    mount(None, target, None, remount, b"", what=f"read-only {target}")
    node.rootfs = target
    yield target
    unmount(target, detach=True)


def test_root_that_cannot_be_written(node: Node, fixed_rootfs: Path) -> None:
    result = node.shell("pwd; touch /x; ls /etc", workdir="/home/app")
    assert (result.stdout, result.returncode) == ("/home/app\ngroup\npasswd\n", 0)
    result = node.run("true", workdir="/new")
    assert result.returncode == 125
    error = error_of(result)
    assert error["error"] == "NodeError"
    assert "/new" in error["message"]
    assert "Read-only" in error["message"]


def test_volumes(node: Node, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "in").write_text("from the host\n")
    volumes = [f"{data}:/data", f"{data}:/fixed/deep:ro", f"{data / 'in'}:/etc/hosts:ro"]
    script = "cat /data/in /etc/hosts; echo out >/data/out; cat /fixed/deep/out; echo no >/fixed/deep/no"
    result = node.shell(script, volumes=volumes)
    assert result.stdout == "from the host\nfrom the host\nout\n"
    assert "Read-only" in result.stderr
    assert (data / "out").read_text() == "out\n"
    assert not (data / "no").exists()


def test_volume_inside_a_volume_and_as_working_directory(node: Node, tmp_path: Path) -> None:
    outer, inner = tmp_path / "outer", tmp_path / "inner"
    (outer / "sub").mkdir(parents=True)
    inner.mkdir()
    (inner / "tool").write_text("#!/bin/sh\npwd; ls /v/sub\n")
    (inner / "tool").chmod(0o755)
    result = node.run("./tool", volumes=[f"{inner}:/v/sub", f"{outer}:/v"], workdir="/v/sub")
    assert (result.stdout, result.stderr) == ("/v/sub\ntool\n", "")


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 3", 3), ("exit 1", 1), ("exit 127", 127), ("exit 255", 255)]
)
def test_exit_code(node: Node, script: str, code: int) -> None:
    result = node.shell(script)
    assert (result.returncode, result.stderr) == (code, "")


def test_program_that_is_not_there(node: Node, tmp_path: Path) -> None:
    for command in ("nosuch", "/nosuch/program", "./nosuch"):
        result = node.run(command)
        assert result.returncode == 127
        assert error_of(result)["error"] == "CommandNotFoundError"
        assert command in error_of(result)["message"]
    # With a volume it is the runtime that finds out.
    result = node.run("nosuch", volumes=[f"{tmp_path}:/v"])
    assert result.returncode == 127
    assert "nosuch" in result.stderr


def test_program_that_is_not_executable(node: Node, tmp_path: Path) -> None:
    (node.rootfs / "bin/plain").write_text("text")
    for command in ("plain", "/bin/plain", "/etc"):
        result = node.run(command)
        assert result.returncode == 126
        assert error_of(result)["error"] == "CommandNotExecutableError"
    assert node.run("/bin/plain", volumes=[f"{tmp_path}:/v"]).returncode == 126


def test_broken_root_names_the_cause(node: Node) -> None:
    (node.rootfs / "proc").rmdir()
    (node.rootfs / "proc").write_text("a file")
    result = node.run("true")
    assert result.returncode == 125
    error = json.loads(result.stderr.splitlines()[-1])
    assert error["error"] == "NodeError"
    assert node.runtime in error["message"]
    assert "proc" in error["message"]


def test_standard_input_only_when_interactive(node: Node) -> None:
    assert node.run("cat", input="typed\n", interactive=True).stdout == "typed\n"
    assert node.run("cat", input="typed\n").stdout == ""


def test_crun_hands_the_streams_over(node: Node, tmp_path: Path) -> None:
    if node.runtime != "crun":
        pytest.skip("runc copies what goes through standard streams")
    with (tmp_path / "out").open("w") as out:
        result = node.shell("stat -L -c %i /proc/self/fd/1; readlink /proc/self/fd/0", stdout=out)
        assert result.returncode == 0
        assert (tmp_path / "out").read_text().split() == [str(os.fstat(out.fileno()).st_ino), "/dev/null"]


def test_read_only(node: Node) -> None:
    script = "touch /new; touch /etc/hosts; touch /dev/shm/fine && echo made"
    result = node.shell(script, read_only=True)
    assert result.stdout == "made\n"
    assert result.stderr.count("Read-only file system") == 2
    assert not (node.rootfs / "new").exists()


def test_network(node: Node) -> None:
    script = (
        "readlink /proc/self/ns/net; ls /sys/class/net; ip addr show lo | grep -c 127.0.0.1; cat /etc/hosts"
    )
    host = node.shell(script)
    assert host.stdout.splitlines()[0] == str(Path("/proc/self/ns/net").readlink())
    assert Path("/etc/hosts").read_text() in host.stdout
    assert node.run("cat", "/etc/resolv.conf").stdout == Path("/etc/resolv.conf").read_text()
    none = node.shell(script, network="none").stdout.splitlines()
    assert none[0] != str(Path("/proc/self/ns/net").readlink())
    assert none[1:3] == ["lo", "1"]


def test_host_files_are_copies(node: Node) -> None:
    before = Path("/etc/hosts").read_text()
    assert node.shell("echo 10.0.0.1 fake >>/etc/hosts; grep -c fake /etc/hosts").stdout == "1\n"
    assert Path("/etc/hosts").read_text() == before


def test_namespaces(node: Node) -> None:
    # The last is the shell's own work: no other process can be among those that it sees.
    script = "hostname; cat /etc/hostname; echo $$; echo /proc/[0-9]*"
    result = node.shell(script, hostname="box.example")
    assert result.stdout.split() == ["box.example", "box.example", "1", "/proc/1"]
    kinds = ("pid", "ipc", "uts", "mnt", "cgroup")
    script = f"for kind in {' '.join(kinds)}; do readlink /proc/self/ns/$kind; done"
    inside = node.shell(script).stdout.split()
    assert len(inside) == len(kinds)
    assert not set(inside) & {str(Path("/proc/self/ns", kind).readlink()) for kind in kinds}


def test_devices_of_the_host_are_out_of_reach(node: Node) -> None:
    # mknod is allowed, as in docker; to open what it made is not.
    result = node.shell("mknod /tmp/disk b 7 0; cat /tmp/disk; cat /proc/kcore; cat /dev/null && echo null")
    assert result.stdout == "null\n"
    assert "Operation not permitted" in result.stderr


def test_umask_and_open_files_do_not_depend_on_the_caller(node: Node) -> None:
    result = node.shell(
        "umask; ulimit -Sn; ulimit -Hn", wrap=("sh", "-c", 'umask 077; ulimit -Sn 64; exec "$@"', "-")
    )
    umask, soft, hard = result.stdout.split()
    assert umask == "0022"
    assert soft == hard != "64"
    node.run("true", workdir="/made", wrap=("sh", "-c", 'umask 077; exec "$@"', "-"))
    assert (node.rootfs / "made").stat().st_mode & 0o777 == 0o755


def test_memory_limit_is_enforced(node: Node) -> None:
    # PID 1 fills a buffer of 200 MiB: more than 32 MiB, and as much swap.
    greedy = ("dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1")
    assert node.run(*greedy).returncode == 0
    result = node.run(*greedy, memory="32m")
    assert (result.returncode, result.stdout) == (137, "")
    assert node.run("dd", "if=/dev/zero", "of=/dev/null", "bs=4M", "count=1", memory="32m").returncode == 0


@pytest.mark.parametrize("word", ["\ud800", "a\0b"])
def test_words_that_no_program_can_be_given(node: Node, word: str) -> None:
    result = node.run("true", image={"env": [f"X={word}"]})
    assert result.returncode == 125
    assert error_of(result)["error"] in ("UsageError", "BadInputError")


def test_missing_runtime(node: Node) -> None:
    result = node.run("true", runtime="no-such-runtime")
    assert error_of(result)["error"] == "NodeError"
    assert "no-such-runtime" in error_of(result)["message"]
