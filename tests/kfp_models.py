"""Data held against the models of `kfp-server-api`, field by field; what does not fit is refused like there."""

from __future__ import annotations

import datetime
from typing import Any

import kfp_server_api


class Refusal(Exception):  # noqa: N818
    """An answer other than 200, in the form of the real server's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


def check(kind: str, data: Any, where: str = "") -> None:
    """Refuse what a model of the API does not have: unknown fields, wrong types, unknown states."""
    if kind == "object" or data is None:
        return
    plain = {"str": str, "int": int, "bool": bool, "float": (int, float)}
    if kind in plain:
        if not isinstance(data, plain[kind]) or (kind == "int" and isinstance(data, bool)):  # type: ignore[arg-type]
            raise Refusal(400, f"{where}: {data!r} is no {kind}")
    elif kind == "datetime":
        datetime.datetime.fromisoformat(data)
    elif kind.startswith("list["):
        for index, item in enumerate(data):
            check(kind[5:-1], item, f"{where}[{index}]")
    elif kind.startswith("dict("):
        for key, item in data.items():
            check(kind[5:-1].split(", ", 1)[1], item, f"{where}.{key}")
    else:
        _check_model(getattr(kfp_server_api, kind), data, where or kind)


def _check_model(model: Any, data: Any, where: str) -> None:
    if not model.openapi_types:  # an enumeration
        allowed = {value for name, value in vars(model).items() if name.isupper()}
        if data not in allowed:
            raise Refusal(400, f"{where}: {data!r} is none of {sorted(allowed)}")
        return
    if not isinstance(data, dict):
        raise Refusal(400, f"{where}: not an object")
    names = {json_name: name for name, json_name in model.attribute_map.items()}
    for key, item in data.items():
        if key not in names:
            raise Refusal(400, f"{where}: unknown field {key!r}")
        check(model.openapi_types[names[key]], item, f"{where}.{key}")
