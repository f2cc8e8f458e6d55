"""The one exception that a user's mistake raises; the command line prints it as one line and exits with 2."""


class UserError(Exception):
    """What is wrong, with key and value, and what to do about it; several problems are several lines."""
