"""What a Commit has to do for an upper directory grows as its files do."""

import os
import sys
from pathlib import Path

from snapshotter.usage import disk_usage


def asked(directory: Path) -> tuple[int, int]:
    """How many directories are read, and how many functions of C called, by a scan of it."""
    calls = {"os.scandir": 0, "c_call": 0}

    def profile(_: object, event: str, function: object) -> None:
        if event == "c_call":
            calls["c_call"] += 1
            calls["os.scandir"] += function is os.scandir

    sys.setprofile(profile)
    try:
        disk_usage(directory)
    finally:
        sys.setprofile(None)
    return calls["os.scandir"], calls["c_call"]


def fill(directory: Path, directories: int, files: int) -> None:
    for number in range(directories):
        (directory / str(number)).mkdir(parents=True)
        for file in range(files):
            os.close(os.open(directory / str(number) / str(file), os.O_CREAT | os.O_WRONLY))


def test_50000_files_are_ten_times_the_work_of_5000(tmp_path: Path) -> None:
    fill(tmp_path / "few", 50, 100)
    fill(tmp_path / "many", 500, 100)
    few, many = asked(tmp_path / "few"), asked(tmp_path / "many")
    assert (few[0], many[0]) == (51, 501)
    assert many[1] <= 10 * few[1]
    assert disk_usage(tmp_path / "many").inodes == 50_501
