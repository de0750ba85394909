"""Goodness mapped to [0, 1], against NumPy."""

from __future__ import annotations

import numpy as np
import torch

from qa_hooks.scorers import Calibration


def skewed(n: int = 401) -> torch.Tensor:
    """Values whose quartiles lie at unequal distances from the median."""
    return torch.linspace(-1, 3, n, dtype=torch.float64).exp()


def test_a_sigmoid_is_as_wide_as_the_interquartile_range():
    values = skewed()
    low, median, high = np.quantile(values.numpy(), [0.25, 0.5, 0.75])
    given = np.array([-3.0, low, median, high, 50.0])
    expected = 1 / (1 + np.exp(-(given - median) / (high - low)))
    calibrated = Calibration.fit(values, method="sigmoid")(torch.from_numpy(given))
    np.testing.assert_allclose(calibrated.numpy(), expected, rtol=1e-5)


def test_a_sigmoid_of_values_that_are_nearly_all_equal_stays_finite():
    values = torch.cat([torch.zeros(400), torch.tensor([1.0])])
    calibrated = Calibration.fit(values, method="sigmoid")(torch.tensor([-1.0, 0.0, 1.0]))
    np.testing.assert_allclose(calibrated.numpy(), [0.0, 0.5, 1.0], atol=1e-6)


def test_minmax_leaves_out_a_thousandth_at_either_end():
    values = skewed()
    low, high = np.quantile(values.numpy(), [0.001, 0.999])
    given = np.array([low - 1, low, 5.0, high, high + 1])
    expected = np.clip((given - low) / (high - low), 0, 1)
    calibrated = Calibration.fit(values, method="minmax")(torch.from_numpy(given))
    np.testing.assert_allclose(calibrated.numpy(), expected, rtol=1e-5, atol=1e-7)
