"""Named resolutions and their aspect-ratio tables, as Open-Sora 1.1 lists them.

An aspect key is the nominal height / width as a decimal string; its value is the (height, width) in pixels that
every batch of that bucket is cropped to. The tables are numbers, not a formula: several released entries differ
from the rule that made the others (144p, 240p at 0.67, 480p at 0.48 and 1.33), and weights were trained on those.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

Size = tuple[int, int]
"""(height, width) in pixels."""


@dataclass(frozen=True)
class Resolution:
    """One named resolution.

    Attributes:
        name: What bucket tables call it, e.g. "480p".
        num_pixels: Nominal height * width; a clip qualifies from 80 % of it.
        sizes: Aspect key -> (height, width), in the order that decides ties.
    """

    name: str
    num_pixels: int
    sizes: Mapping[str, Size]


class CustomResolution(BaseModel):
    """A resolution that a configuration adds: its sizes, and the pixel count a clip is measured against."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sizes: tuple[Size, ...] = Field(min_length=1, description="(height, width) in pixels of every aspect ratio.")
    num_pixels: int | None = Field(
        default=None, gt=0, description="Nominal height * width; without it, that of the squarest size."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        return value if isinstance(value, Mapping | BaseModel) else {"sizes": value}

    @model_validator(mode="after")
    def _check_sizes(self) -> "CustomResolution":
        keys: dict[str, Size] = {}
        for size in self.sizes:
            if min(size) < 1:
                raise ValueError(f"size {size[0]}x{size[1]}: height and width must be at least 1 pixel")
            twin = keys.setdefault(aspect_key(*size), size)
            if twin is not size:
                raise ValueError(
                    f"sizes {twin[0]}x{twin[1]} and {size[0]}x{size[1]} share the aspect key "
                    f"{aspect_key(*size)} (height / width); keep one of them"
                )
        return self

    def resolve(self, name: str) -> Resolution:
        """The resolution under `name`, its aspect keys ordered as the sizes were given."""
        squarest = min(self.sizes, key=lambda size: max(size) / min(size))
        return Resolution(
            name=name,
            num_pixels=self.num_pixels or squarest[0] * squarest[1],
            sizes=MappingProxyType({aspect_key(*size): size for size in self.sizes}),
        )


def aspect_key(height: int, width: int) -> str:
    """Aspect key of a custom size: height / width with two decimals."""
    return f"{height / width:.2f}"


def nearest_aspect(resolution: str | Resolution, height: int, width: int) -> str:
    """Aspect key whose number is closest to height / width; ties go to the first key in table order.

    Args:
        resolution: A name of `RESOLUTIONS`, or any resolution.
        height: Of the clip, after rotation.
        width: Of the clip, after rotation.

    Raises:
        ValueError: Unknown name, or a height or width below 1.
    """
    if height < 1 or width < 1:
        raise ValueError(f"clip size {height}x{width}: height and width must be at least 1 pixel")
    sizes = (named_resolution(resolution) if isinstance(resolution, str) else resolution).sizes
    ratio = height / width
    return min(sizes, key=lambda key: abs(float(key) - ratio))


def named_resolution(name: str) -> Resolution:
    """The built-in resolution `name`; a ValueError that lists the allowed names otherwise."""
    if name not in RESOLUTIONS:
        raise ValueError(f'unknown resolution "{name}"; allowed: {", ".join(RESOLUTIONS)}')
    return RESOLUTIONS[name]


def _size(text: str) -> Size:
    height, width = text.split("x")
    return int(height), int(width)


def _video_resolutions() -> dict[str, Resolution]:
    header, *rows = _VIDEO_TABLE.strip().splitlines()
    cells = [row.split() for row in rows]
    tables = {
        name: {row[0]: _size(row[column]) for row in cells} for column, name in enumerate(header.split()[1:], start=1)
    }
    # Released order: in the 4k table 0.62 stands before 0.56 and so wins their tie.
    keys = list(tables["4k"])
    swapped = keys.index("0.56")
    keys[swapped], keys[swapped + 1] = keys[swapped + 1], keys[swapped]
    tables["4k"] = {key: tables["4k"][key] for key in keys}
    return {name: Resolution(name, _NUM_PIXELS[name], MappingProxyType(sizes)) for name, sizes in tables.items()}


def _square_resolutions() -> dict[str, Resolution]:
    entries = [entry.split(":") for entry in _SQUARE_TABLE.split()]
    sizes_1024 = {key: _size(text) for key, text in entries}
    return {
        name: Resolution(
            name,
            _NUM_PIXELS[name],
            MappingProxyType({key: (h // divisor, w // divisor) for key, (h, w) in sizes_1024.items()}),
        )
        for name, divisor in (("256", 4), ("512", 2), ("1024", 1))
    }


_NUM_PIXELS = {
    "144p": 36864,
    "256": 65536,
    "240p": 102240,
    "360p": 230400,
    "512": 262144,
    "480p": 409920,
    "720p": 921600,
    "1024": 1048576,
    "1080p": 2073600,
    "4k": 8294400,
}

# Height x width per aspect key (height / width).
_VIDEO_TABLE = """
key      144p      240p      360p      480p      720p     1080p        4k
0.38   117x312   196x522   294x784  392x1046  588x1568  882x2352 1764x4704
0.43   125x291   210x490   314x732   420x980  628x1466  942x2198 1886x4400
0.48   133x277   222x462   332x692   444x925  666x1388  998x2080 1996x4158
0.50   135x270   226x452   340x680   452x904  678x1356 1018x2036 2036x4072
0.53   139x262   232x438   350x662   466x880  698x1318 1048x1980 2096x3960
0.54   141x260   236x436   352x652   470x870  706x1306 1058x1958 2118x3918
0.56   144x256   240x426   360x640   480x854  720x1280 1080x1920 2160x3840
0.62   151x241   252x404   380x608   506x810  758x1212 1138x1820 2276x3642
0.67   156x234   262x393   392x588   522x784  784x1176 1176x1764 2352x3528
0.75   166x221   276x368   416x554   554x738  832x1110 1248x1664 2494x3326
1.00   192x192   320x320   480x480   640x640   960x960 1440x1440 2880x2880
1.33   221x165   370x278   554x416   740x555  1108x832 1662x1246 3326x2494
1.50   235x156   392x262   588x392   784x522  1176x784 1764x1176 3528x2352
1.78   256x144   426x240   640x360   854x480  1280x720 1920x1080 3840x2160
1.89   263x139   440x232   660x350   880x466  1320x698 1980x1048 3958x2096
2.00   271x135   452x226   678x340   906x454  1358x680 2036x1018 4072x2036
2.08   277x132   462x222   692x332   924x444  1386x666  2078x998 4156x1994
"""

# PixArt-alpha's table at 1024; 512 has half of every number and 256 a quarter, exactly.
_SQUARE_TABLE = """
0.25:512x2048  0.26:512x1984  0.27:512x1920  0.28:512x1856  0.32:576x1792
0.33:576x1728  0.35:576x1664  0.4:640x1600  0.42:640x1536  0.48:704x1472
0.5:704x1408  0.52:704x1344  0.57:768x1344  0.6:768x1280  0.68:832x1216
0.72:832x1152  0.78:896x1152  0.82:896x1088  0.88:960x1088  0.94:960x1024
1.0:1024x1024  1.07:1024x960  1.13:1088x960  1.21:1088x896  1.29:1152x896
1.38:1152x832  1.46:1216x832  1.67:1280x768  1.75:1344x768  2.0:1408x704
2.09:1472x704  2.4:1536x640  2.5:1600x640  2.89:1664x576  3.0:1728x576
3.11:1792x576  3.62:1856x512  3.75:1920x512  3.88:1984x512  4.0:2048x512
"""

_TABLES = _video_resolutions() | _square_resolutions()

RESOLUTIONS: Mapping[str, Resolution] = MappingProxyType({name: _TABLES[name] for name in _NUM_PIXELS})
"""Every built-in resolution, by ascending pixel count."""
