"""The one tree of errors, and what each is to a reader, to containerd and to a shell.

    LazyfsError
    ├── UsageError          the caller asked for something that cannot be meant
    ├── NotFoundError       the image, tag, blob or mount that was named is not there
    ├── BadInputError       what a stranger wrote (tar, manifest, TOC, blob) breaks its specification
    ├── IntegrityError      bytes are not the bytes that their digest promised
    ├── LimitError          something is larger than the limit that protects this machine
    ├── StoreError          a store could not be reached, or did not answer as it must
    ├── NodeError           this machine could not do it: daemon, mount, runtime
    ├── BusyError           it is in use, or another process is at it
    └── UnsupportedError    a feature that this version or this kernel does not have

Each class carries the ``errno`` that a reader of a file gets, the gRPC status code (by name, so
that this module needs no gRPC) and the exit code of the command line. `docs/operations.md` lists
the exit codes for users.
"""

import errno as _errno
from typing import Any, ClassVar


class LazyfsError(Exception):
    """An error that lazyfs understands: one line for people, codes for programs.

    ``message`` names the thing that is wrong; ``hint`` names the remedy, where there is one.
    """

    errno: ClassVar[int] = _errno.EIO
    grpc_code: ClassVar[str] = "UNKNOWN"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def as_dict(self) -> dict[str, Any]:
        """The error as JSON-able values; `from_dict` reads it back."""
        return {
            "error": type(self).__name__,
            "message": self.message,
            "hint": self.hint,
            "exit_code": self.exit_code,
        }


class UsageError(LazyfsError):
    errno = _errno.EINVAL
    grpc_code = "INVALID_ARGUMENT"
    exit_code = 2


class NotFoundError(LazyfsError):
    errno = _errno.ENOENT
    grpc_code = "NOT_FOUND"
    exit_code = 3


class BadInputError(LazyfsError):
    errno = _errno.EIO
    grpc_code = "INVALID_ARGUMENT"
    exit_code = 4


class IntegrityError(LazyfsError):
    errno = _errno.EIO
    grpc_code = "DATA_LOSS"
    exit_code = 5


class StoreError(LazyfsError):
    errno = _errno.EIO
    grpc_code = "UNAVAILABLE"
    exit_code = 6


class NodeError(LazyfsError):
    errno = _errno.EIO
    grpc_code = "INTERNAL"
    exit_code = 7


class BusyError(LazyfsError):
    errno = _errno.EBUSY
    grpc_code = "FAILED_PRECONDITION"
    exit_code = 8


class LimitError(LazyfsError):
    errno = _errno.EFBIG
    grpc_code = "RESOURCE_EXHAUSTED"
    exit_code = 9


class UnsupportedError(LazyfsError):
    errno = _errno.EOPNOTSUPP
    grpc_code = "UNIMPLEMENTED"
    exit_code = 10


_BY_NAME: dict[str, type[LazyfsError]] = {
    cls.__name__: cls
    for cls in (
        LazyfsError,
        UsageError,
        NotFoundError,
        BadInputError,
        IntegrityError,
        LimitError,
        StoreError,
        NodeError,
        BusyError,
        UnsupportedError,
    )
}


def from_dict(values: dict[str, Any]) -> LazyfsError:
    """Rebuild the error that another process wrote with `LazyfsError.as_dict`."""
    cls = _BY_NAME.get(str(values.get("error")), LazyfsError)
    return cls(str(values.get("message", "unknown error")), hint=str(values.get("hint", "")))
