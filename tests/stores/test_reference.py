"""References: what a user writes is what is meant, and comes back as it was written."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lazyfs.errors import NotFoundError, UsageError
from lazyfs.formats.oci import sha256_digest
from lazyfs.stores import Reference, parse_reference

DIGEST = sha256_digest(b"")

# A loaded machine is no failure.
calm = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

locations = st.text(st.characters(exclude_characters=":\0"), min_size=1).filter(
    lambda text: not text.startswith("//")
)
tags = st.from_regex(r"[A-Za-z0-9]+([-._@+:][A-Za-z0-9]+)*(/[A-Za-z0-9]+)*", fullmatch=True).filter(
    lambda text: "@sha" not in text and not text.startswith("sha256:")
)
selectors: st.SearchStrategy[dict[str, str]] = st.one_of(
    st.fixed_dictionaries({}),
    st.fixed_dictionaries({"tag": tags}),
    st.fixed_dictionaries({"digest": st.binary(max_size=4).map(sha256_digest)}),
)


@calm
@given(locations, selectors)
def test_a_reference_survives_its_text(location: str, selector: dict[str, str]) -> None:
    reference = Reference("oci", location, **selector)
    assert parse_reference(str(reference)) == reference


@calm
@given(
    st.text(max_size=60)
    | st.text("oci:/@a.sh256", max_size=40).map(lambda text: f"oci:{text}")
    | st.text("a:/@.sh256-_", max_size=40).map(lambda text: f"docker://{text}")
)
def test_any_text_is_a_reference_or_a_usage_error(text: str) -> None:
    try:
        reference = parse_reference(text)
    except UsageError as error:
        assert error.hint or "\0" in text
    else:
        assert str(reference) == text


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("oci:/srv/images", Reference("oci", "/srv/images")),
        ("oci:images:v1.2", Reference("oci", "images", tag="v1.2")),
        ("oci:./a@b:x", Reference("oci", "./a@b", tag="x")),
        (f"oci:images@{DIGEST}", Reference("oci", "images", digest=DIGEST)),
        (
            "oci:d:docker.io/library/busybox:latest",
            Reference("oci", "d", tag="docker.io/library/busybox:latest"),
        ),
        ("docker://busybox", Reference("docker", "busybox")),
        ("docker://localhost:5000/a/b:v1", Reference("docker", "localhost:5000/a/b", tag="v1")),
        ("docker://localhost:5000", Reference("docker", "localhost", tag="5000")),
        (f"docker://[::1]:5000/app@{DIGEST}", Reference("docker", "[::1]:5000/app", digest=DIGEST)),
    ],
)
def test_references_as_skopeo_writes_them(text: str, reference: Reference) -> None:
    assert parse_reference(text) == reference
    assert reference.selector == (reference.digest or reference.tag)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("busybox", "is named docker://IMAGE"),
        ("busybox:latest", "is named docker://IMAGE"),
        ("/srv/images", "a directory is named oci:DIR"),
        ("./images:v1", "a directory is named oci:DIR"),
        ("docker:busybox", "docker://[HOST[:PORT]/]REPOSITORY[:tag]"),
        ("docker://", "for example docker://registry.example:5000/team/app:v1"),
        ("docker://host:99999/app", "for example docker://registry.example:5000/team/app:v1"),
        ("docker://-a-/app", "a repository is lower-case letters"),
        ("docker://host.example/App", "a repository is lower-case letters"),
        ("docker://host.example/../app", "a repository is lower-case letters"),
        ("docker://host.example/app:a/b", "a repository is lower-case letters"),
        ("docker://host.example/app:", "a tag is up to 128 letters"),
        (f"docker://host.example/app:{'a' * 129}", "a tag is up to 128 letters"),
        ("docker-archive:f.tar", "skopeo copy 'docker-archive:f.tar' oci:"),
        ("s3://bucket/repo:tag", "supported: oci:DIR[:tag]"),
        ("", "for example oci:./images:latest"),
        ("oci:", "for example oci:./images:latest"),
        ("oci::latest", "for example oci:./images:latest"),
        ("oci://srv/images", "oci:/srv/images"),
        ("oci:images:", "a tag is letters and digits"),
        ("oci:images:a b", "a tag is letters and digits"),
        (f"oci:images:{DIGEST}", "write @ before a digest"),
        (f"oci:images:v1@{DIGEST}", "name one of them"),
        ("oci:images@sha256:abc", "64 lower-case hex digits"),
        (f"oci:images@sha512:{'0' * 128}", "sha256"),
    ],
)
def test_what_is_no_reference_says_what_to_write(text: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_reference(text)
    assert hint in caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint


def test_an_absolute_reference_means_the_same_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    reference = parse_reference("oci:images:v1").absolute()
    assert str(reference) == f"oci:{tmp_path}/images:v1"
    assert reference.absolute() == reference
    remote = parse_reference("docker://busybox")
    assert remote.absolute() == remote


def test_a_reference_cannot_be_absolute_where_paths_have_colons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strange = tmp_path / "a:b"
    strange.mkdir()
    monkeypatch.chdir(strange)
    with pytest.raises(UsageError, match="colon"):
        parse_reference("oci:images").absolute()


def test_a_working_directory_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(tmp_path)  # restores the old one in the end
    os.chdir(gone)
    gone.rmdir()
    with pytest.raises(NotFoundError, match="working directory"):
        parse_reference("oci:images").absolute()


def test_the_tag_that_a_write_sets() -> None:
    assert parse_reference("oci:d").tag_to_write() == "latest"
    assert parse_reference("oci:d:v1").tag_to_write() == "v1"
    with pytest.raises(UsageError):
        parse_reference(f"oci:d@{DIGEST}").tag_to_write()
