"""A small brain with a known truth, and models trained on it for a few seconds."""

import numpy as np
import pytest
from synthetic_brain import CENTRE, Brain, coronal_series, regulatory_edges

from teramind.impute.cells import join_cells
from teramind.impute.density import TissueDensity
from teramind.impute.expression import ExpressionConfig, train_expression
from teramind.impute.gene_order import order_genes
from teramind.impute.location import LocationConfig, train_locations
from teramind.impute.planes import Plane
from teramind.impute.training import TrainingOptions


@pytest.fixture(scope="session")
def brain():
    return Brain.make(genes=21, types=6, density=900.0)


@pytest.fixture(scope="session")
def slices(brain):
    """Seven coronal slices of 580 to 1,350 cells."""
    return coronal_series(brain, 7)


@pytest.fixture(scope="session")
def held_out(slices):
    """The slice that is never shown, and its plane."""
    return slices[3], Plane.coronal(float(slices[3].positions[:, 2].mean()))


@pytest.fixture(scope="session")
def measured(slices):
    return join_cells([cells for index, cells in enumerate(slices) if index != 3])


@pytest.fixture(scope="session")
def density(measured):
    return TissueDensity(measured, 0.01)


@pytest.fixture(scope="session")
def location_model(measured):
    options = TrainingOptions(steps=300, batch=512, learning_rate=4e-3, seed=1)
    return train_locations(measured, options, config=LocationConfig(width=64, depth=2, octaves=4))


@pytest.fixture(scope="session")
def middle_of_brain():
    return np.asarray(CENTRE)


@pytest.fixture(scope="session")
def expression_model(brain, measured):
    options = TrainingOptions(steps=300, batch=64, learning_rate=8e-3, seed=2)
    order = order_genes(brain.genes, [(source, target) for source, target, _ in regulatory_edges(brain)])
    return train_expression(measured, options, config=ExpressionConfig(width=32, dropout=0.0), order=order)
