"""Section [fetch] of a node's config.toml: what is meant, and what cannot be."""

from pathlib import Path

import pytest

from lazyfs.config import NodePaths
from lazyfs.errors import UsageError
from lazyfs.node.fetch_settings import FetchSettings


def read(root: Path, text: str) -> FetchSettings:
    (root / "config.toml").write_text(f"[fetch]\n{text}\n")
    return FetchSettings.read(NodePaths(root))


def test_nothing_said(tmp_path: Path) -> None:
    assert FetchSettings.read(NodePaths(tmp_path)) == FetchSettings()


def test_all_said(tmp_path: Path) -> None:
    chosen = read(
        tmp_path,
        'timeout = 5\nmemory = "32M"\nfill = false\nproxy = "http://127.0.0.1:65001"\n'
        'headers = { X-Dragonfly-Tag = "lazyfs" }',
    )
    headers = (("X-Dragonfly-Tag", "lazyfs"),)
    assert chosen == FetchSettings(5.0, 32 << 20, False, "http://127.0.0.1:65001", headers)
    options = chosen.store_options()
    assert (options.timeout, options.proxy, options.headers) == (5.0, chosen.proxy, headers)


@pytest.mark.parametrize(
    "text",
    [
        "retries = 3",
        "timeout = 0",
        "timeout = true",
        "timeout = nan",
        'timeout = "long"',
        'memory = "1M"',
        'memory = "80%"',
        "memory = [1]",
        'fill = "no"',
        'proxy = "socks5://127.0.0.1"',
        'proxy = "http://[::1"',
        'proxy = "http://host:99999"',
        "proxy = 1",
        "headers = 1",
        'headers = { Host = "x" }',
        'headers = { "a b" = "x" }',
        'headers = { X = "a\\r\\nb" }',
        "headers = { X = 1 }",
    ],
)
def test_what_cannot_be_meant(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match=r"config.toml: \[fetch\]"):
        read(tmp_path, text)


def test_a_password_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, 'proxy = "https://me:secret@proxy"')
    assert "secret" not in str(caught.value)
    chosen = read(tmp_path, 'proxy = "http://me:secret@proxy:1"')
    assert "secret" not in repr(chosen.store_options())
    assert "secret" not in repr(chosen)
