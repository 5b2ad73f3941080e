"""The exceptions that commands turn into one sentence and exit code 2."""


class TeramindError(Exception):
    """Anything this package raises on purpose. The message is one sentence: what is wrong, and what to do."""


class InputError(TeramindError, ValueError):
    """Input that cannot be used: a file, an option, or two of them that do not fit together."""


class ComputationError(TeramindError, RuntimeError):
    """A run that had to stop: values that are not numbers, a device that is gone."""


class Interrupted(TeramindError):  # noqa: N818 - not an error: it did what it was told
    """A run that was told to stop, and did with a snapshot."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
