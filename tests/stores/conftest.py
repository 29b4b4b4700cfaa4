"""A place of its own in a bucket of a real S3 server, for each test that asks for one."""

import uuid
from collections.abc import Iterator

import pytest

from tests.s3server import S3Place, S3Server, running_server

_VARIABLES_OF_OTHERS = (
    "AWS_PROFILE",
    "AWS_SESSION_TOKEN",
    "AWS_CA_BUNDLE",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL_S3",
)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with running_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Place:
    """The environment is that of a user of the server, and nobody else's."""
    for name in _VARIABLES_OF_OTHERS:
        monkeypatch.delenv(name, raising=False)
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    return S3Place(s3_server, uuid.uuid4().hex)
