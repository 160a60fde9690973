"""Summaries of recorded sessions: sums, GPU work under its ranges, comparison, files that are none."""

import json
import platform
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from range_checks import PROFILING, environment
from recorded import SessionError, load
from summarize import comparison, main, occupied, summary, table, text

PROCESS = 0x1_00001
THREAD = PROCESS << 24 | 17
SECRET = "/home/somebody/secret"
NVTX = """CREATE TABLE NVTX_EVENTS (start INTEGER, end INTEGER, eventType INTEGER, category INTEGER,
    text TEXT, globalTid INTEGER, textId INTEGER, domainId INTEGER, int64Value INTEGER)"""


def exported(path: Path, gpu: bool = True, second_decode: int = 30_000) -> Path:
    """A session as Nsight Systems exports it: two decode steps of one layer, microseconds long.

    Kernels run after their launch, even after the range that launched them; one graph launch has two.
    """
    path.unlink(missing_ok=True)
    data = sqlite3.connect(path)
    data.execute(NVTX)
    data.execute("CREATE TABLE StringIds (id INTEGER, value TEXT)")
    data.execute("CREATE TABLE TARGET_INFO_SYSTEM_ENV (name TEXT, value TEXT)")
    data.execute("INSERT INTO TARGET_INFO_SYSTEM_ENV VALUES ('HOME', ?)", [SECRET])
    strings = ["decode", "layer.00", "attention", "op.attention", "layer.01"]
    data.executemany("INSERT INTO StringIds VALUES (?, ?)", enumerate(strings))
    row = "INSERT INTO NVTX_EVENTS VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
    data.execute(row, (0, None, 75, None, "tinytorch_gpu", THREAD, None, 1, None))
    data.execute(row, (0, None, 75, None, "someone else", THREAD, None, 2, None))
    data.execute(row, (1, None, 33, 1, "phase", THREAD, None, 1, None))
    decodes = [(0, 20_000), (40_000, 40_000 + second_decode)]
    for number, (start, end) in enumerate(decodes):
        inside = [
            (start + 10 + 100 * i, end - 10 - 100 * i, 59, None, None, THREAD, i + 1, 1, number)
            for i in range(3)
        ]
        data.execute(row, (start, end, 59, 1, None, THREAD, 0, 1, 5 + number))
        data.executemany(row, inside)
        data.execute(row, (start + 5, end - 5, 59, None, SECRET, THREAD, None, 2, None))
    if gpu:
        data.execute("""CREATE TABLE CUPTI_ACTIVITY_KIND_RUNTIME
            (start INTEGER, end INTEGER, globalTid INTEGER, correlationId INTEGER)""")
        launches = [(1_000, 1), (2_000, 2), (41_000, 3), (100_000, 4)]
        data.executemany("INSERT INTO CUPTI_ACTIVITY_KIND_RUNTIME VALUES (?, ?, ?, ?)",
                         [(t, t + 500, THREAD, c) for t, c in launches])  # fmt: skip
        work = {"KERNEL": [(3_000, 6_000, 1), (42_000, 43_000, 3), (45_000, 49_000, 3), (0, 9, 8)],
                "MEMCPY": [(5_000, 8_000, 2), (100_100, 100_200, 4)]}  # fmt: skip
        for kind, rows in work.items():
            data.execute(f"""CREATE TABLE CUPTI_ACTIVITY_KIND_{kind}
                (start INTEGER, end INTEGER, correlationId INTEGER, globalPid INTEGER)""")
            data.executemany(f"INSERT INTO CUPTI_ACTIVITY_KIND_{kind} VALUES (?, ?, ?, ?)",
                             [(a, b, c, PROCESS << 24) for a, b, c in rows])  # fmt: skip
    data.commit()
    data.close()
    return path


def by_path(path: Path, **options: Any) -> dict[str, Any]:
    return {" > ".join(row.path): row for row in summary(load(path), **options)}


def test_gpu_work_counts_where_it_was_launched(tmp_path: Path) -> None:
    rows = by_path(exported(tmp_path / "a.sqlite"))
    assert set(rows) == {
        "decode", "decode > layer.NN", "decode > layer.NN > attention",
        "decode > layer.NN > attention > op.attention",
    }  # fmt: skip
    decode = rows["decode"]
    assert (decode.calls, decode.host, decode.gap) == (2, 50_000, 40)
    assert decode.typical == 25_000
    # 3000 to 8000, two overlap; 42000 to 49000 with 2000 between.
    assert (decode.gpu, decode.gpu_gap) == (5_000 + 5_000, 2_000)
    assert rows["decode > layer.NN > attention"].gpu == 10_000
    assert decode.share == 1.0 and load(tmp_path / "a.sqlite").on_gpu


def test_without_a_gpu_the_share_is_of_host_time(tmp_path: Path) -> None:
    rows = by_path(exported(tmp_path / "a.sqlite", gpu=False))
    assert rows["decode"].gpu == 0 and rows["decode > layer.NN"].share == 1 - 40 / 50_000
    session = load(tmp_path / "a.sqlite")
    assert not session.on_gpu and len(table(summary(session), False)[0]) == 6
    found = session.named("decode")
    assert [(r.payload, r.category) for r in found] == [(5, "phase"), (6, "phase")]


def test_names_and_layers(tmp_path: Path) -> None:
    path = exported(tmp_path / "a.sqlite")
    assert "decode > layer.00" in by_path(path, layers=True)
    assert set(by_path(path, by="name")) == {"decode", "layer.NN", "attention", "op.attention"}
    assert by_path(path, by="name")["attention"].calls == 2


