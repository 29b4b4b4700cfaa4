"""A thread that takes connections for a server of the standard library, and sleeps until there is one.

`BaseServer.serve_forever` looks ten times a second whether it is to end.
"""

import selectors
import socket
import socketserver
import threading


class ServerThread:
    def __init__(self, server: socketserver.TCPServer, name: str) -> None:
        self._server = server
        server.timeout = 0
        self._ours, self._theirs = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take no more connections; what was taken goes on."""
        self._ours.close()
        self._thread.join()
        self._theirs.close()

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._server, selectors.EVENT_READ)
            selector.register(self._theirs, selectors.EVENT_READ)
            while all(key.fileobj is self._server for key, _ in selector.select()):
                self._server.handle_request()
