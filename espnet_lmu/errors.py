"""The error of a wrong input: its message is the one line a user reads."""


class UserError(ValueError):
    """Something the user gave cannot work; the message names it and says what to do.

    Command lines print it as ``error: MESSAGE`` and exit with status 1, without a traceback.
    """