def test_what_has_changed_most_comes_first(tmp_path: Path) -> None:
    before = summary(load(exported(tmp_path / "a.sqlite", gpu=False)))
    after = summary(load(exported(tmp_path / "b.sqlite", gpu=False, second_decode=60_000)))
    lines = comparison(before, after, False)
    assert lines[1] == ["decode", "2", "2", "0.080", "0.050", "+0.030", "1.60"]
    missing = comparison(before, after[:1], False)
    assert ["decode > layer.NN", "-", "2", "0.000", "0.050", "-0.050", "-"] in missing


def test_occupied() -> None:
    assert occupied([]) == (0, 0)
    assert occupied([(10, 20), (12, 15), (18, 25), (30, 31)]) == (16, 21)


def lines(path: Path, *ranges: dict[str, Any], head: Any = None) -> Path:
    head = head or {"format": "tinytorch_gpu ranges", "version": 1}
    path.write_text("".join(json.dumps(line) + "\n" for line in (head, *ranges)), "utf-8")
    return path


def one(name: str, start: int, end: int | None, depth: int = 0, **more: Any) -> dict[str, Any]:
    return {"start": start, "end": end, "name": name, "domain": "tinytorch_gpu", "category": "op",
            "payload": None, "depth": depth, "thread": 0, **more}  # fmt: skip


def test_ranges_of_one_length_nest_by_depth_and_open_ones_end_with_the_recording(
    tmp_path: Path,
) -> None:
    path = lines(tmp_path / "a.jsonl", one("inner", 1, 5, 1), one("outer", 1, 5, 0),
                 one("late", 8, None, 0), one("last", 9, 12, 1))  # fmt: skip
    found = load(path).ranges
    assert [r.path for r in load(path).walk()] == [
        ("outer",), ("outer", "inner"), ("late",), ("late", "last")
    ]  # fmt: skip
    assert found[1].cut and found[1].end == 12


def cut(path: Path, keep: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    return path


def no_table(path: Path) -> Path:
    data = sqlite3.connect(path)
    data.execute("CREATE TABLE PROCESSES (name TEXT)")
    data.commit()
    return path


def foreign(path: Path) -> Path:
    data = sqlite3.connect(exported(path))
    data.execute("UPDATE NVTX_EVENTS SET text = 'other' WHERE eventType = 75")
    data.commit()
    return path


BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "absent": (lambda p: p, "No such file"),
    "a folder": (lambda p: (p.mkdir(), p)[1], "directory"),
    "empty": (lambda p: (p.touch(), p)[1], "no session"),
    "binary": (lambda p: (p.write_bytes(bytes(range(256))), p)[1], "no session"),
    "other JSON": (lambda p: lines(p, head={"a": 1}), "no session"),
    "a newer format": (lambda p: lines(p, head={"format": "tinytorch_gpu ranges", "version": 2}), "no session"),
    "a broken line": (lambda p: cut(lines(p, one("a", 1, 2), one("b", 3, 4)), 0.9), "line 3 is broken"),
    "a line of something else": (lambda p: lines(p, {"name": "a"}), "line 2 is broken"),
    "no range": (lambda p: lines(p), "doctor"),
    "not exported": (lambda p: (p.with_suffix(".nsys-rep").touch(), p.with_suffix(".nsys-rep"))[1], "nsys export"),
    "no NVTX": (no_table, "-t nvtx"),
    "another domain": (foreign, "doctor"),
    "truncated": (lambda p: cut(exported(p), 0.5), "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_no_session_is_one_clear_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, words = BAD[name]
    path = make(tmp_path / "session.sqlite")
    with pytest.raises(SessionError, match=words):
        load(path)
    assert main([str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and words in err


def test_nothing_of_the_environment_leaks(tmp_path: Path) -> None:
    path = exported(tmp_path / "secret-folder.sqlite")
    for options in ([], ["--json"], ["--by", "name"], [str(path)], [str(path), "--json"]):
        command = [sys.executable, str(PROFILING / "summarize.py"), str(path), *options]
        done = subprocess.run(command, capture_output=True, text=True, env=environment())
        assert done.returncode == 0 and "decode" in done.stdout, done.stderr
        for leak in (SECRET, "secret", "HOME", str(tmp_path), platform.node() + "."):
            assert leak not in done.stdout


def test_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib draws the timeline")
    path, picture = exported(tmp_path / "a.sqlite"), tmp_path / "a.png"
    assert main([str(path), "--picture", str(picture), "--of", "decode", "--nth", "1"]) == 0
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG") and len(content) < 200_000
    assert SECRET.encode() not in content and str(tmp_path).encode() not in content
    assert main([str(path), "--picture", str(picture), "--of", "decode", "--nth", "2"]) == 2
    assert main([str(path), "--picture", str(picture), "--of", "nothing"]) == 2


def test_ranges_of_one_name_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = exported(tmp_path / "a.sqlite")
    assert main([str(path), "--of", "attention"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["range", "attention", "op.attention"]
    assert main([str(path), "--of", "nothing"]) == 2


def test_a_table_in_a_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- here:begin -->\nold\n<!-- here:end -->\nbelow\n", "utf-8")
    assert main([str(exported(tmp_path / "a.sqlite")), "--into", str(page), "here"]) == 0
    made = page.read_text("utf-8")
    assert made.startswith("above\n") and made.endswith("\nbelow\n") and "old" not in made
    assert "op.attention" in made and str(tmp_path) not in made


def test_text_lines_up(tmp_path: Path) -> None:
    page = text(table(summary(load(exported(tmp_path / "a.sqlite"))), True)).splitlines()
    assert len({len(line) for line in page}) == 1 and page[1].startswith("decode ")
