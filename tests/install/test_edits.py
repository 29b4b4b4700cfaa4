"""Settings put into TOML files in place, and taken back."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import UsageError
from lazyfs.install.edits import MARK, TomlEdits

TEXT = """\
# the head
version = 2   # two

[plugins]
  # of CRI
  [plugins."io.containerd.grpc.v1.cri"]
    sandbox_image = 'mine'  # the pause image
    [plugins."io.containerd.grpc.v1.cri".containerd]
      snapshotter = "overlayfs"  # chosen by me
      list = [
        "a",  # first
        "b",
      ]

[grpc]
  max = 16_777_216

[plugins."out of order"]
  x = 1
"""
CONTAINERD = ("plugins", "io.containerd.grpc.v1.cri", "containerd")


def edits(text: str = TEXT) -> TomlEdits:
    return TomlEdits(text, "file.toml")


def test_a_value_takes_the_place_of_another_and_goes_again() -> None:
    changed = edits()
    changed.put((*CONTAINERD, "snapshotter"), "lazyfs")
    changed.put((*CONTAINERD, "list"), ["c"])
    changed.put((*CONTAINERD, "new"), False)
    changed.put(("proxy_plugins", "lazyfs", "type"), "snapshot")
    text = changed.text
    assert f'snapshotter = "lazyfs" # {MARK}, was: "overlayfs" # chosen by me' in text.replace("  #", " #")
    assert "# the pause image" in text
    assert "16_777_216" in text
    assert tomllib.loads(text)["proxy_plugins"] == {"lazyfs": {"type": "snapshot"}}
    again = edits(text)
    again.take_back(CONTAINERD)
    again.take_back(("proxy_plugins", "lazyfs"))
    assert tomllib.loads(again.text) == tomllib.loads(TEXT)
    assert "# chosen by me" in again.text
    assert MARK not in again.text


def test_a_second_time_changes_nothing() -> None:
    first = edits()
    first.put((*CONTAINERD, "snapshotter"), "lazyfs")
    second = edits(first.text)
    second.put((*CONTAINERD, "snapshotter"), "lazyfs")
    assert second.text == first.text
    second.put((*CONTAINERD, "snapshotter"), "other")
    second.take_back()
    assert tomllib.loads(second.text) == tomllib.loads(TEXT)


def test_tables_are_added_to_an_array_and_go_again() -> None:
    text = TEXT + '\n[[a.b]]\nname = "mine"\n'
    changed = edits(text)
    changed.append(("a", "b"), [{"name": "one"}, {"name": "two"}])
    changed.append(("new", "array"), [{"name": "three"}])
    found = tomllib.loads(changed.text)
    assert [each["name"] for each in found["a"]["b"]] == ["mine", "one", "two"]
    assert found["new"]["array"] == [{"name": "three"}]
    again = edits(changed.text)
    again.take_back()
    again.take_back(("new",))
    assert tomllib.loads(again.text) == tomllib.loads(text)


def test_an_inline_array_of_tables_is_named() -> None:
    with pytest.raises(UsageError, match="a is written as") as caught:
        edits('a = [{name = "mine"}]\n').append(("a",), [{"name": "one"}])
    assert "[[a]]" in caught.value.hint


@pytest.mark.parametrize("text", ["a = ", "a = 1\na = 2", "[a]\n[a]", "\0"])
def test_what_is_not_toml_is_named(text: str) -> None:
    with pytest.raises(UsageError, match=r"file\.toml is not TOML"):
        edits(text)


def test_a_value_where_a_table_is_wanted_is_named() -> None:
    with pytest.raises(UsageError, match="plugins is no table"):
        edits("plugins = 1").put(("plugins", "x"), 1)


names = st.sampled_from(["a", "b", "io.containerd.x", "c d"])
values = st.one_of(
    st.booleans(), st.integers(-9, 9), st.text(max_size=8), st.lists(st.text(max_size=4), max_size=3)
)
trees = st.recursive(values, lambda below: st.dictionaries(names, below, max_size=3), max_leaves=8)


@given(st.dictionaries(names, trees, max_size=4), st.lists(st.tuples(names, names, values), max_size=4))
def test_whatever_was_there_comes_back(tree: dict[str, object], puts: list[tuple[str, str, object]]) -> None:
    import tomlkit

    text = tomlkit.dumps(tree)
    changed = edits(text)
    done = []
    for table, name, value in puts:
        if isinstance(tree.get(table, {}), dict) and not isinstance(changed.get(table, name), dict):
            changed.put((table, name), value)  # type: ignore[arg-type]
            done.append((table, name, value))
    found = tomllib.loads(changed.text)
    for table, name, value in {(table, name): (table, name, value) for table, name, value in done}.values():
        assert found[table][name] == value
    again = edits(changed.text)
    for table, _, _ in done:
        again.take_back((table,))
    before = tomllib.loads(text)
    # A table that was empty before is not told from one that we made.
    assert {k: v for k, v in tomllib.loads(again.text).items() if v != {}} == {
        k: v for k, v in before.items() if v != {}
    }
