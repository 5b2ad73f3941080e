"""The figures: that what there is can be seen."""

import io

import numpy as np
from PIL import Image
from scipy.ndimage import label

from teramind.interaction.figures import regression_figure
from teramind.interaction.statistics import JointHistogram, PathwayStatistics, RegressionSums


def test_single_points_can_be_seen():
    """Each of five lone points away from the line makes a spot that is neither paper, nor ink, nor a marginal."""
    x, y = np.array([0.5, 1.0, 2.0, 3.0, 3.5]), np.array([3.0, 0.5, 2.5, 0.5, 3.0])
    histogram, sums = JointHistogram(), RegressionSums()
    histogram.update(x, y)
    sums.update(x, y)
    statistics = PathwayStatistics(["Th"], [(0, 0.0)], [[sums, sums]], {"Th": histogram})
    picture = np.asarray(Image.open(io.BytesIO(regression_figure(statistics))).convert("RGB")).astype(int)
    # The first gene is magenta: red above green. Below the upper marginal.
    spots, count = label((picture[..., 0] - picture[..., 1] > 40)[int(0.27 * len(picture)) :])
    assert count == 5
    assert min(np.bincount(spots.ravel())[1:]) > 5
