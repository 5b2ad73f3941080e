"""MIMYR: cells, their types and their expression for tissue that was never measured."""
