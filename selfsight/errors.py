"""The exception for mistakes of a user; the command line prints it and exits with status 2."""


class UserError(Exception):
    """The message names key and value, why they are refused and what to type; a line a problem."""
