"""The command line: help that teaches, one line for an error, exit codes as documented, JSON for programs."""

import json
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import click
import pytest

from lazyfs.cli.app import COMMANDS as MODULES
from lazyfs.cli.app import app
from lazyfs.cli.common import show_error
from lazyfs.errors import LazyfsError, NotFoundError
from lazyfs.stores._files import TEMP_PREFIX
from tests.layouts import convert, put_image
from tests.trees import Entry, layer_tar
from tests.waiting import wait_until

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 120.0
ENVIRONMENT = os.environ | {"PYTHONPATH": str(REPOSITORY)}


def command_of(name: str) -> click.Command:
    command = app.get_command(click.Context(app), name)
    assert command is not None
    return command


COMMANDS = {name: command_of(name) for name in sorted(MODULES)}

Result = subprocess.CompletedProcess[str]


def lazyfs(*words: str | Path, **options: Any) -> Result:
    given: dict[str, Any] = {"capture_output": True, "env": ENVIRONMENT} | options
    result: Result = subprocess.run(
        [sys.executable, "-m", "lazyfs.cli.main", *words],
        check=False,
        text=True,
        errors="surrogateescape",
        timeout=PATIENCE,
        stdin=subprocess.DEVNULL,
        **given,
    )
    return result


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A converted image; beside it `app`, which is not."""
    directory = tmp_path_factory.mktemp("images") / "layout"
    source = put_image(directory, [layer_tar([Entry(b"file", content=b"content")])], "app")
    return convert(source, f"oci:{directory}:lazy")


def test_help_lists_every_command() -> None:
    result = lazyfs("--help")
    assert result.returncode == 0
    for name in COMMANDS:
        assert re.search(rf"^  {name} +\S", result.stdout, re.MULTILINE), name
    assert lazyfs("-h").stdout == result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_by_example(command: str) -> None:
    result = lazyfs(command, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert re.search(r"^ +Examples?:\n +lazyfs ", result.stdout, re.MULTILINE)
    for option in COMMANDS[command].params:
        if option.opts[0].startswith("-"):
            assert option.opts[0] in result.stdout
    assert lazyfs(command, "-h").stdout == result.stdout


def test_options_have_a_word_of_help() -> None:
    for name, command in COMMANDS.items():
        for option in command.params:
            assert not option.opts[0].startswith("-") or getattr(option, "help", None), (name, option.name)


def test_version() -> None:
    result = lazyfs("--version")
    assert re.fullmatch(r"lazyfs \d+\.\d+\.\d+\n", result.stdout)


def test_nothing_asked_for() -> None:
    result = lazyfs()
    assert result.returncode == 2
    assert "Usage: lazyfs" in result.stdout + result.stderr


def test_help_imports_little() -> None:
    script = (
        "import sys; from lazyfs.cli import app; app.run(['--help']); app.run(['run', '--help']);"
        "print(sorted({'numpy', 'trio', 'pyfuse3', 'zstandard', 'rich', 'asyncio', 'http.client', 'lazyfs.formats.oci'}"
        " & set(sys.modules)), file=sys.stderr)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY, check=True
    )
    assert result.stderr == "[]\n"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["nonsense"], 2, "No such command 'nonsense'"),
        (["inspct", "x"], 2, "inspct"),
        (["--nonsense"], 2, "--nonsense"),
        (["inspect"], 2, "REF"),
        (["inspect", "a", "b"], 2, "b"),
        (["inspect", "nonsense"], 2, "nonsense"),
        (["inspect", "oci:"], 2, "names no directory"),
        (["inspect", "oci:/no/such"], 3, "/no/such"),
        (["inspect", "oci:{layout}:nothing"], 3, "its tags are: app, lazy"),
        (["inspect", "oci:{layout}@sha256:abc"], 2, "sha256:abc"),
        (["inspect", "oci:{layout}"], 2, "2 images"),
        (["check", "oci:{layout}:app"], 2, "is not a lazyfs layer"),
        (["convert", "oci:{layout}:app"], 2, "DST"),
        (["convert", "oci:{layout}:app", "oci:/proc/nothing:x"], 3, "/proc/nothing"),
        (["convert", "oci:{layout}:app", "oci:{layout}@sha256:" + "0" * 64], 2, "cannot be written to"),
        (["convert", "--level", "x", "oci:{layout}:app", "oci:{layout}:y"], 2, "--level"),
        (["convert", "--codec", "rot13", "oci:{layout}:app", "oci:{layout}:y"], 2, "rot13"),
        (["mount", "oci:{layout}:lazy", "/no/such/directory"], 3, "/no/such/directory"),
        (["mount", "--root", "x" * 2000, "oci:{layout}:lazy", "/proc"], 2, "more than 480"),
        (["--root", "/dev/null", "mount", "oci:{layout}:lazy", "{tmp}"], 7, "/dev/null"),
        (["--root", "/dev/null", "status"], 3, "no daemon runs"),
        (["--root", "{tmp}/no", "status"], 3, "no daemon runs"),
        (["--root", "{tmp}/no", "shutdown"], 3, "no daemon runs"),
        (["--root", "{tmp}/no", "umount", "{tmp}"], 3, "not an image mounted"),
        (["run", "oci:{layout}:app", "--root", "x", "--debug"], 125, "is not a lazyfs layer"),
        (["run", "--memory", "x", "oci:{layout}:lazy"], 125, "'x'"),
        (["run", "--network", "x", "oci:{layout}:lazy"], 125, "'x'"),
        (["run", "-v", "x", "oci:{layout}:lazy"], 125, "'x'"),
        (["run", "--nonsense", "oci:{layout}:lazy"], 2, "--nonsense"),
    ],
)
def test_errors(image: str, tmp_path: Path, words: list[str], code: int, said: str) -> None:
    layout = image.split(":")[1]
    (tmp_path / "empty").mkdir()
    words = [word.format(layout=layout, tmp=tmp_path / "empty") for word in words]
    if words[0] == "run":
        words = ["--root", str(tmp_path / "node"), *words]
    result = lazyfs(*words, cwd=tmp_path)
    if (tmp_path / "node").exists():
        assert lazyfs("--root", tmp_path / "node", "shutdown").returncode == 0
    lines = result.stderr.splitlines()
    assert (result.returncode, result.stdout) == (code, ""), result.stderr
    assert lines[0].startswith("lazyfs: ")
    assert said in result.stderr
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("  hint: "))


def test_usage_errors_point_to_the_help() -> None:
    assert lazyfs("mount").stderr.splitlines()[1] == "  hint: lazyfs mount --help"
    assert lazyfs("nonsense").stderr.splitlines()[1] == "  hint: lazyfs --help"


def test_debug_shows_where(image: str) -> None:
    layout = image.split(":")[1]
    assert "Traceback" in lazyfs("--debug", "inspect", f"oci:{layout}:nothing").stderr
    assert "Traceback" not in lazyfs("inspect", f"oci:{layout}:nothing").stderr


def test_a_defect_is_called_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from lazyfs.cli import app

    def broken(*args: object, **words: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(app.app, "main", broken)
    assert app.run(["status"]) == 70
    assert capsys.readouterr().err.splitlines() == [
        "lazyfs: internal error: ZeroDivisionError: by zero",
        f"  hint: {app.DEFECT}",
    ]


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("two\nlines  and\tblanks", "two lines and blanks"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("Übung 漢字", "Übung 漢字"),
        ("not utf-8 \udcff", "not utf-8 \\udcff"),
        ("right\u202eleft", "right\\u202eleft"),
    ],
)
def test_a_message_stays_one_line(capsys: pytest.CaptureFixture[str], message: str, line: str) -> None:
    show_error(LazyfsError(message, hint=message))
    assert capsys.readouterr().err == f"lazyfs: {line}\n  hint: {line}\n"


def test_exit_codes_are_the_documented_ones() -> None:
    text = (REPOSITORY / "docs" / "operations.md").read_text()
    documented = {
        name: int(code) for code, name in re.findall(r"^\| (\d+) \| (\w+Error) \|", text, re.MULTILINE)
    }
    classes = {
        cls.__name__: cls.exit_code
        for cls in LazyfsError.__subclasses__()
        if "lazyfs.errors" in cls.__module__
    }
    assert documented == classes


def test_json(image: str) -> None:
    described = json.loads(lazyfs("inspect", "--json", image).stdout)
    assert described["layers"][0]["lazy"] is True
    checked = json.loads(lazyfs("check", "--json", image).stdout)
    assert checked["layers"] == 1
    layout = image.split(":")[1]
    converted = lazyfs("convert", "--json", f"oci:{layout}:app", f"oci:{layout}:again")
    assert json.loads(converted.stdout)["digest"] == described["digest"]
    assert converted.stderr == ""


def test_json_is_what_is_documented(image: str, tmp_path: Path) -> None:
    text = (REPOSITORY / "docs" / "operations.md").read_text()
    app_image = image.replace(":lazy", ":app")
    for words in (
        ["convert", app_image, f"oci:{tmp_path}/new:app"],
        ["copy", image, f"oci:{tmp_path}/copied:app"],
        ["check", image],
        ["diff", image, image],
        ["inspect", image],
        ["install", "containerd", "--dry-run", "--prefix", str(tmp_path)],
    ):
        (row,) = re.findall(rf"^\| `{words[0]}` \| (.*) \|$", text, re.MULTILINE)
        values = json.loads(lazyfs(*words, "--json").stdout)
        documented = set(re.findall(r"`(\w+)`", row))
        assert set(values) <= documented
        within = {name for value in values.values() if isinstance(value, list) for name in names_in(value)}
        missing = documented - set(values) - within
        assert missing == set(), words


def names_in(values: list[Any]) -> set[str]:
    return set().union(*(each for each in values if isinstance(each, dict)))


def test_inspect_and_check_for_people(image: str) -> None:
    layout = image.split(":")[1]
    assert "sha256:" in lazyfs("inspect", image).stdout
    assert "not converted" in lazyfs("inspect", f"oci:{layout}:app").stdout
    assert lazyfs("check", image).stdout.startswith("ok: ")


def test_where_the_root_is_named(tmp_path: Path) -> None:
    environment = ENVIRONMENT | {"LAZYFS_ROOT": f"{tmp_path}/variable"}
    assert f"no daemon runs for {tmp_path}/variable" in lazyfs("status", env=environment).stderr
    result = lazyfs("--root", f"{tmp_path}/before", "status", env=environment)
    assert f"no daemon runs for {tmp_path}/before" in result.stderr
    result = lazyfs("status", "--root", f"{tmp_path}/behind", env=environment)
    assert f"no daemon runs for {tmp_path}/behind" in result.stderr
    assert (
        f"no daemon runs for {tmp_path}/relative"
        in lazyfs("--root", "relative", "status", cwd=tmp_path).stderr
    )


def test_doctor(tmp_path: Path) -> None:
    result = lazyfs("--root", tmp_path / "no", "doctor", "--json")
    findings = json.loads(result.stdout)
    assert {"name", "ok", "found", "remedy"} == set(findings[0])
    assert result.returncode == (0 if all(finding["ok"] for finding in findings) else 7)
    result = lazyfs("--root", tmp_path / "no", "doctor", env=ENVIRONMENT | {"PATH": "/nowhere"})
    assert result.returncode == 7
    assert "FAIL  runtime: neither crun nor runc on PATH" in result.stdout
    assert "apt-get install crun" in result.stdout


def test_output_that_nobody_reads(image: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    result = lazyfs("inspect", image, capture_output=False, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (result.returncode, result.stderr) == (0, "")


def test_output_that_has_no_room(image: str) -> None:
    with Path("/dev/full").open("w") as full:
        result = lazyfs("inspect", image, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert (result.returncode, result.stderr) == (1, "lazyfs: [Errno 28] No space left on device\n")


def test_output_that_is_closed(image: str) -> None:
    command = f"exec {sys.executable} -m lazyfs.cli.main inspect {image} >&-"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(
        ["sh", "-c", command], check=False, capture_output=True, text=True, env=environment
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    directory = tmp_path / "\udcff\udcfe"
    source = put_image(directory, [layer_tar([Entry(b"file")])])
    result = lazyfs("inspect", source)
    assert (result.returncode, result.stderr) == (0, "")
    assert str(directory) in result.stdout
    missing = lazyfs("inspect", f"oci:{directory}/no")
    assert missing.returncode == NotFoundError.exit_code
    assert "\\udcff" in missing.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_convert(tmp_path: Path, number: signal.Signals) -> None:
    """No traceback, no image; and the same command succeeds afterwards."""
    source = put_image(
        tmp_path / "source", [layer_tar([Entry(b"file", content=Random(1).randbytes(20 << 20))])]
    )
    target = f"oci:{tmp_path}/target:lazy"
    command = [
        sys.executable,
        "-m",
        "lazyfs.cli.main",
        "convert",
        "--level",
        "19",
        "--jobs",
        "1",
        source,
        target,
    ]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        wait_until(lambda: list((tmp_path / "target").rglob(f"{TEMP_PREFIX}*")), "a blob in the making")
        process.send_signal(number)
        _, said = process.communicate(timeout=PATIENCE)
    assert said.endswith("lazyfs: interrupted\n" if number == signal.SIGINT else "")
    assert "Traceback" not in said
    assert process.returncode in (130, -number)
    assert lazyfs("inspect", target).returncode == NotFoundError.exit_code
    assert lazyfs("convert", source, target).returncode == 0
    assert lazyfs("check", target).returncode == 0
    assert list((tmp_path / "target").rglob(f"{TEMP_PREFIX}*")) == []


def test_a_proof_tells_of_each_layer_that_it_read(image: str) -> None:
    original = image.replace(":lazy", ":app")
    result = lazyfs("check", image, "--against", original)
    assert (result.returncode, result.stdout.count("\n")) == (0, 1)
    assert re.fullmatch(
        rf"layer 1/1 [0-9a-f]{{12}}: .* read, \d+\.\d s\n{re.escape(original)}:\nlayer 1/1 .* read, \d+\.\d s\n",
        result.stderr,
    )
    assert lazyfs("check", "--json", image, "--against", original).stderr == ""


def on_terminal(*words: str) -> str:
    """What a command that succeeds shows on standard error: all of it, as a slow machine draws bars often."""
    ours, theirs = os.openpty()
    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(read_terminal, ours)
        try:
            result = lazyfs(*words, capture_output=False, stdout=subprocess.DEVNULL, stderr=theirs)
        finally:
            os.close(theirs)
            shown = reading.result(PATIENCE)
            os.close(ours)
    assert result.returncode == 0, shown
    return shown


def read_terminal(descriptor: int) -> str:
    """Until nobody has the other end open, which is EIO."""
    shown = b""
    with suppress(OSError):
        while part := os.read(descriptor, 1 << 16):
            shown += part
    return shown.decode()


def test_a_copy_tells_of_each_blob(image: str, tmp_path: Path) -> None:
    words = ("copy", image, f"oci:{tmp_path}/copy:app")
    assert re.search(r"blob [0-9a-f]{12}: .* copied", on_terminal(*words))
    again = lazyfs(*words)
    assert re.fullmatch(r"(blob [0-9a-f]{12}: [\d.]+ k?B was there\n)+", again.stderr)
    assert lazyfs(*words, "--json").stderr == ""


def test_bars_are_drawn_on_a_terminal(image: str) -> None:
    shown = on_terminal("check", image)
    assert re.search(r"layer 1/1 [0-9a-f]{12} .*━.* kB", shown)
    assert re.search(r"layer 1/1 [0-9a-f]{12}: .* read", shown)
