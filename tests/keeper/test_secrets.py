"""Passwords and keys are nowhere to be read: not in what commands say, not in logs, state, status or argument lists.

Everything that a node and its commands write while they use secrets, rightly and wrongly, is searched for them.
"""

import base64
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from lazyfs.config import NodePaths
from tests.daemon.processes import PATIENCE, daemons, keepers, may_be_dumped
from tests.faults import FaultServer, Reply
from tests.registry import HTPASSWD, PASSWORD, USER, Registry, needs_registry, run_registry, write_auth
from tests.waiting import wait_until

pytestmark = [pytest.mark.root, needs_registry]

TOKEN = "a-header-that-is-a-secret"
PROXY_PASSWORD = "a-password-of-a-proxy"
KEY = "a-key-of-a-bucket-that-is-a-secret"
WRONG = "not the right horse"
SECRETS = [PASSWORD, WRONG, TOKEN, PROXY_PASSWORD, KEY]


def shapes(secret: str) -> Iterator[bytes]:
    """As it is, in an address, in JSON, and as a header has it."""
    yield secret.encode()
    yield quote(secret, safe="").encode()
    yield base64.b64encode(f"{USER}:{secret}".encode())
    yield base64.b64encode(secret.encode())


@pytest.fixture
def guarded(layout: Path, tmp_path: Path) -> Iterator[Registry]:
    directory = tmp_path / "registry"
    directory.mkdir()
    (directory / "htpasswd").write_text(HTPASSWD)
    auth = {"htpasswd": {"realm": "tests", "path": str(directory / "htpasswd")}}
    with run_registry(directory, auth=auth) as registry:
        yield registry


def test_no_secret_is_written_anywhere(
    guarded: Registry, layout: Path, paths: NodePaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auth_file = write_auth(tmp_path / "auth.json", guarded.host)
    for name, value in {
        "REGISTRY_AUTH_FILE": str(auth_file),
        "LAZYFS_LOG": "debug",
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": KEY,
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_REGION": "eu-test-1",
        "HTTPS_PROXY": f"http://user:{PROXY_PASSWORD}@127.0.0.1:9",
    }.items():
        monkeypatch.setenv(name, value)
    said: list[bytes] = []

    def lazyfs(*words: object) -> int:
        command = [sys.executable, "-m", "lazyfs.cli.main", "--root", str(paths.root), *map(str, words)]
        done = subprocess.run(command, check=False, capture_output=True, timeout=PATIENCE)
        said.append(done.stdout + done.stderr)
        return done.returncode

    image, target = f"docker://{guarded.host}/app:lazy", tmp_path / "mounted"
    paths.root.mkdir()
    target.mkdir()
    paths.settings.write_text(f"[fetch]\ntimeout = 2\nheaders = {{ X-Token = '{TOKEN}' }}\n")
    assert lazyfs("copy", f"oci:{layout}:lazy", image) == 0
    assert lazyfs("mount", image, target) == 0, said[-1]
    assert (target / "text").read_bytes() == b"lower"
    (tmp_path / "other").mkdir()
    for words in (["status"], ["doctor"], ["inspect", image], ["cache"], ["cache", "verify"]):
        lazyfs(*words)
        lazyfs(*words, "--json")
    with FaultServer(lambda _: Reply(403)) as bucket, monkeypatch.context() as reached:
        # Without the node's settings a bucket that cannot be reached is asked for half a minute.
        reached.setenv("AWS_ENDPOINT_URL", bucket.url)
        assert lazyfs("--debug", "bench", "start", "s3://bucket/app:lazy") != 0
        assert bucket.seen
    lazyfs("--debug", "profile", "docker://registry.invalid/app:lazy")
    lazyfs("mount", "s3://bucket/app:lazy", tmp_path / "other")
    lazyfs("mount", "docker://registry.invalid/app:lazy", tmp_path / "other")
    write_auth(auth_file, guarded.host, password=WRONG)
    assert lazyfs("inspect", image) != 0
    processes = [*keepers(paths), *daemons(paths)]
    assert len(processes) == 2
    for pid in processes:
        said.append(Path(f"/proc/{pid}/cmdline").read_bytes())
        # Who may not be traced leaves no core dump either (PR_SET_DUMPABLE).
        assert not may_be_dumped(pid)
    said.append(b"".join(guarded.log))
    assert lazyfs("umount", target) == 0
    assert lazyfs("shutdown") == 0
    wait_until(lambda: not keepers(paths), "the end of the keeper")
    kept = [path for path in paths.root.rglob("*") if path.is_file() and path != paths.settings]
    assert paths.log in kept
    said += [path.read_bytes() for path in kept if path.parent != paths.credentials.parent]
    for secret in SECRETS:
        for shape in shapes(secret):
            assert [text for text in said if shape in text] == []
