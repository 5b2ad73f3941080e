"""Tells a good image from a bad one: `evaluate`, and the measurements that it is made of."""

from teramind.callable_module import make_callable
from teramind.evaluate.conditioning import shuffle_genes
from teramind.evaluate.evaluation import Evaluation, Row
from teramind.evaluate.run import evaluate

__all__ = ["Evaluation", "Row", "evaluate", "shuffle_genes"]

make_callable(__name__)
