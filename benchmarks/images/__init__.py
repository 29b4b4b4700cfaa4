"""Real OCI images, built here from Debian packages for the demo, the tests and the benchmarks.

    recipe     what an image is made of: a base, a script for every further layer, a config
    recipes    what each image holds; services: those of the suite of measured starts
    build      recipe -> image: cached, safe to kill, one at a time
    sandbox    commands in a chroot on overlayfs, in namespaces that take their mounts with them
    apt        the Debian mirror that this machine already uses
    layer      upper directory of an overlay -> layer tar (whiteouts, opaque directories) -> gzip
    layout     config, manifest and index of an OCI image layout
    tree       what a directory tree holds, as JSON: the truth that a mounted image is compared with

Nothing here imports lazyfs: these images, and the trees that come with them, are the referee.
"""

from benchmarks.images.build import BuiltImage, ensure
from benchmarks.images.errors import BuildError
from benchmarks.images.recipe import Recipe
from benchmarks.images.recipes import RECIPES

__all__ = ["RECIPES", "BuildError", "BuiltImage", "Recipe", "ensure"]
