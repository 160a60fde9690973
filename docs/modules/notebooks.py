"""Course modules: from the one edited file to its notebooks.

    python docs/modules/notebooks.py [--check] [--execute] [--html FOLDER] [--save] [MODULE ...]

``NAME_dev.py`` (jupytext's percent format) is the source. Written from it, byte for byte the same each time, are
``NAME_dev.ipynb`` beside it, and in build/modules/ the student's copy, without what stands between ``BEGIN
SOLUTION`` and ``END SOLUTION``. ``--check`` compares instead of writing; ``--execute`` runs the notebook in a kernel of its
own; ``--html`` writes the executed one as a page. ``--save`` puts what the cells tagged "shown" printed in it
between two marks of the module's README.
"""

import argparse
import copy
import re
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

MODULES = Path(__file__).resolve().parent
BUILD = MODULES.parent.parent / "build" / "modules"
_SOLUTION = re.compile(r"( *)### BEGIN SOLUTION\n.*?### END SOLUTION\n?", re.DOTALL)
_GAP = '{0}### BEGIN SOLUTION\n{0}raise NotImplementedError("your code goes here")\n{0}### END SOLUTION\n'
# What a cell may take: longer ones lose a student's attention.
CELL_SECONDS, CELL_LIMIT = 60, 300
# What is wider than the screen scrolls in its own box.
_STYLE = (
    "math[display=block] { overflow-x: auto; overflow-y: hidden } "
    ".jp-RenderedHTMLCommon table { display: block; overflow-x: auto } "
    ".jp-OutputArea-output pre { white-space: pre; overflow-x: auto }"
)
_MARKS = ("<!-- shown:begin -->", "<!-- shown:end -->")


def notebook(source: Path) -> Any:
    """The notebook of a ``_dev.py`` file, without outputs; cells are numbered so that it never changes."""
    import jupytext

    made = jupytext.read(source)
    for number, cell in enumerate(made.cells):
        cell.id = f"cell-{number:03d}"
    made.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    made.nbformat, made.nbformat_minor = 4, 5
    return made


def student(made: Any) -> Any:
    """Its copy with gaps where the solutions were."""
    for cell in made.cells:
        if "exercise" in cell.metadata.get("tags", []):
            cell.source = _SOLUTION.sub(lambda m: _GAP.format(m[1]), cell.source + "\n").rstrip(
                "\n"
            )
    return made


def text_of(made: Any) -> str:
    """The file's text."""
    import nbformat

    return str(nbformat.writes(made, version=4, indent=1, sort_keys=True)) + "\n"


def execute(made: Any, folder: Path) -> list[tuple[float, str]]:
    """Run all cells in a new kernel started in ``folder``; (seconds, first line) of each that ran.

    A cell that fails ends it with the cell's own error; the outputs stay in ``made``.
    """
    from nbclient import NotebookClient

    took, began = [], {}

    def start(cell: Any, cell_index: int) -> None:
        began[cell_index] = time.perf_counter()

    def done(cell: Any, cell_index: int, execute_reply: Any) -> None:
        first = cell.source.splitlines()[0]
        took.append((time.perf_counter() - began[cell_index], first))

    client = NotebookClient(
        made, timeout=CELL_LIMIT, kernel_name="python3", resources={"metadata": {"path": str(folder)}},
        coalesce_streams=True, on_cell_execute=start, on_cell_executed=done,
    )  # fmt: skip
    client.execute()
    return took


_MATH = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+?)\$", re.DOTALL)


def page(made: Any) -> str:
    """The executed notebook as one HTML page, that needs nothing from elsewhere: formulas are MathML."""
    from latex2mathml.converter import convert
    from nbconvert import HTMLExporter

    formulas: list[str] = []

    def kept(match: re.Match[str]) -> str:
        shown = match[1] is not None
        formulas.append(convert(match[1] or match[2], display="block" if shown else "inline"))
        return f"formula{len(formulas) - 1}alumrof"  # the exporter would take the tags apart

    made = copy.deepcopy(made)
    for cell in made.cells:
        if cell.cell_type == "markdown":
            cell.source = _MATH.sub(kept, cell.source)
    exporter = HTMLExporter(
        template_name="lab", embed_images=True, mathjax_url="", require_js_url=""
    )
    text = str(exporter.from_notebook_node(made)[0])
    text = re.sub(r"formula(\d+)alumrof", lambda m: formulas[int(m[1])], text)
    return text.replace("</head>", f"<style>{_STYLE}</style></head>", 1)


