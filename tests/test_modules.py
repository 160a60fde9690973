"""The course's modules: notebooks are what their sources give, run to the end, and their checks catch mistakes."""

import importlib
import importlib.util
import os
import re
from pathlib import Path
from typing import Any

import pytest
from browser import width_shown

for package in ("jupytext", "nbclient", "nbconvert", "ipykernel", "yaml", "matplotlib"):
    if not os.environ.get("CI"):
        pytest.importorskip(
            package, reason=f"the course's notebooks need {package}: pip install '.[test]'"
        )


FOLDER = Path(__file__).resolve().parent.parent / "docs" / "modules"
MODULE = FOLDER / "14_transformers"
SOURCE = MODULE / "transformers_dev.py"


@pytest.fixture(scope="module")
def notebooks() -> Any:
    spec = importlib.util.spec_from_file_location("notebooks", FOLDER / "notebooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_notebook_is_what_its_source_gives(notebooks: Any) -> None:
    text = notebooks.text_of(notebooks.notebook(SOURCE))
    assert text == notebooks.text_of(notebooks.notebook(SOURCE))
    assert SOURCE.with_suffix(".ipynb").read_text(encoding="utf-8") == text, "run make notebook"


def test_the_students_copy_has_gaps_and_no_solutions(notebooks: Any) -> None:
    whole, copy = (make(notebooks.notebook(SOURCE)) for make in (lambda n: n, notebooks.student))
    exercises = [c for c in whole.cells if "exercise" in c.metadata.get("tags", [])]
    gaps = [c for c in copy.cells if "exercise" in c.metadata.get("tags", [])]
    assert len(exercises) >= 7
    for full, gap in zip(exercises, gaps, strict=True):
        begin, end = full.source.index("### BEGIN SOLUTION"), full.source.index("### END SOLUTION")
        solution = full.source[begin:end].splitlines()[1]
        assert solution not in gap.source and "your code goes here" in gap.source
        compile(gap.source, "gap", "exec")


def test_the_description_is_complete_and_its_exports_exist() -> None:
    import yaml

    about = yaml.safe_load((MODULE / "module.yaml").read_text(encoding="utf-8"))
    wanted = {
        "name", "number", "description", "learning_objectives", "prerequisites", "exports",
        "systems_concepts", "ml_systems_focus", "estimated_time", "next_modules",
    }  # fmt: skip
    assert set(about) == wanted and all(about.values())
    for name in about["exports"]:
        module, _, attribute = name.rpartition(".")
        assert getattr(importlib.import_module(module), attribute), name


# What a student may write instead of a solution, and words of the message that must come.
MISTAKES = [
    ("variance = (centred * centred).mean(axis=-1, keepdims=True)",
     "variance = (centred * centred).sum(axis=-1, keepdims=True) / (x.shape[-1] - 1)", "not by d - 1"),
    ("centred / (variance + eps).sqrt()", "centred / (variance.sqrt() + eps)", "under the root"),
    ("centred = x - x.mean(axis=-1, keepdims=True)\n    variance = (centred * centred).mean(axis=-1, keepdims=True)",
     "centred = x - x.mean(axis=-1, keepdims=True)\n    variance = (centred * centred).mean(axis=-1, keepdims=True).detach()",
     "gradient is wrong for x"),
    (").relu() @ self.w2 + self.b2", ") @ self.w2 + self.b2", "relu comes between"),
    ("q @ k.transpose() / q.shape[-1] ** 0.5", "q @ k.transpose()", "sqrt"),
    ("columns <= rows", "columns >= rows", "future"),
    (".permute(0, 2, 1, 3)\n\n", ".reshape(batch, self.heads, length, -1)\n\n", "swap T and H"),
    ("return x + self.ffn(layer_norm(x, self.gamma2, self.beta2))", "return self.ffn(layer_norm(x, self.gamma2, self.beta2))",
     "pre-norm"),
    ("x = layer_norm(x + self.attention(x), self.gamma1, self.beta1)",
     "x = x + layer_norm(self.attention(x), self.gamma1, self.beta1)", "post-norm"),
    (" + self.positions[: ids.shape[1]]", "", "positions"),
    ("return x / ((x * x).mean(axis=-1, keepdims=True) + eps)", "return x / ((x * x).sum(axis=-1, keepdims=True) + eps)",
     "mean SQUARE"),
    ("mean = (states * real[:, :, None]).sum(1)", "mean = states.sum(1)", "padding counts"),
]  # fmt: skip


def attempt(notebooks: Any, right: str, wrong: str) -> None:
    """Run the exercises and their checks with one solution changed, up to that one's check."""
    cells = [c for c in notebooks.notebook(SOURCE).cells if c.cell_type == "code"]
    tagged = (c for c in cells if {"exercise", "check"} & set(c.metadata.get("tags", [])))
    namespace: dict[str, Any] = {}
    changed = False
    for cell in [cells[0], *tagged]:
        changed = changed or right in cell.source
        exec(compile(cell.source.replace(right, wrong), "cell", "exec"), namespace)
        if changed and "check" in cell.metadata["tags"]:
            return


def test_the_solutions_pass_their_checks(notebooks: Any) -> None:
    attempt(notebooks, "nothing changes", "nothing changes")


@pytest.mark.parametrize(("right", "wrong", "words"), MISTAKES, ids=[m[2] for m in MISTAKES])
def test_a_mistake_is_answered_in_words(notebooks: Any, right: str, wrong: str, words: str) -> None:
    assert SOURCE.read_text(encoding="utf-8").count(right) == 1
    with pytest.raises(AssertionError, match=words):
        attempt(notebooks, right, wrong)


def test_what_cells_printed_goes_into_the_readme(notebooks: Any, tmp_path: Path) -> None:
    made = notebooks.notebook(SOURCE)
    shown = [c for c in made.cells if "shown" in c.metadata.get("tags", [])]
    assert len(shown) == 3
    for number, cell in enumerate(shown):
        cell.outputs = [{"output_type": "stream", "name": "stdout", "text": f"text {number}\n"}]
    before = "# A\n\n<!-- shown:begin -->\nold\n<!-- shown:end -->\n\nend\n"
    (tmp_path / "README.md").write_text(before, encoding="utf-8")
    notebooks.save_shown(made, tmp_path / "README.md")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "text 0\n\ntext 1\n\ntext 2\n\n```" in text and "old" not in text
    assert text.startswith("# A\n\n<!-- shown") and text.endswith("<!-- shown:end -->\n\nend\n")


@pytest.mark.parametrize("width", [1280, 500])
def test_a_browser_shows_its_page(notebooks: Any, tmp_path: Path, width: int) -> None:
    """Nothing is wider than the screen, nothing comes from elsewhere, and formulas are formulas."""
    pytest.importorskip("latex2mathml", reason="the page's formulas need latex2mathml")
    text = notebooks.page(notebooks.notebook(SOURCE))
    assert not re.findall(r'(?:src|href)="http[^"]*\.(?:js|css)', text)
    assert len(re.findall(r"<math[^>]*><mrow>", text)) > 30 and "alumrof" not in text
    assert "<mfrac>" in text and not re.search(r">[^<]*\$[^<$]+\$[^<]*</p>", text)
    assert width_shown(text, width, tmp_path)[0] <= width


@pytest.mark.slow
def test_the_module_runs_to_its_end(
    notebooks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Half of a reader's training: other tests run beside, and no cell may take a minute.
    monkeypatch.setenv("MODULE_TRAIN_SECONDS", "60")
    made = notebooks.notebook(SOURCE)
    took = notebooks.execute(made, tmp_path)
    assert sum(seconds for seconds, _ in took) < 300
    assert max(took)[0] < notebooks.CELL_SECONDS, max(took)
    pictures = sum(
        "image/png" in output.get("data", {})
        for cell in made.cells if cell.cell_type == "code"
        for output in cell.outputs
    )  # fmt: skip
    assert pictures >= 10
    assert len(notebooks.page(made)) < 6_000_000
