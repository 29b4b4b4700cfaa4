"""Containers in processes of their own, as a test wants them, and a search for what they leave behind."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from lazyfs.mount.mountinfo import list_mounts

REPOSITORY = Path(__file__).parents[2]
DRIVER = Path(__file__).with_name("driver.py")
PATIENCE = 60.0

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
# not an entry
broken:line
app:x:1000:1001:An App:/home/app:/bin/sh
1234:x:77:78::/numbered:/bin/sh
"""
GROUP = """\
root:x:0:
staff:x:50:app,other
video:x:44:root,app
main:x:1001:
"""


class Node:
    """Runs containers with one runtime. Each process of theirs carries a mark, so that none is missed."""

    def __init__(self, runtime: str, rootfs: Path, state: Path) -> None:
        self.runtime = runtime
        self.rootfs = rootfs
        self.state = state
        self.mark = f"LAZYFS_TEST={state}"
        self.started: list[subprocess.Popen[str]] = []

    def command(self, *args: str, image: dict[str, Any] | None = None, **options: Any) -> list[str]:
        options = {"runtime": self.runtime, "args": list(args)} | options
        options["env"] = [self.mark, *options.get("env", ())]
        request = {
            "rootfs": str(self.rootfs),
            "state": str(self.state),
            "image": image or {},
            "options": options,
        }
        return [sys.executable, str(DRIVER), json.dumps(request)]

    def start(
        self, *args: str, image: dict[str, Any] | None = None, wrap: tuple[str, ...] = (), **options: Any
    ) -> subprocess.Popen[str]:
        streams = {name: options.pop(name, subprocess.PIPE) for name in ("stdin", "stdout", "stderr")}
        pass_fds = options.pop("pass_fds", ())
        process = subprocess.Popen(
            [*wrap, *self.command(*args, image=image, **options)],
            text=True,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            pass_fds=pass_fds,
            **streams,
        )
        self.started.append(process)
        return process

    def run(self, *args: str, input: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
        process = self.start(*args, **options)
        out, err = process.communicate(input, timeout=PATIENCE)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def shell(self, script: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.run("sh", "-c", script, **options)

    def processes(self) -> list[int]:
        """Every process in one of our containers."""
        return [
            pid
            for pid in map(int, filter(str.isdigit, (path.name for path in Path("/proc").iterdir())))
            if self._is_ours(pid)
        ]

    def _is_ours(self, pid: int) -> bool:
        try:
            return self.mark.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False

    def cgroups(self, name: str) -> list[Path]:
        """Where the running container's cgroup is, in every hierarchy."""
        path = json.loads((self.state / name / "run.json").read_text())["cgroup"]
        return list(Path("/sys/fs/cgroup").glob(f"*{path}"))

    def leftovers(self) -> list[str]:
        found = [f"process {pid}" for pid in self.processes()]
        found += [f"mount {entry.target}" for entry in list_mounts(self.state.parent)]
        found += [str(path) for path in self.state.glob("*")]
        return found

    def close(self) -> None:
        """Kill what is left after a test that failed, or that wanted it so."""
        for process in self.started:
            process.kill()
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.started:
            process.communicate()
