"""The exception that a user's mistake raises; the command line prints it and exits with 2."""


class UserError(Exception):
    """What is wrong, with key and value, and what to do; several problems are several lines."""
