"""Caption cleaning: the specification's examples, and text nobody expects."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.caption import clean_caption, with_camera_sentence, without_prefix

EXAMPLES = [
    ("A Car driving on the OCEAN.", "a car driving on the ocean."),
    (
        "[Wide-shot] a state-of-the-art, well-known red-car (2023) | 4K!",
        "wide shot a state of the art, well known red car 2023 4k!",
    ),
    ("Visit https://example.com/a?b=1 or www.foo.org now! #123 photo.jpg", "visit ?b=1 or now!"),
    (
        'The   cat\'s "big" day... 1920x1080, 24fps & free download',
        'the cat\'s "big" day , 24fps',
    ),
    ("first frame:a dog.then a cat", "first frame:a dog. then a cat"),
    ("你好 world — “quoted” text’s", 'world - "quoted" text\'s'),
    ("a b2c d3e4f IMG1234 12345678", "a"),
    ("hello.world,foo", "hello. world, foo"),
    ("'quoted caption'", "quoted caption"),
]

RULES = [
    ("a%20dog+runs", "a dog runs"),
    ("<person> waves", "person waves"),
    ("<b>bold</b> move", "bold move"),
    ("by @somebody today", "by today"),
    ("at 192.168.0.1 home", "at home"),
    ("ends at 1:23 ", "ends at 1:23"),
    ("two\\nlines", "two lines"),
    ("number #12345 and 123456", "number and"),
    ("***SOLD OUT***", "sold out"),
    ("dogs &amp; cats", "dogs cats"),
    ("free worldwide shipping", "free"),
    ("click for more cats", "cats"),
    ("page 12 of png images", "of"),
    ("a : b", "a: b"),
    (".hidden", ""),
    ("", ""),
    ("   ", ""),
    ("a red circle moves left on a white background", "a red circle moves left on a white background"),
]


@pytest.mark.parametrize(("text", "cleaned"), EXAMPLES)
def test_examples_of_the_specification(text: str, cleaned: str) -> None:
    assert clean_caption(text) == cleaned


@pytest.mark.parametrize(("text", "cleaned"), RULES)
def test_rules(text: str, cleaned: str) -> None:
    assert clean_caption(text) == cleaned


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from("<>&![]-'\"#@.:/ \\"))))
def test_any_text_is_cleaned_without_a_fault(text: str) -> None:
    cleaned = clean_caption(text)
    assert cleaned == cleaned.strip()
    assert not any("\u4e00" <= character <= "\u9fff" for character in cleaned)


@pytest.mark.timeout(20)
def test_a_hostile_caption_takes_no_time_to_speak_of() -> None:
    for piece in ("-a1", " ", "1:2", "a.", "<", "<![", "&amp;", "a1b"):
        clean_caption(piece * 1_000_000)


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("The video shows a dog.", "A dog."),
        ("the VIDEO captures: two cats", "Two cats"),
        ("In the video, a man runs.", "A man runs."),
        ("The image portrays a lake", "A lake"),
        ("The video portrays a lake", "The video portrays a lake"),
        ("The video isolates a dog", "The video isolates a dog"),
        ("A video shows a dog", "A video shows a dog"),
        ("The video is The video shows x", "The video shows x"),
        ("The video shows", ""),
    ],
)
def test_a_models_opening_words_go_once(text: str, rest: str) -> None:
    assert without_prefix(text) == rest


def test_the_camera_comes_last() -> None:
    assert with_camera_sentence("A dog runs", "zoom in") == "A dog runs. The camera is zooming in."
    assert with_camera_sentence("A dog!", "pan/tilt") == "A dog! The camera is panning."
    assert with_camera_sentence("A dog.", "unknown") == with_camera_sentence("A dog.", None) == "A dog."
