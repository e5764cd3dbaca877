"""Errors that a user can act on."""


class BackburnError(Exception):
    """Base of the errors Backburn raises on purpose; their text is meant for the user."""


class InputError(BackburnError):
    """Something the user gave is wrong; the text says what, where and what to do. Exit code 2."""


class StorageError(BackburnError):
    """A file or object could not be moved whole; nothing half is left under its final name."""


class TrainingDivergedError(BackburnError):
    """A gradient is no number any more; the weights are those of the last good step."""


class MemoryLimitError(BackburnError):
    """The least that can be done at once does not fit into memory."""


class ContainmentError(BackburnError):
    """An action was refused by the containment policy."""


class WithheldError(BackburnError):
    """A step failed; the failure's own message is left out, for it may quote text."""


class JudgeError(BackburnError):
    """A judge cannot be reached; what it said before is kept."""


class VerificationError(BackburnError):
    """A model's evidence does not hold, so the model is not handed out."""


class LostProcessError(BackburnError):
    """One of the processes of a step was killed or failed, so the step has no result."""
