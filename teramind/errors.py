"""The one exception that means: what was asked for cannot be done, and here is what to change."""


class InputError(ValueError):
    """Input that cannot be used: a file, an option, or two of them that do not fit together.

    Its message is one sentence with the offending value and what to do about it. Commands print it and exit with
    code 2; library callers may catch it as a ``ValueError``.
    """
