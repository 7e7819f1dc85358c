"""The one exception a person is meant to read."""


class KinoflowError(Exception):
    """Something the user can mend: one sentence saying what was wrong, where, and what to do."""
