"""What is typed after `lazyfs run`, and what docker makes of it."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import UsageError
from lazyfs.run.options import (
    RunOptions,
    Volume,
    parse_env,
    parse_hostname,
    parse_memory,
    parse_name,
    parse_network,
    parse_options,
    parse_volume,
    parse_workdir,
)

MIB = 1 << 20


def test_nothing_asked_for_is_the_default() -> None:
    assert parse_options() == RunOptions()


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512m", 512 * MIB),
        ("512M", 512 * MIB),
        ("1g", 1024 * MIB),
        ("1.5g", 1536 * MIB),
        ("6144k", 6 * MIB),
        ("8388608", 8 * MIB),
        ("8388608b", 8 * MIB),
        ("64mb", 64 * MIB),
        ("64 MiB", 64 * MIB),
        ("1t", MIB * MIB),
    ],
)
def test_memory(text: str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "m", "-1m", "1x", "5m", "0", "1e9", "512 m m", "9999999t", "١٢٣m" * 2])
def test_no_memory_size(text: str) -> None:
    with pytest.raises(UsageError):
        parse_memory(text)


@given(st.text())
def test_memory_never_fails_otherwise(text: str) -> None:
    with suppress(UsageError):
        assert parse_memory(text) >= 6 * MIB


def test_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    assert parse_volume(f"{tmp_path}:/x") == Volume(tmp_path, "/x")
    assert parse_volume("./data:/x:rw") == Volume(tmp_path / "data", "/x")
    assert parse_volume("data://x/../y/.:ro") == Volume(tmp_path / "data", "/y", True)


@pytest.mark.parametrize(
    "text",
    ["", ":", "/tmp", "/tmp:", ":/x", "/tmp:x", "/tmp:/", "/tmp:/..", "/tmp:/x:", "/tmp:/x:rox", "/tmp:/x:ro:rw",
     "/no/such:/x"],
)  # fmt: skip
def test_no_volume(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_volume(text)
    assert caught.value.hint


def test_two_volumes_on_one_place() -> None:
    with pytest.raises(UsageError, match="/x"):
        parse_options(volumes=["/tmp:/x", "/usr:/x/"])


def test_environment(tmp_path: Path) -> None:
    environ = {"KNOWN": "value"}
    assert parse_env("A=b=c", environ) == "A=b=c"
    assert parse_env("A=", environ) == "A="
    assert parse_env("KNOWN", environ) == "KNOWN=value"
    assert parse_env("UNKNOWN", environ) == "UNKNOWN"
    file = tmp_path / "env"
    file.write_text("# comment\n\nA=1 # no comment\n  KNOWN\nB='quoted'\n")
    options = parse_options(env=["A=2"], env_files=[file], environ=environ)
    assert options.env == ("A=1 # no comment", "KNOWN=value", "B='quoted'", "A=2")


def test_no_environment(tmp_path: Path) -> None:
    for text in ("", "=x", "A B=c", "A\n=c"):
        with pytest.raises(UsageError):
            parse_env(text, {})
    (tmp_path / "latin").write_bytes(b"A=\xe4\n")
    (tmp_path / "large").write_bytes(b"#" * (2 * MIB))
    for name in ("latin", "large", "missing", "."):
        with pytest.raises(UsageError, match=str(tmp_path)):
            parse_options(env_files=[tmp_path / name])


@pytest.mark.parametrize("text", ["a", "web-1", "A_b.c", "0" * 64])
def test_name(text: str) -> None:
    assert parse_name(text) == text


@pytest.mark.parametrize("text", ["", ".", "..", "-a", "a/b", "a b", "ä", "a\n", "0" * 65])
def test_no_name(text: str) -> None:
    with pytest.raises(UsageError):
        parse_name(text)


def test_hostname_network_and_workdir() -> None:
    assert parse_hostname("a-b.example") == "a-b.example"
    assert parse_workdir("//a/./b/../c/") == "/a/c"
    assert parse_network("none") == "none"
    for parse, text in (
        (parse_hostname, "a..b"),
        (parse_hostname, "-a"),
        (parse_hostname, "a" * 65),
        (parse_workdir, "relative"),
        (parse_network, "bridge"),
    ):
        with pytest.raises(UsageError) as caught:
            parse(text)
        assert caught.value.hint
