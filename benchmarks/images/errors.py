"""The one error of the image builder."""


class BuildError(Exception):
    """An image could not be built; the message is one line that names what failed and what helps."""
