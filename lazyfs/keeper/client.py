"""Asking the keeper itself, which answers also while there is no daemon: one packet there, one back."""

import socket
from typing import Any

from lazyfs.config import NodePaths
from lazyfs.errors import NodeError, NotFoundError, from_dict
from lazyfs.keeper import link

TIMEOUT = 10.0
UPGRADE_TIMEOUT = 120.0


class NoKeeperError(NotFoundError):
    """No keeper runs."""


class KeeperClient:
    """Raises NoKeeperError when there is no keeper, and the LazyfsError that it answers with."""

    def __init__(self, paths: NodePaths) -> None:
        self._paths = paths

    def is_running(self) -> bool:
        try:
            self._connect().close()
        except NoKeeperError:
            return False
        return True

    def status(self) -> dict[str, Any]:
        return self._ask({"call": "status"}, TIMEOUT)

    def stop(self) -> int:
        """Have it end the daemon and itself, whatever is mounted; its process id."""
        return int(self._ask({"call": "stop"}, TIMEOUT)["pid"])

    def upgrade(self, python: str, path: str | None) -> dict[str, Any]:
        """Let the lazyfs of this interpreter take over; returns when it serves.

        `path` is its PYTHONPATH. The old daemon goes on when the new one does not come to serve.
        """
        return self._ask({"call": "upgrade", "python": python, "path": path}, UPGRADE_TIMEOUT)

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with link.short_path(self._paths.keeper_socket) as address:
                connection.connect(address)
        except PermissionError as error:
            connection.close()
            raise NodeError(
                f"{self._paths.keeper_socket}: {error.strerror}", hint="only root may talk to the keeper"
            ) from error
        except OSError as error:
            connection.close()
            raise NoKeeperError(
                f"no daemon runs for {self._paths.root}", hint="`lazyfs run` and `lazyfs mount` start one"
            ) from error
        return connection

    def _ask(self, values: dict[str, Any], timeout: float) -> dict[str, Any]:
        with self._connect() as connection:
            connection.settimeout(timeout)
            try:
                link.send(connection, values)
                answer = link.hear(connection)
            except (EOFError, OSError) as error:
                raise NodeError(
                    f"the keeper of {self._paths.root} did not answer", hint=f"see {self._paths.log}"
                ) from error
        if "error" in answer:
            raise from_dict(answer)
        return answer
