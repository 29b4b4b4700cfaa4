"""The mirror is read from every form of apt's sources."""

from pathlib import Path

import pytest

from benchmarks.images import BuildError, apt

_STANZAS = """\
# A comment
Types: deb deb-src
URIs: http://one.example/debian
  http://two.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 Suites: trixie

Types: deb
URIs: http://off.example/debian
Suites: trixie
Components: main
Enabled: no

Types: deb-src
URIs: http://source.example/debian
Suites: sid
Components: main
"""


def _write(etc: Path, name: str, text: str) -> None:
    path = etc / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_one_line_sources(tmp_path: Path) -> None:
    lines = [
        "# deb http://comment.example/debian bookworm main",
        "deb-src http://source.example/debian bookworm main",
        "deb http://other.example/tools bookworm contrib",
        "deb [ arch=amd64 signed-by=/k.gpg ] http://good.example/debian bookworm main contrib # why",
        "deb http://late.example/debian bookworm main",
    ]
    _write(tmp_path, "sources.list", "\n".join(lines))
    assert apt.find_mirror("bookworm", tmp_path) == "http://good.example/debian"


def test_stanzas(tmp_path: Path) -> None:
    _write(tmp_path, "sources.list.d/debian.sources", _STANZAS)
    assert apt.find_mirror("bookworm-updates", tmp_path) == "http://one.example/debian"
    assert len(list(apt.read_sources(tmp_path))) == 4


@pytest.mark.parametrize("suite", ["trixie", "sid", "book"])
def test_no_source_is_one_line_with_a_remedy(tmp_path: Path, suite: str) -> None:
    _write(tmp_path, "sources.list.d/debian.sources", _STANZAS)
    with pytest.raises(BuildError, match=f"no apt source in .* has Debian's {suite} main: add one"):
        apt.find_mirror(suite, tmp_path)


def test_a_mirror_list_is_followed(tmp_path: Path) -> None:
    _write(tmp_path, "mirrors/debian.list", "# first\n\nhttp://listed.example/debian priority:1\n")
    _write(tmp_path, "sources.list", f"deb mirror+file://{tmp_path}/mirrors/debian.list bookworm main\n")
    assert apt.find_mirror("bookworm", tmp_path) == "http://listed.example/debian"
