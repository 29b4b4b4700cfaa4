"""All that is fuzzed."""

from .callers import CALLERS
from .disk import DISK
from .images import IMAGES
from .servers import SERVERS

PARSERS = [*IMAGES, *SERVERS, *CALLERS, *DISK]
