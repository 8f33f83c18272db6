"""What a user can mend, told apart from what a programmer must."""


class UserError(ValueError):
    """A mistake in what the user gave us: a path, a config, a record, an image.

    The message is complete by itself: what is wrong, where, what was expected, what was found and
    what to do. The command line prints it without a traceback and exits with status 2; every other
    exception is a defect of ours and keeps its traceback.

    kind: what programs tell mistakes in data apart by (`mmchat.data.doctor` lists the kinds); "" is any other.
    """

    def __init__(self, message: str = "", kind: str = "") -> None:
        super().__init__(message)
        self.kind = kind


class SharedError(UserError):
    """One that every rank of a run raises alike, each knowing it of the others: rank 0 alone says it."""
