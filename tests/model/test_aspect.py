import subprocess
import sys

import pytest
from pydantic import ValidationError

from model.aspect import RESOLUTIONS, CustomResolution, aspect_key, named_resolution, nearest_aspect
from tests.parity import load_case


def test_tables_hold_the_released_numbers_in_the_released_order() -> None:
    tables, _ = load_case("aspect_tables")
    assert list(RESOLUTIONS) == list(tables)
    for name, expected in tables.items():
        assert RESOLUTIONS[name].num_pixels == expected["nominal_area"]
        sizes = [(key, list(size)) for key, size in RESOLUTIONS[name].sizes.items()]
        assert sizes == list(expected["sizes_h_w"].items())


@pytest.mark.parametrize(
    ("resolution", "height", "width", "expected"),
    [
        ("480p", 1080, 1920, "0.56"),
        ("480p", 1920, 1080, "1.78"),
        ("1024", 1080, 1920, "0.57"),
        ("256", 512, 512, "1.0"),
        ("144p", 512, 512, "1.00"),
        ("720p", 10, 1000, "0.38"),
        ("720p", 1000, 10, "2.08"),
    ],
)
def test_nearest_aspect(resolution: str, height: int, width: int, expected: str) -> None:
    assert nearest_aspect(resolution, height, width) == expected


def test_a_tie_goes_to_the_first_key_of_the_table() -> None:
    custom = CustomResolution(sizes=((50, 100), (100, 100))).resolve("mine")
    assert nearest_aspect(custom, 75, 100) == "0.50"
    reversed_order = CustomResolution(sizes=((100, 100), (50, 100))).resolve("mine")
    assert nearest_aspect(reversed_order, 75, 100) == "1.00"


def test_4k_lists_062_before_056() -> None:
    keys = list(RESOLUTIONS["4k"].sizes)
    assert keys.index("0.62") == keys.index("0.56") - 1


def test_errors_are_sentences() -> None:
    with pytest.raises(ValueError, match=r'unknown resolution "4K"; allowed: 144p, 256, .*, 4k'):
        named_resolution("4K")
    with pytest.raises(ValueError, match="0x10: height and width must be at least 1"):
        nearest_aspect("144p", 0, 10)


def test_custom_resolution_from_a_bare_list() -> None:
    custom = CustomResolution.model_validate([[32, 56], [40, 48], [56, 32]])
    resolution = custom.resolve("tiny")
    assert resolution.num_pixels == 40 * 48
    assert dict(resolution.sizes) == {"0.57": (32, 56), "0.83": (40, 48), "1.75": (56, 32)}
    assert aspect_key(32, 56) == "0.57"
    given = CustomResolution.model_validate({"sizes": [[32, 56]], "num_pixels": 2000})
    assert given.resolve("tiny").num_pixels == 2000
    assert CustomResolution.model_validate_json(given.model_dump_json()) == given


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        ([[200, 400], [201, 400]], "200x400 and 201x400 share the aspect key 0.50"),
        ([[0, 8]], "0x8: height and width must be at least 1 pixel"),
        ([], "at least 1 item"),
    ],
)
def test_custom_resolution_refuses(sizes: list[list[int]], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        CustomResolution.model_validate(sizes)


def test_importing_buckets_needs_no_torch() -> None:
    code = "import sys, model.aspect, model.buckets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
