"""Mistakes of the user, as opposed to defects of mmchat."""


class UserError(ValueError):
    """A mistake in what the user gave: a path, a config, a record, an image.

    The message is complete by itself: what is wrong, where, what was expected, what was found and what to do. The
    command line prints it without a traceback and exits with status 2. Every other exception is a defect of mmchat and
    keeps its traceback.

    Args:
        kind: the kind of a mistake in the data, for programs (`mmchat.data.doctor` lists the kinds); "" for any other.
    """

    def __init__(self, message: str = "", kind: str = "") -> None:
        super().__init__(message)
        self.kind = kind


class SharedError(UserError):
    """An error that all ranks of a run raise together; only rank 0 prints it."""
