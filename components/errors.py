"""The one exception a person is meant to read."""


class KinoflowError(Exception):
    """Something the user can mend: one sentence saying what was wrong, where, and what to do."""


def missing_package(error: ModuleNotFoundError) -> str:
    """What to do about a package that is not part of this image or environment."""
    return (
        f"The Python package {error.name} is not installed here; run this in Kinoflow's image `train`, "
        "or install `kinoflow[media,train,tracking]`."
    )
