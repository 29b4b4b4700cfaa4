"""A small converted image, and what it holds."""

from pathlib import Path
from random import Random

import pytest

from tests.layouts import convert, put_image
from tests.trees import Entry, layer_tar

LOWER = [Entry(b"big", content=Random(1).randbytes(900_000)), Entry(b"text", content=b"lower")]
UPPER = [Entry(b"text", content=b"upper")]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layout with the image `app`, not converted, and `lazy`; not to be written to."""
    directory = tmp_path_factory.mktemp("images") / "layout"
    convert(put_image(directory, [layer_tar(LOWER), layer_tar(UPPER)], "app"), f"oci:{directory}:lazy")
    return directory
