"""The one exception users are meant to see."""


class InputError(ValueError):
    """Something the user gave is wrong; the message names field, value and fix on one line."""
