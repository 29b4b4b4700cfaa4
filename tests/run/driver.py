"""A stand-in for the command line: runs one container as told by a JSON argument, and exits as `lazyfs run`.

Not a test. A run takes signals and standard streams for itself, so each has a process of its own.
"""

import json
import sys
from pathlib import Path
from typing import Any

from lazyfs.errors import LazyfsError
from lazyfs.formats.oci import ImageConfig
from lazyfs.run.command import CommandNotExecutableError, CommandNotFoundError
from lazyfs.run.container import run_container
from lazyfs.run.options import parse_options


def main() -> int:
    request = json.loads(sys.argv[1])
    image: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in request["image"].items()
    }
    try:
        options = parse_options(**request["options"])
        return run_container(
            options, ImageConfig((), **image), Path(request["rootfs"]), Path(request["state"])
        )
    except (CommandNotFoundError, CommandNotExecutableError) as error:
        print(json.dumps(error.as_dict()), file=sys.stderr)
        return error.exit_code
    except LazyfsError as error:
        print(json.dumps(error.as_dict()), file=sys.stderr)
        return 125


if __name__ == "__main__":
    sys.exit(main())