def save_shown(made: Any, readme: Path) -> None:
    """Write what tagged cells printed between the README's marks, with when and where that was."""
    import platform

    from tinytorch_gpu import __version__
    from tinytorch_gpu.devices import device
    from tinytorch_gpu.processors import threads
    from tinytorch_gpu.profiler.machine import device_name

    printed = [
        output["text"].rstrip()
        for cell in made.cells if "shown" in cell.metadata.get("tags", [])
        for output in cell.outputs if output.get("name") == "stdout"
    ]  # fmt: skip
    about = (
        f"{device_name(device('cpu'))}, {threads()} threads, {date.today()}; tinytorch_gpu {__version__}, "
        f"Python {platform.python_version()}."
    )
    text = "\n\n".join(["```text", *printed, "```"]) + f"\n\n{about}\n"
    before, rest = readme.read_text(encoding="utf-8").split(_MARKS[0])
    after = rest.split(_MARKS[1])[1]
    readme.write_text(f"{before}{_MARKS[0]}\n{text}{_MARKS[1]}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("module", nargs="*", help="folders of docs/modules (default: all)")
    parser.add_argument(
        "--check", action="store_true", help="compare with what is there, write nothing"
    )
    parser.add_argument("--execute", action="store_true")
    parser.add_argument(
        "--html", type=Path, metavar="FOLDER", help="write pages there (runs the notebooks)"
    )
    parser.add_argument(
        "--save", action="store_true", help="update the README (runs the notebooks)"
    )
    given = parser.parse_args()
    sources = sorted(MODULES.glob("*/*_dev.py"))
    wanted = [s for s in sources if not given.module or s.parent.name in given.module]
    if not wanted:
        sys.exit(
            f"no module {' '.join(given.module)}: there are {[s.parent.name for s in sources]}"
        )
    stale = [s for s in wanted if not _written(s, given.check)]
    if stale:
        sys.exit(
            f"not what their sources give: {[s.with_suffix('.ipynb').name for s in stale]}: make notebook"
        )
    for source in wanted if given.execute or given.html or given.save else []:
        _run(source, given.html, given.save)


def _written(source: Path, check: bool) -> bool:
    """Write both notebooks, or say whether the one beside the source is up to date."""
    path, text = source.with_suffix(".ipynb"), text_of(notebook(source))
    if check:
        return path.exists() and path.read_text(encoding="utf-8") == text
    path.write_text(text, encoding="utf-8")
    BUILD.mkdir(parents=True, exist_ok=True)
    copy = BUILD / path.name.replace("_dev", "_student")
    copy.write_text(text_of(student(notebook(source))), encoding="utf-8")
    print(f"wrote {path.name} and {copy.relative_to(BUILD.parent.parent)}")
    return True


def _run(source: Path, html: Path | None, save: bool) -> None:
    made = notebook(source)
    took = execute(made, source.parent)
    slowest = sorted(took, reverse=True)[:5]
    print(f"{source.stem}: {sum(s for s, _ in took):.0f} s in {len(took)} cells; the slowest:")
    for seconds, first in slowest:
        print(f"  {seconds:5.1f} s  {first}")
    if html is not None:
        html.mkdir(parents=True, exist_ok=True)
        (html / f"{source.stem}.html").write_text(page(made), encoding="utf-8")
        print(f"wrote {html / source.stem}.html")
    if save:
        save_shown(made, source.parent / "README.md")
        print(f"wrote what it printed into {source.parent / 'README.md'}")
    if slowest[0][0] > CELL_SECONDS:
        sys.exit(f"a cell took more than {CELL_SECONDS} s: {slowest[0][1]}")


if __name__ == "__main__":
    main()
