"""The course's modules: notebooks are what their sources give, run to the end, and their checks catch mistakes."""

import importlib
import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest

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
]  # fmt: skip


def attempt(notebooks: Any, right: str, wrong: str) -> None:
    """Run the exercises up to part 7 and their checks, with one solution changed."""
    cells = [c for c in notebooks.notebook(SOURCE).cells if c.cell_type == "code"]
    namespace: dict[str, Any] = {}
    for cell in [cells[0], *(c for c in cells if c.metadata.get("tags"))]:
        exec(compile(cell.source.replace(right, wrong), "cell", "exec"), namespace)
        if "def check_model" in cell.source:
            return


def test_the_solutions_pass_their_checks(notebooks: Any) -> None:
    attempt(notebooks, "nothing changes", "nothing changes")


@pytest.mark.parametrize(("right", "wrong", "words"), MISTAKES, ids=[m[2] for m in MISTAKES])
def test_a_mistake_is_answered_in_words(notebooks: Any, right: str, wrong: str, words: str) -> None:
    assert SOURCE.read_text(encoding="utf-8").count(right) == 1
    with pytest.raises(AssertionError, match=words):
        attempt(notebooks, right, wrong)


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
