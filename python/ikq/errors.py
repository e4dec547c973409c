"""Exceptions of ikq.

They mirror the errors of the Rust crates. Errors of the operating system keep their kind
(`FileNotFoundError`, `PermissionError`, ... with `filename`), an interrupted call raises
`KeyboardInterrupt`.
"""

__all__ = [
    "DeviceError",
    "DeviceMemoryError",
    "FormatError",
    "GrammarError",
    "IkqError",
    "MissingImatrixError",
    "NotTernaryWarning",
    "RefusedError",
    "ShapeError",
    "TemplateLimit",
    "UnsupportedError",
    "UsageError",
]


class IkqError(Exception):
    """Base of all exceptions that ikq defines."""


class FormatError(IkqError, ValueError):
    """Data, a file or a name is not what it should be: unknown type, damaged GGUF, NaN in weights."""


class GrammarError(FormatError):
    """A grammar, schema or pattern that cannot be compiled.

    Attributes:
        keyword: The keyword, rule or name at fault, if it is one.
        place: Where it stands: a JSON pointer, or line and column.
    """

    def __init__(self, sentence: str, *, keyword: str | None = None, place: str | None = None) -> None:
        super().__init__(sentence)
        self.keyword = keyword
        self.place = place


class TemplateLimit(FormatError):  # noqa: N818  # a limit, not a mistake
    """A conversation that a chat template cannot express; the message says what it cannot do."""


class ShapeError(IkqError, ValueError):
    """A shape, row length or byte count does not fit the type or the other arguments."""


class UnsupportedError(IkqError, NotImplementedError):
    """A sensible request that ikq or this machine does not support."""


class RefusedError(IkqError):
    """Not done because it would do harm or makes no sense; the message names the option that allows it."""


class MissingImatrixError(RefusedError):
    """A type needs an importance matrix and there is no data for a tensor, or the imatrix is incomplete."""


class UsageError(RefusedError, FormatError):
    """A rule, a list or a name that the user wrote for this call cannot be read; the message has its text.

    It is a `FormatError` to programs, and to the command line wrong usage.
    """


class DeviceError(IkqError):
    """A compute device is missing or failed."""


class DeviceMemoryError(DeviceError, RefusedError):
    """The memory of a GPU does not hold what is to go there; the message says what may be done."""


class NotTernaryWarning(UserWarning):
    """Weights that are not ternary were encoded as a ternary or BitNet type, which keeps little of them."""
