"""The report as a page and as pictures: complete, self-contained, small, and right in a browser."""

import json
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import width_shown

from tinytorch_gpu import Transformer
from tinytorch_gpu.cli.main import main
from tinytorch_gpu.config import preset
from tinytorch_gpu.profiler import DEVICES, Setting
from tinytorch_gpu.profiler.report import build_report
from tinytorch_gpu.profiler.report.data import Asked

pytest.importorskip("matplotlib", reason="pictures need matplotlib: pip install '.[profile]'")

from tinytorch_gpu.profiler.report.attention import attention_maps
from tinytorch_gpu.profiler.report.html import page, write_png

CONFIG = preset("shakespeare-char", num_layers=2, embed_dim=32, hidden_dim=64)


@pytest.fixture(scope="module")
def made() -> tuple[Any, Any]:
    """A report with everything in it, and attention maps."""
    model = Transformer.from_config(CONFIG, device="cpu", seed=0)
    setting, asked = Setting(CONFIG), Asked("ops", 2, 16, 4)
    report = build_report("tiny", setting, DEVICES["EPYC 7763"], asked, model, studies=True)
    return report, attention_maps(model, np.arange(10))


@pytest.fixture(scope="module")
def text(made: Any) -> str:
    """Its page."""
    return page(*made)


class Shape(HTMLParser):
    """Open tags, to see that each is closed; ids and references, to see that each is there once."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_else(text: str) -> None:
    assert len(text.encode()) < 1_000_000
    shape = Shape()
    shape.feed(text)
    assert not shape.open and len(shape.ids) == len(set(shape.ids))
    used = set(re.findall(r'(?:href="|url\()#([\w-]+)', text))
    assert used <= set(shape.ids)
    outside = re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', text)
    assert not outside and "<script" not in text and "@import" not in text
    for phase in ("prefill", "decode", "train.step"):
        assert f"<h2>{phase}</h2>" in text
    assert text.count("<figure>") == 6 + 2 + 2 + 7 + 1
    assert "H100" in text and "heads 1 to" in text


def test_nothing_of_the_environment_is_in_it(made: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("SECRET_OF_MINE", "do-not-publish-this")
    report, maps = made
    few = replace(report, studies=report.studies[:1])
    found = page(few, maps) + json.dumps(report.to_dict())
    for path in write_png(few, tmp_path, maps):
        found += path.read_bytes().decode("latin-1")
    private = [
        "do-not-publish-this",
        "SECRET_OF_MINE",
        str(Path.home()) + "/",
        str(Path.cwd()),
        str(tmp_path),
    ]
    private += [
        v for n, v in os.environ.items() if n in ("USER", "LOGNAME", "HOSTNAME") and len(v) > 4
    ]
    for text in private:
        assert text not in found


def test_names_in_it_are_text_not_markup(made: Any) -> None:
    report, _ = made
    text = page(replace(report, model="<script>alert(1)</script>", studies=[], runs={}))
    assert "<script" not in text and "&lt;script&gt;" in text


def test_attention_maps_are_the_models(made: Any) -> None:
    _, maps = made
    assert maps.layers == [0, 1] and maps.heads == [0, 1, 2, 3]
    for weights in maps.weights:
        np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
        assert not np.triu(weights, 1).any()
    with pytest.raises(ValueError, match="at least one token"):
        attention_maps(Transformer.from_config(CONFIG, device="cpu"), [])


def test_the_command_writes_page_pictures_and_values(tmp_path: Path, capsys: Any) -> None:
    page_file, values = tmp_path / "new" / "report.html", tmp_path / "report.json"
    given = [
        "profile",
        "train",
        "-m",
        "shakespeare-char",
        "--device",
        "T4",
        "--html",
        str(page_file),
    ]
    assert main([*given, "--json", str(values), "--png", str(tmp_path / "png")]) == 0
    assert "T4" in page_file.read_text("utf-8") and json.loads(values.read_text("utf-8"))["studies"]
    assert (tmp_path / "png" / "roofline-train-step.png").stat().st_size > 10_000
    assert main(["profile", "--attention", "text"]) == 2
    assert "--html" in capsys.readouterr().err
    assert main(["profile", "--device", "T4", "--attention", "text", "--html", str(page_file)]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it(text: str, width: int, tmp_path: Path) -> None:
    """What is wider than the screen scrolls in its own box: the page itself must not."""
    shown, said = width_shown(text, width, tmp_path)
    assert shown <= max(width, 500)  # a window is at least 500 wide
    assert "CONSOLE" not in said, said
