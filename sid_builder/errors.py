"""The one exception users are meant to see."""


class InputError(ValueError):
    """Something the user gave is wrong; the message names the field, the value seen and the fix, on one line."""
