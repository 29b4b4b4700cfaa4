"""Images for the referee tests: the small one is made anew, the demo image comes from the cache."""

from pathlib import Path

import pytest

from benchmarks.images import RECIPES, BuiltImage, ensure

_REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def small_image(tmp_path_factory: pytest.TempPathFactory) -> BuiltImage:
    return ensure(RECIPES["small"], tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def demo_image() -> BuiltImage:
    return ensure(RECIPES["demo"], _REPOSITORY / ".cache" / "images")
