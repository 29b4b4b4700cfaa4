"""What lies on a node's disk: what its owner chose, what an earlier version or a failing disk left."""

import base64
import json
import shutil
import sqlite3
from contextlib import closing
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from lazyfs import config
from lazyfs.config import NodePaths
from lazyfs.daemon import signatures, state
from lazyfs.errors import BadInputError, LazyfsError
from lazyfs.formats import signature
from lazyfs.keeper import account
from lazyfs.mount import ladder
from lazyfs.node import cache_files, cache_map, cache_settings, fetch_settings, seen
from lazyfs.stores import node_stores
from snapshotter import records
from snapshotter import settings as snapshot_settings

from .mutate import BOUNDARIES, change_bytes
from .parser import Make, Parser, any_json, any_text, scratch

_SETTINGS = [
    b'[cache]\nlimit = "20G"\nforget_days = 30\n[[cache.directory]]\npath = "/a"\nlimit = "1G"\n'
    b'[fetch]\nmemory = "64M"\ntimeout = 60\n[mount]\nmode = "file"\n[snapshots]\nlimit = "10G"\ntrust = ["a.b/c"]\n',
    b'[stores]\nserve = ["s3://b/p", "oci:/srv"]\nlisten = "127.0.0.1:5000"\n[cache]\nparanoid = true\n'
    b'[policy]\nrequire_signature = ["/dev/null"]\n',
]


def _settings(data: bytes) -> None:
    """Every section, each by who reads it: one of them at least can be meant, or all of it is refused."""
    paths = NodePaths(scratch("settings"))
    paths.settings.write_bytes(data)
    refused: list[LazyfsError] = []
    readers: list[Any] = [
        cache_settings.CacheSettings.read,
        fetch_settings.FetchSettings.read,
        node_stores.NodeStores.read,
        snapshot_settings.SnapshotSettings.read,
        ladder.preferred_mode,
        account._elsewhere,
        signatures.SignaturePolicy.read,
    ]
    for reader in readers:
        try:
            reader(paths)
        except LazyfsError as error:
            refused.append(error)
    if len(refused) > 1:  # no key is in /dev/null
        raise refused[0]


_SEEN = [
    {
        "reference": "docker://r.example/a:v1",
        "digest": "sha256:" + "ab" * 32,
        "layers": [{"toc": "cd" * 32, "blob": "sha256:" + "ef" * 32, "bytes": 1234}],
        "keys": ["k"],
        "opened": 1764000000.5,
        "pinned": False,
    }
]


def _seen(data: bytes) -> None:
    directory = scratch("seen")
    (directory / "record").write_bytes(data)
    if not seen.SeenImages(directory).all():
        raise BadInputError("no record")


@cache
def _database() -> bytes:
    """As a daemon leaves it that knows a few hundred layers and images: some forty pages."""
    directory = scratch("state-made")
    opened = state.State(directory, "1:2")
    with closing(opened):
        for number in range(60):
            inode = opened.put_layer(f"{number:064x}", {"digest": f"sha256:{number:064x}"}, "d", "docker://a")
            opened.put_image(f"i{number}", "docker://a", {"layers": [inode], "digest": "sha256:00"})
    return _whole(directory / "node.db")


@cache
def _records() -> bytes:
    directory = scratch("records-made")
    opened = records.Records(directory / "records.db")
    with closing(opened):
        for number in range(60):
            parent = f"k{number - 1}" if number % 4 else ""
            lazy = records.Lazy("docker://a", 1, "c", "", ("t",)) if number % 4 == 0 else None
            with opened.writing() as table:
                table.create(records.Kind.COMMITTED, f"k{number}", parent, {"a": "b" * 50}, lazy)
    return _whole(directory / "records.db")


def _whole(path: Path) -> bytes:
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode = DELETE")
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path.read_bytes()


