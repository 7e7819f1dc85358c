"""Text of captions and prompts: the DeepFloyd-IF cleaning that Open-Sora 1.1 applies, twice, and what precedes it.

A network hears prompts as it heard captions, so both go through `clean_caption`.
"""

from __future__ import annotations

import html
import re
import warnings
from functools import lru_cache
from urllib.parse import unquote_plus

import ftfy
from bs4 import BeautifulSoup, UnusualUsageWarning
from bs4.exceptions import ParserRejectedMarkup

MAX_CHARACTERS = 5000

_DOMAIN = r"[a-zA-Z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
_FILE_TYPES = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
_DASHES = (
    "\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0"
    "\ufe31\ufe32\ufe58\ufe63\uff0d"
)
_CJK_BLOCKS = "\u31c0-\u31ef\u31f0-\u31ff\u3200-\u32ff\u3300-\u33ff\u3400-\u4dbf\u4dc0-\u4dff\u4e00-\u9fff"

Rules = tuple[tuple[re.Pattern[str], str], ...]


def _rules(*pairs: tuple[str, str]) -> Rules:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in pairs)


# The order of all rules is part of the specification: captions cleaned otherwise give other tokens.
_ADDRESSES = _rules(
    (r"<person>", "person"),
    (rf"\b(?:https?:(?:/{{1,3}}|[a-zA-Z0-9%])|{_DOMAIN})", ""),
    (rf"\b(?:www:(?:/{{1,3}}|[a-zA-Z0-9%])|{_DOMAIN})", ""),
)
_CHARACTERS = _rules(
    (r"@[\w\d]+\b", ""),  # @nickname
    (rf"[{_CJK_BLOCKS}]+", ""),
    (rf"[{_DASHES}]+", "-"),
    (r"[`´«»“”¨]", '"'),
    (r"[‘’]", "'"),
    (r"&quot;?", ""),
    (r"&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),  # IPv4
    (r"\d:\d\d\s+$", ""),
    (r"\\n", " "),  # the two characters, not a line break
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"\S+\.(?:{_FILE_TYPES})", ""),
    (r"[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~)(\]\[}{|\\/*]+", " "),
    (r"\s+\.\s+", " "),
)
_JOINTS = re.compile(r"[-_]")
_MAX_JOINTS = 3
_WORDS = _rules(
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),  # jc6640
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),  # jc6640vc
    (r"\b\d+[a-zA-Z]+\d+\b", ""),  # 6640vc231
    (r"(worldwide\s+)?(free\s+)?shipping", ""),
    (r"(free\s)?download(\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{_FILE_TYPES})(\simage[s]?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),  # j2d1a2a
    (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),  # 1920x1080
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),  # a fully quoted text
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)

_PREFIXES = (
    *(f"the video {verb}" for verb in ("shows", "captures", "features", "depicts", "presents", "is")),
    "in the video,",
    *(f"the image {verb}" for verb in ("shows", "captures", "features", "depicts", "presents", "is", "portrays")),
    "in the image,",
)
CAMERA_SENTENCES = {
    "static": "The camera is static.",
    "zoom in": "The camera is zooming in.",
    "zoom out": "The camera is zooming out.",
    "pan left": "The camera is panning left.",
    "pan right": "The camera is panning right.",
    "tilt up": "The camera is tilting up.",
    "tilt down": "The camera is tilting down.",
    "pan/tilt": "The camera is panning.",
    "dynamic": "The camera is moving.",
}
"""Values of the column `camera_motion` and what is said of them; nothing is said of "unknown"."""


def clean_caption(text: str) -> str:
    """Clean a caption or a prompt as Open-Sora 1.1 does: one pass applied twice; may leave an empty string.

    Of a longer text only the first `MAX_CHARACTERS` are read: a network hears a few hundred tokens, and some of the
    patterns take quadratic time.
    """
    return _clean(text[:MAX_CHARACTERS].encode(errors="replace").decode())


@lru_cache(maxsize=256)  # the shots of a file often share their caption
def _clean(text: str) -> str:
    return _clean_once(_clean_once(text))


def without_prefix(text: str) -> str:
    """A model's caption without "The video shows" and its like, the first that fits; begins with a capital."""
    text = text.strip()
    start = text.lower()
    for prefix in _PREFIXES:
        if start.startswith(prefix) and not start[len(prefix) : len(prefix) + 1].isalnum():
            rest = text[len(prefix) :].lstrip(" ,:")
            return rest[:1].upper() + rest[1:]
    return text


def with_camera_sentence(text: str, motion: str | None) -> str:
    """A caption followed by what the camera does, where that is known."""
    sentence = CAMERA_SENTENCES.get(motion or "")
    if sentence is None:
        return text
    text = text.rstrip()
    return f"{text}{'' if text.endswith(('.', '!', '?')) else '.'} {sentence}"


def _clean_once(text: str) -> str:
    text = unquote_plus(text).strip().lower()
    text = _without_tags(_apply(_ADDRESSES, text))
    text = _apply(_CHARACTERS, text)
    if len(_JOINTS.findall(text)) > _MAX_JOINTS:
        text = _JOINTS.sub(" ", text)
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return _apply(_WORDS, text).strip()


def _apply(rules: Rules, text: str) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


def _without_tags(text: str) -> str:
    if "<" not in text and "&" not in text:  # nothing that a parser would touch
        return text
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnusualUsageWarning)  # a caption may look like a file name
        try:
            return str(BeautifulSoup(text, features="html.parser").text)
        except ParserRejectedMarkup:  # "<![" and its like: not HTML, so nothing to strip
            return text
