"""lazyfs: containers that start before their image is downloaded.

The rooms of this package, from the ground up (each may import those before it, see
``[tool.importlinter]`` in pyproject.toml):

    errors, config    known to all
    draw              values in, pictures (SVG) out
    formats           bytes in, values out: tar, seekable blob, TOC, tree, EROFS bootstrap, OCI documents
    stores            where images are kept: references, blobs, tags
    node              the read path: cache, fetch engine, device
    mount             what the kernel is shown: FUSE device files, EROFS and overlay mounts
    daemon            the process of a node: puts the above together behind a control API
    run               an OCI runtime bundle: start, wait, clean up
    cli               the command line: parses, calls, shows
"""

__version__ = "0.1.0"
