"""Labels of user namespaces: how they are read, and what containerd is told to mount."""

import grpc
import pytest

from lazyfs.errors import UsageError
from snapshotter.idmap import GID_MAPPING, UID_MAPPING, id_mapping

from .client import Client, Service, code_of

LABELS = {UID_MAPPING: "0:1000:10", GID_MAPPING: "5:7:1,0:2000:5"}


def test_read() -> None:
    mapping = id_mapping(LABELS)
    assert mapping is not None
    assert (mapping.root_uid, mapping.root_gid) == (1000, 2000)
    assert mapping.options == ("uidmap=0:1000:10", "gidmap=5:7:1,0:2000:5")
    assert id_mapping({"other": "label"}) is None


@pytest.mark.parametrize(
    "text", ["", "0", "0:1", "0:1:0", "1:1:1", "0:1:1,", "0:-1:1", "0:1:4294967296", "0:1:1,upperdir=/"]
)
def test_what_cannot_be_meant(text: str) -> None:
    with pytest.raises(UsageError, match="uidmapping"):
        id_mapping({UID_MAPPING: text, GID_MAPPING: "0:0:1"})


def test_what_containerd_is_told(client: Client, shared_service: Service) -> None:
    client.prepare("base")
    client.commit("lower", "base")
    wanted = {"uidmap=0:1000:10", "gidmap=5:7:1,0:2000:5"}
    [overlay] = client.prepare("active", "lower", LABELS)
    assert wanted < set(overlay.options)
    assert [set(mount.options) for mount in client.mounts("active")] == [set(overlay.options)]
    [upper] = [option.partition("=")[2] for option in overlay.options if option.startswith("upperdir=")]
    status = (shared_service.root / upper).stat()
    assert (status.st_uid, status.st_gid) == (1000, 2000)
    [bind] = client.view("view", "lower", LABELS)
    assert bind.type == "bind"
    assert wanted < set(bind.options)


def test_a_label_that_cannot_be_meant_makes_nothing(client: Client) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        client.prepare("active", labels={UID_MAPPING: "nonsense"})
    assert code_of(caught.value) == "INVALID_ARGUMENT"
    assert client.names() == []
