"""References: what a user writes is what is meant, and comes back as it was written."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lazyfs.errors import NotFoundError, UsageError
from lazyfs.formats.oci_descriptor import sha256_digest
from lazyfs.stores import Reference, parse_reference
from lazyfs.stores.archive_names import full_name, with_tag

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
    | st.text("a:/@.sh256-_", max_size=40).map(lambda text: f"s3://{text}")
    | st.text("aB:/@.sh256-_", max_size=40).map(lambda text: f"docker-archive:{text}")
    | st.text("aB:/@.sh256-_", max_size=40).map(lambda text: f"oci-archive:{text}")
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
        ("dir:images", "skopeo copy 'dir:images' oci:"),
        ("gs://bucket/repo:tag", "supported: oci:DIR[:tag]"),
        ("oci-archive:", "oci-archive:FILE[:tag]"),
        ("oci-archive://srv/a.tar", "oci-archive:/srv/a.tar"),
        ("docker-archive::app", "docker-archive:FILE[:name[:tag]]"),
        ("docker-archive:a.tar:App", "lower-case"),
        ("docker-archive:a.tar:app:-", "up to 128 letters"),
        (f"docker-archive:a.tar:{DIGEST}", "write @ before a digest"),
        ("s3:bucket/app", "s3://bucket/images/app:v1"),
        ("s3://bucket", "s3://bucket/images/app:v1"),
        ("s3://bucket/_tags/app", "s3://bucket/images/app:v1"),
        ("s3://bucket/a//b", "s3://bucket/images/app:v1"),
        ("s3://bucket/app:a b", "a tag is letters and digits"),
        (f"s3://bucket/app:v1@{DIGEST}", "name one of them"),
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


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("oci-archive:a.tar", Reference("oci-archive", "a.tar")),
        ("oci-archive:/srv/a.tar:v1", Reference("oci-archive", "/srv/a.tar", tag="v1")),
        ("docker-archive:a.tar:app", Reference("docker-archive", "a.tar", tag="app")),
        ("docker-archive:a.tar:@1", Reference("docker-archive", "a.tar", tag="@1")),
        (
            "docker-archive:a.tar:host:5000/team/app:v1",
            Reference("docker-archive", "a.tar", tag="host:5000/team/app:v1"),
        ),
        (f"docker-archive:a.tar@{DIGEST}", Reference("docker-archive", "a.tar", digest=DIGEST)),
        ("s3://bucket/app", Reference("s3", "bucket/app")),
        ("s3://my.bucket/team/images/App_1:v1", Reference("s3", "my.bucket/team/images/App_1", tag="v1")),
        (f"s3://bucket/app@{DIGEST}", Reference("s3", "bucket/app", digest=DIGEST)),
    ],
)
def test_references_to_archives_and_buckets(text: str, reference: Reference) -> None:
    assert parse_reference(text) == reference
    assert str(reference) == text


def test_names_in_a_docker_archive_are_the_same_in_full() -> None:
    assert full_name("app") == full_name("docker.io/library/app:latest") == "docker.io/library/app:latest"
    assert full_name("host:5000/app") == "host:5000/app:latest"
    assert (with_tag("team/app"), with_tag("host:5000/app:v1")) == ("team/app:latest", "host:5000/app:v1")


def test_an_absolute_reference_means_the_same_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    reference = parse_reference("oci:images:v1").absolute()
    assert str(reference) == f"oci:{tmp_path}/images:v1"
    assert reference.absolute() == reference
    assert str(parse_reference("oci-archive:a.tar").absolute()) == f"oci-archive:{tmp_path}/a.tar"
    assert str(parse_reference("s3://bucket/app:v1").absolute()) == "s3://bucket/app:v1"
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
    assert parse_reference("docker-archive:a.tar:app").tag_to_write() == "app"
    for text in (f"oci:d@{DIGEST}", "docker-archive:a.tar", "docker-archive:a.tar:@0"):
        with pytest.raises(UsageError):
            parse_reference(text).tag_to_write()
