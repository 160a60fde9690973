"""What the whole run beside a PyTorch twin has shown, and whether the guide says the same."""

import json
from pathlib import Path

TOP = Path(__file__).parent.parent


def test_the_guide_tells_the_figures_of_the_whole_run() -> None:
    found = json.loads((TOP / "profiling" / "results" / "twin_cpu.json").read_text("utf-8"))
    assert found["val_difference"] <= found["val_allowed"] == 0.02
    guide = (TOP / "docs" / "training.md").read_text("utf-8")
    assert f"{found['parameters']:,}" in guide
    for first in (found["first_float64"], found["first_float32"]):
        assert first["largest_difference"] <= first["allowed"]
        assert f"{first['largest_difference']:.0e}" in guide
    for engine in ("tinytorch_gpu", "pytorch"):
        assert f"{found[engine]['val_loss']:.4f}" in guide
