"""Exceptions that tell a user in one sentence which input is wrong."""


class DataError(ValueError):
    """A data set that cannot be used; one sentence that names the option or file and what is accepted."""


class OptionError(ValueError):
    """An option that cannot be used; the message is one sentence that names it and what it accepts."""
