"""What shall be measured, as a file: the command line writes it, the enclosure reads it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from lazyfs.bench.ways import Way


@dataclass(frozen=True, slots=True)
class Subject:
    """An image as it is shown (`name`), the layout that has it for all ways, and what is started of it."""

    name: str
    layout: Path
    ready: str
    words: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    patience: float = 600.0


@dataclass(frozen=True, slots=True)
class Plan:
    """`scratch` is a directory for all files, `output` the file of results, written after each round.

    `seed` gives the order of the starts.
    """

    subjects: tuple[Subject, ...]
    ways: tuple[Way, ...]
    links: tuple[str, ...]
    runs: int
    seed: int
    scratch: Path
    output: Path
    proof_seconds: float = 1.5

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self), default=str))

    @classmethod
    def read(cls, file: Path) -> "Plan":
        values = json.loads(file.read_text())
        subjects = tuple(
            Subject(
                **each
                | {"layout": Path(each["layout"]), "words": tuple(each["words"]), "env": tuple(each["env"])}
            )
            for each in values["subjects"]
        )
        ways = tuple(Way(**each) for each in values["ways"])
        paths = {name: Path(values[name]) for name in ("scratch", "output")}
        return cls(**values | paths | {"subjects": subjects, "ways": ways, "links": tuple(values["links"])})