def _damaged(whole: Any) -> Make:
    """A page that is another's, torn, or of zeros; or bytes that have changed, also in the header of a page."""

    def make(rng: Random) -> bytes:
        data = bytearray(whole())
        for _ in range(rng.randint(1, 3)):
            page = rng.randrange(len(data) // 4096) * 4096
            match rng.randrange(5):
                case 0:
                    data[page : page + 4096] = bytes(4096)
                case 1:
                    data[page : page + 512 * rng.randint(1, 7)] = rng.randbytes(512)
                case 2:
                    other = rng.randrange(len(data) // 4096) * 4096
                    data[page : page + 4096] = data[other : other + 4096]
                case 3:
                    data[page + rng.randrange(100)] = rng.choice(BOUNDARIES) & 0xFF
                case 4:
                    at = page + rng.randrange(4096)
                    data[at : at + 4] = change_bytes(bytes(data[at : at + 4]), rng)[:4]
        return bytes(data[: len(data) - rng.choice((0, 0, 0, 1, 4096))])

    return make


def _state(data: bytes) -> None:
    """The daemon serves on: with what it knew, or with a database that it made anew."""
    directory = scratch("state")
    shutil.rmtree(directory)
    directory.mkdir()
    (directory / "node.db").write_bytes(data)
    opened = state.State(directory, "1:2")
    with closing(opened):
        for layer in opened.layers():
            # Another layer's device under a number that the kernel knows would be wrong bytes.
            assert layer.toc == f"{layer.inode - 2:064x}"
        opened.images()
        opened.digest("docker://a")
        opened.put_image("new", "docker://b", {"digest": "sha256:01"})
        assert opened.digest("docker://b") == "sha256:01"
        inode = opened.put_layer("new", {"digest": "sha256:02"}, "d", "docker://b")
        opened.let_go(inode)
    if (directory / "node.db.damaged").exists():
        raise BadInputError("it was put aside")


def _recorded(data: bytes) -> None:
    directory = scratch("records")
    shutil.rmtree(directory)
    directory.mkdir()
    (directory / "records.db").write_bytes(data)
    with closing(records.Records(directory / "records.db")) as opened:
        with opened.reading() as table:
            known = table.all()
            for snapshot in known:
                table.ancestors(snapshot.key)
        with opened.writing() as table:
            table.create(records.Kind.ACTIVE, "new", "", {})
            table.remove("new")


@cache
def _map() -> bytes:
    path = scratch("map") / ("ab" * 32)
    path.mkdir(exist_ok=True)
    units = cache_map.UnitMap(path, 30, 4, b"b" * 36, cache_files.OpenFiles())
    units.load()
    units.mark(3, 9, cache_map.DURABLE)
    units.set_proof(4, b"p" * 32)
    units.close()
    return (path / "map").read_bytes()


def _cache_map(data: bytes) -> None:
    path = scratch("map") / ("cd" * 32)
    path.mkdir(exist_ok=True)
    (path / "map").write_bytes(data.replace(b"\xab" * 32, b"\xcd" * 32))
    units = cache_map.UnitMap(path, 30, 4, b"b" * 36, cache_files.OpenFiles())
    units.load()
    units.save_times()
    units.close()
    assert len(units.states) == 30
    assert len(units.used) == 4
    if not any(units.states):
        raise BadInputError("made anew")


_PRIVATE = ec.derive_private_key(12345, ec.SECP256R1())
_DIGEST = "sha256:" + "ab" * 32
_PAYLOAD = {
    "critical": {
        "identity": {"docker-reference": "r.example/a"},
        "image": {"docker-manifest-digest": _DIGEST},
        "type": signature.KIND,
    },
    "optional": {"creator": "x", "timestamp": 1},
}


def _signed(payload: bytes, signed: bytes) -> bytes:
    texts = {"digest": _DIGEST, "payload": base64.b64encode(payload).decode()}
    return json.dumps({**texts, "signature": base64.b64encode(signed).decode()}).encode()


def _make_payload(rng: Random) -> bytes:
    """What a key of ours has signed, which may be anything; now and then the signature is another."""
    payload = any_json([_PAYLOAD])(rng)
    signed = _right_signature(payload) if rng.random() < 0.1 else b"0"
    return signed.ljust(80, b"\0") + payload


def _right_signature(payload: bytes) -> bytes:
    return _PRIVATE.sign(payload, ec.ECDSA(SHA256()))


def _payload(data: bytes) -> None:
    found = signature.Signature(data[80:], data[:80].rstrip(b"\0"))
    if not signature.is_of(found, _DIGEST, [_PRIVATE.public_key()]):
        raise BadInputError("not of this image")
    assert json.loads(data[80:])["critical"]["image"]["docker-manifest-digest"] == _DIGEST


_KEPT = _signed(json.dumps(_PAYLOAD).encode(), _right_signature(json.dumps(_PAYLOAD).encode()))


def _kept(data: bytes) -> None:
    directory = scratch("signatures")
    (directory / _DIGEST.removeprefix("sha256:")).write_bytes(data)
    policy = signatures.SignaturePolicy((_PRIVATE.public_key(),), directory)
    if not policy._is_known(_DIGEST):
        raise BadInputError("not signed")


DISK = [
    Parser("config.toml", any_text(_SETTINGS), _settings, (config, cache_settings, fetch_settings)),
    Parser("record of an image", any_json(_SEEN), _seen, (seen,)),
    Parser("state database", _damaged(_database), _state, (state,)),
    Parser("snapshot database", _damaged(_records), _recorded, (records,)),
    Parser("cache map", lambda rng: change_bytes(_map(), rng), _cache_map, (cache_map,)),
    Parser("signature", _make_payload, _payload, (signature,)),
    Parser("kept signature", any_text([_KEPT]), _kept, (signatures, signature)),
]
