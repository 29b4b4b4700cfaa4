"""Containers that are ready in the sense of their users: the images of the suite, and how to tell."""

from collections.abc import Mapping
from dataclasses import dataclass

_PONG = 'exec 3<>/dev/tcp/127.0.0.1/18082; echo PING >&3; read -rt 1 said <&3; [ "${said%?}" = +PONG ]'


@dataclass(frozen=True, slots=True)
class Workload:
    """An image of `benchmarks.images`, when it is ready, and what runs instead of its Entrypoint and Cmd.

    What reads everything has no use for a launch pack.
    """

    recipe: str
    ready: str
    about: str
    words: tuple[str, ...] = ()
    with_pack: bool = True


SUITE: Mapping[str, Workload] = {
    "numpy": Workload("demo", "log:ready", "python3 has imported numpy"),
    "stack": Workload(
        "stack", "log:ready", "pandas, scikit-learn, scipy, matplotlib, onnxruntime are imported"
    ),
    "node": Workload("node", "http:18080/", "node has answered a request"),
    "nginx": Workload("nginx", "http:18081/", "nginx has answered a request"),
    "redis": Workload("redis", f"exec:bash -c '{_PONG}'", "redis has answered PING"),
    "postgres": Workload("postgres", "log:ready", "PostgreSQL has answered a query"),
    "java": Workload("java", "http:18084/", "a JVM has answered a request"),
    "django": Workload("django", "http:18085/", "Django has answered with its first page"),
    "gcc": Workload("gcc", "log:ready", "gcc has compiled a program, and it has run"),
    "go": Workload("go", "http:18086/", "a Go program in an image of its own has answered a request"),
    "large, unread": Workload("large", "log:ready", "a gigabyte, of which nothing is read"),
    "large, read": Workload(
        "large",
        "log:ready",
        "all of a gigabyte is read",
        ("sh", "-c", "cat /data/* >/dev/null; echo ready"),
        with_pack=False,
    ),
    "many files": Workload("many", "log:ready", "100,000 small files are listed"),
}
QUICK = ("numpy", "nginx", "go")
