"""Checks of arguments that several functions share, each failing with one sentence for the user."""

from __future__ import annotations

import operator
import os
from typing import Any

from teramind.errors import InputError


def integer_between(name: str, value: Any, low: int, high: int) -> int:
    """Return ``value`` as an int.

    Raises:
        InputError: ``value`` is no integer (a bool is none either), or lies outside ``low .. high``, both included.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or not low <= number <= high:
        raise InputError(f"{name} is {value!r}, but has to be an integer from {low} to {high}.")
    return number


def thread_count(threads: int | None) -> int:
    """Return ``threads``, or the number of CPUs this process may run on if None.

    Raises:
        InputError: ``threads`` is not a positive integer.
    """
    if threads is None:
        return len(os.sched_getaffinity(0))
    return integer_between("threads", threads, 1, MAX_THREADS)


MAX_THREADS = 1024
