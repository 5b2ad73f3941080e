"""A procedural brain whose morphology is caused by its genes, with the truth known."""

from teramind.atlas.phantom.phantom import Phantom

__all__ = ["Phantom"]
