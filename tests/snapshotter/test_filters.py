"""containerd's filter grammar."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import UsageError
from snapshotter.filters import parse_filters
from snapshotter.records import Kind, Snapshot

REF = "containerd.io/snapshot.ref"
SNAPSHOT = Snapshot(
    1, "the name", Kind.COMMITTED, "below", 0, 0, 0, {REF: "sha256:ab", "short": "x,y", "tab": "a\tbé"}
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        ("name", True),
        ("nothing", False),
        ("labels.short", True),
        ("labels.long", False),
        ("labels", False),
        ('name=="the name"', True),
        ("name==the", False),
        ("parent==below,kind==committed", True),
        ("parent==below,kind==active", False),
        ("parent == below", True),
        ("kind!=view", True),
        ("kind!=committed", False),
        ("labels.none!=anything", True),
        ('labels.none!=""', False),
        ("labels.none==x", False),
        (f'labels."{REF}"==sha256:ab', True),
        (f"labels.{REF}==sha256:ab", UsageError),
        ("labels.containerd.io/snapshot", UsageError),
        ('labels.short=="x,y"', True),
        ("labels.short==x,y", False),
        (r'labels.tab=="a\tb\u00e9"', True),
        (r'labels.tab=="a\x09b\303\251"', True),
        (r'labels.tab=="a\qb"', UsageError),
        ("name~=na.e$", True),
        ("name~=/^the/", True),
        ("name~=|name|", True),
        ("name~=^name", False),
        ("name~=(", False),
        ("labels.none~=^$", True),
        ("name==/the name/", UsageError),
        ("name=the", UsageError),
        ("name===the", UsageError),
        ("name==", UsageError),
        ("name=='the", False),
        ('name=="the', UsageError),
        ("name==the name", UsageError),
        (",", UsageError),
        ("name,", UsageError),
        ("labels.", UsageError),
        ("name ", UsageError),
        ("==x", UsageError),
    ],
)
def test_grammar(text: str, expected: bool | type[UsageError]) -> None:
    if isinstance(expected, bool):
        assert parse_filters([text])(SNAPSHOT) is expected
    else:
        with pytest.raises(expected):
            parse_filters([text])


def test_any_of_several() -> None:
    assert parse_filters([])(SNAPSHOT)
    assert parse_filters(["name==x", "parent==below"])(SNAPSHOT)
    assert not parse_filters(["name==x", "parent==x"])(SNAPSHOT)


@given(st.lists(st.text(alphabet='name.labels"=!~/|,\\ x\n0é', max_size=20), max_size=3))
def test_any_text_is_read_or_refused(texts: list[str]) -> None:
    try:
        parse_filters(texts)(SNAPSHOT)
    except UsageError as error:
        assert "\n" not in error.message


@given(st.text())
def test_quoted_as_go_does(value: str) -> None:
    quoted = "".join(
        f"\\U{ord(character):08x}" for character in value if not 0xD800 <= ord(character) < 0xE000
    )
    snapshot = Snapshot(1, "x", Kind.VIEW, "", 0, 0, 0, {value: "there"})
    assert parse_filters([f'labels."{quoted}"==there'])(snapshot) is (len(quoted) == 10 * len(value))
