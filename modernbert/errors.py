"""The one exception for what a user can cause; the command line prints it as one line and exits with status 2."""


class InputError(ValueError):
    """Say which file or field is wrong, what was found, and what was expected, in one line."""
