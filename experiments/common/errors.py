"""Exceptions that tell a user in one sentence which input is wrong."""


class DataError(ValueError):
    """A data set that cannot be used; one sentence that names the option or file and what is accepted."""


class OptionError(ValueError):
    """An option that cannot be used; the message is one sentence that names it and what it accepts."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that is not empty."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
