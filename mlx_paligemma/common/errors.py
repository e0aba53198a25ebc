"""Every error that a user can cause, as one short tree. The message is one line: what is wrong, then what to do."""


class PaliGemmaError(Exception):
    """Base of all errors raised on purpose by this project."""


class CheckpointError(PaliGemmaError):
    """A model folder, its config or its weights cannot be used."""


class ImageError(PaliGemmaError):
    """A picture cannot be read or is not a picture."""


class PromptError(PaliGemmaError):
    """A prompt is empty, too long, or does not fit the pictures it comes with."""


class OptionError(PaliGemmaError):
    """An option has a value that it cannot have."""


class BackendError(PaliGemmaError):
    """A backend is unknown, or what it needs is not installed."""


class NumericError(PaliGemmaError):
    """The model produced NaN or infinite numbers."""


class TooLargeError(PaliGemmaError):
    """A model or a batch needs more memory than there is."""


class BusyError(PaliGemmaError):
    """A server has as many requests as it takes."""
