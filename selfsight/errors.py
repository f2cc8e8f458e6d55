"""The exception for mistakes of a user; the command line prints it and exits with status 2."""


class UserError(Exception):
    """The message names key and value, why they are refused and what to type; a line a problem.

    Attributes:
        everywhere: every process of a distributed run raises this, so only the first prints it.
    """

    everywhere = False


def described(error: OSError) -> str:
    """An error of the operating system in one line: the file, if it is known, and the reason."""
    reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
    return reason if error.filename is None else f"'{_text(error.filename)}': {reason}"


def _text(path: str | bytes | int) -> str:
    return path.decode(errors="surrogateescape") if isinstance(path, bytes) else str(path)
