"""`make bench` as a whole: parts that fail, a run that goes on, and the one report of all."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as whole_run
from benchmarks import bars, growth, readme
from benchmarks.parts import PARTS
from benchmarks.report import Measured, Report, Row, read_report
from benchmarks.whole import when, write_whole
from lazyfs.bench.enclosure import run_enclosed
from lazyfs.errors import BadInputError, NodeError

from .samples import made_up


def measured(*rows: Row, failed: str = "") -> Measured:
    return Measured("2026-01-01 00:00", 12.0, 0.5, failed, list(rows))


def test_the_plan_fits() -> None:
    assert sum(part.seconds for part in PARTS.values()) < bars.MINUTES * 60


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    report = Report({"dedup": measured(Row("a", 1.5, "s", 2.0)), "scale": measured(failed="no room")})
    report.write(tmp_path / "rows.json")
    assert read_report(tmp_path / "rows.json") == report
    (tmp_path / "rows.json").write_text('{"parts": {"dedup": 1}}')
    with pytest.raises(BadInputError, match="no rows of `make bench`"):
        read_report(tmp_path / "rows.json")


def test_bars_are_held_against_figures_and_rivals() -> None:
    report = Report(
        {
            "starts": measured(
                Row("numpy, 1gbit,2ms: lazyfs-pack", 0.4, "s", 0.3),
                Row("numpy, 1gbit,2ms: stargz", 1.2, "s"),
                Row("numpy, 1gbit,2ms: lazyfs", 0.9, "s", 4.0),
                Row("numpy, 1gbit,2ms: overlayfs", 4.0, "s"),
            ),
            "convert_speed": measured(
                Row("the layer of wheels: wall", 2.0, "s", 2.5),
                Row("the layer of wheels, by eStargz: wall", 60.0, "s"),
                Row("the layer of wheels, by skopeo zstd: wall", 8.0, "s"),
            ),
        }
    )
    text = bars.markdown(report)
    assert "launch pack | ≤ 0.3 s | stargz 1.2 s | 0.4 s | **missed** |" in text
    assert "1 Gbit/s 2 ms | ≤ 4 s | stargz 1.2 s | 0.9 s | met |" in text
    assert "| a layer of 375 MB | ≤ 2.5 s | skopeo zstd 8 s | 2 s | met |" in text
    assert "20 ms, launch pack |  | stargz 2.55 s (earlier) | not measured |  |" in text
    assert "0 in 2,027,890 reads (docs/design.md) | met |" in text


def test_every_bar_names_a_row_that_a_part_can_have() -> None:
    """Of those whose rows can be made without measuring."""
    rows = {
        row.measure
        for row in growth.rows([growth.Mounted("bytes", size, 0.2, 1, 1) for size in growth.SIZES])
    }
    named = {bar.row for topic in bars.BARS.values() for bar in topic if bar.row.startswith("mount of")}
    assert named <= rows


def test_a_report_of_all_tells_what_failed_and_what_is_missing(tmp_path: Path) -> None:
    report = Report(
        {
            "starts": measured(),
            "dedup": measured(Row("a", 1.5, "s", 2.0)),
            "scale": measured(failed="no <room>"),
        }
    )
    results = made_up(images=("numpy",))
    results.failures.append("go: did not get ready")
    results.write(tmp_path / "starts.json")
    write_whole(report, PARTS, tmp_path)
    text, page = (tmp_path / "report.md").read_text(), (tmp_path / "report.html").read_text()
    assert when(report) in text
    assert f"| dedup | {PARTS['dedup'].seconds} s | 12 s | 0.5 |  |" in text
    assert "**failed**: no <room>" in text
    assert "**failed**: go: did not get ready" in text
    assert "| growth |" in text
    assert "| not measured |" in text
    assert "### numpy, 1gbit,2ms" in text
    assert "failed: no &lt;room&gt;" in page
    assert "<script" not in page
    assert page.count("http") == page.count("http://www.w3.org/2000/svg")


def test_a_table_takes_its_place_between_marks(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text("before\n<!-- figures: written by make bench -->\nold\n<!-- end of figures -->\nafter\n")
    for _ in range(2):
        readme.write(file, "figures", "| new |")
    assert file.read_text() == (
        "before\n<!-- figures: written by make bench -->\n\n| new |\n\n<!-- end of figures -->\nafter\n"
    )
    with pytest.raises(BadInputError, match="no place for bars"):
        readme.write(file, "bars", "")


def test_readme_and_docs_have_the_places(tmp_path: Path) -> None:
    for source, name in (("README.md", "figures"), ("docs/benchmarks.md", "bars")):
        copy = tmp_path / "copy"
        copy.write_text(Path(source).read_text())
        readme.write(copy, name, "here")
        assert "\nhere\n" in copy.read_text()


@pytest.mark.root
def test_a_part_that_takes_too_long_is_ended() -> None:
    with pytest.raises(NodeError, match=r"it took longer than 1 s"):
        run_enclosed("http.server", ["0"], 1)


@pytest.mark.root
def test_a_part_that_fails_is_told_and_a_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(whole_run, "prepare", lambda _: None)
    done: list[str] = []

    def part(name: str, *_: Path) -> Measured:
        done.append(name)
        return measured(failed="no disk" if name == "dedup" else "")

    monkeypatch.setattr(whole_run, "_part", part)
    words = ["benchmarks", "--results", str(tmp_path), "--cache", str(tmp_path)]
    tmp_path.joinpath("rows.json").write_text('{"parts": {}}')
    monkeypatch.setattr(sys, "argv", words)
    assert whole_run.main() == 1
    assert done == list(PARTS)
    assert "dedup: no disk, 12 s" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*words, "--resume"])
    assert whole_run.main() == 1
    assert done == [*PARTS, "dedup"]
    monkeypatch.setattr(sys, "argv", [*words, "--only", "links"])
    assert whole_run.main() == 1
    assert done == [*PARTS, "dedup", "links"]
    monkeypatch.setattr(sys, "argv", [*words, "--minutes", "0"])
    assert whole_run.main() == 1
    assert len(done) == len(PARTS) + 2
    assert "left out: it would take longer" in (tmp_path / "report.md").read_text()
    assert json.loads((tmp_path / "rows.json").read_text())["parts"].keys() == PARTS.keys()


@pytest.mark.root
def test_a_part_measures_in_a_room_of_its_own(tmp_path: Path) -> None:
    """The real thing, of a part that takes next to nothing."""
    command = [sys.executable, "-m", "benchmarks", "--plan"]
    assert " links " in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = whole_run._part("bootstrap_speed", tmp_path, tmp_path)
    assert not found.failed
    assert len(found.rows) == 6
    assert (tmp_path / "bootstrap_speed.json").exists()
