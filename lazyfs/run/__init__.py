"""Run a container on a mounted root file system, by an OCI runtime, and leave nothing behind.

This room is given a path and an image's config. It knows nothing of stores, nor of the daemon. Its door is
`container.run_container`; what is asked for is read by `options.parse_options`, which imports little.
"""
