"""Questions to a network: which genes attend to which, where, and what changes in the tissue when a gene changes."""
