"""Images as real builders make and save them: converted, held against the original, started."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.images import BuiltImage

from .conftest import Node, lazyfs, succeed
from .engines import Engine, buildah, podman, tool

pytestmark = pytest.mark.image

# Whiteouts of files and of a directory, links of every kind, an owner, what a base has replaced.
CONTAINERFILE = """
FROM localhost/oci:latest
USER 0
RUN rm -rf /usr/share/doc /etc/issue && mkdir /etc/issue && ln -s app/greeting /srv/link \\
    && echo built >/srv/built && ln /srv/built /srv/linked && chown 7:8 /srv/built && mkdir -m 1777 /srv/empty
COPY --chown=1000 greeting /srv/app/greeting
USER 1000
ENTRYPOINT ["cat", "/srv/link", "/srv/linked"]
CMD []
"""
SAID = "hello\nbuilt\n"


def build(engine: Engine, base: BuiltImage, context: Path) -> str:
    """Build on top of an image of ours; the name of the result."""
    context.mkdir()
    (context / "greeting").write_text("hello\n")
    (context / "Containerfile").write_text(CONTAINERFILE)
    # It names the image by the path.
    reference = f"oci:{base.layout.name}:{base.reference.rpartition(':')[2]}"
    engine("pull", "--quiet", reference, cwd=base.layout.parent)
    engine("build", "--quiet", "--isolation", "chroot", "--tag", "built:v1", context)
    return "localhost/built:v1"


@pytest.fixture(scope="module")
def podman_saved(built_demo: BuiltImage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Debian image that podman built from a Containerfile, saved in both of its formats."""
    directory = tmp_path_factory.mktemp("podman")
    with podman() as engine:
        name = build(engine, built_demo, directory / "context")
        for kind in ("docker-archive", "oci-archive"):
            engine("save", "--quiet", "--format", kind, "--output", directory / kind, name)
    yield directory
    shutil.rmtree(directory)


def converted(source: str, directory: Path) -> str:
    reference = f"oci:{directory}/lazy:v1"
    succeed(lazyfs("convert", source, reference))
    said = succeed(lazyfs("check", reference, "--against", source)).stdout
    assert said.startswith("ok: ")
    assert f"of the same bytes as {source}" in said
    return reference


@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive"])
def test_what_podman_saves(node: Node, podman_saved: Path, kind: str, tmp_path: Path) -> None:
    reference = converted(f"{kind}:{podman_saved / kind}", tmp_path)
    assert succeed(node.run(reference)).stdout == SAID


def test_what_buildah_builds(node: Node, built_small: BuiltImage, tmp_path: Path) -> None:
    with buildah() as engine:
        name = build(engine, built_small, tmp_path / "context")
        engine("push", "--quiet", name, f"oci-archive:{tmp_path}/saved.tar:v1")
    assert succeed(node.run(converted(f"oci-archive:{tmp_path}/saved.tar:v1", tmp_path))).stdout == SAID


def test_what_umoci_repacks(node: Node, built_small: BuiltImage, tmp_path: Path) -> None:
    layout, bundle = tmp_path / "oci", tmp_path / "bundle"
    shutil.copytree(built_small.layout, layout)
    tool("umoci", "unpack", "--image", f"{layout}:small", bundle)
    root = bundle / "rootfs"
    (root / "srv" / "built").write_text("built by umoci\n")
    (root / "srv" / "linked").hardlink_to(root / "srv" / "built")
    shutil.rmtree(root / "srv" / "app")
    tool("umoci", "repack", "--image", f"{layout}:new", bundle)
    command = ("--config.entrypoint", "cat", "--config.cmd", "/srv/linked", "--config.workingdir", "/srv")
    tool("umoci", "config", "--image", f"{layout}:new", *command)
    reference = converted(f"oci:{layout}:new", tmp_path)
    assert succeed(node.run(reference)).stdout == "built by umoci\n"
    result = node.run("--entrypoint", "ls", reference, "/srv")
    assert succeed(result).stdout.split() == ["built", "linked"]
