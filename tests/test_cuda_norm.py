"""What the norm kernels do better than their reference, which the case table cannot ask for."""

import numpy as np
import pytest

from tinytorch_gpu import devices
from tinytorch_gpu.core.op import OPS


@pytest.mark.parametrize("width", [48, 257, 1024, 8208])
def test_rows_far_from_zero_keep_their_digits(gpu: str, width: int) -> None:
    """The mean, rounded, is off by more than the rows are wide; what is left of it corrects both."""
    place, op = devices.device(gpu), OPS["layer_norm"]
    devices.load_makers(place.kind)
    rows = np.random.default_rng(0).standard_normal((3, width)) * 0.02 + 1e4
    weights = (np.ones(width, np.float32), np.zeros(width, np.float32))
    given = (rows.astype(np.float32), *weights)
    truth = op.reference(*(a.astype(np.float64) for a in given))
    made, saved = op.makers["cuda"][0].forward(*map(place.asarray, given), eps=1e-5)
    np.testing.assert_allclose(made.get(), truth[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(saved[3].get(), truth[1][3], rtol=1e-5)
