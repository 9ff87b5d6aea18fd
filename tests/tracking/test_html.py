"""Texts of a model in TensorBoard's Markdown, seen as a browser sees them: all of it is there, and none of it works."""

import dataclasses
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.plugin_util import markdown_to_safe_html

from destruct.tracking.html import of_continuation, of_samples, safe
from destruct.tracking.sinks import Continuation
from tests.tracking.test_sinks import SAMPLE

OURS = {"table", "thead", "tbody", "tr", "th", "td", "p", "strong", "pre", "hr"}


class Seen(HTMLParser):
    """Elements of a page, and the texts of its `pre`."""

    def __init__(self, page: str):
        super().__init__()
        self.elements: list[str] = []
        self.passages: list[str] = []
        self._inside = False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append(tag)
        self._inside = tag == "pre"
        self.passages += [""] * self._inside

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "pre"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.passages[-1] += data


def seen(markdown: str) -> Seen:
    return Seen(markdown_to_safe_html(markdown))


NASTY = [
    "<script>alert(1)</script>",
    "</pre></td></table><img src=http://example.com/x.png onerror=alert(1)>",
    "![x](http://example.com/x.png) [y](javascript:alert(1)) <http://example.com>",
    "a | b | c\n---|---|---\n1 | 2 | 3",
    "```py\nx = `1`\n```\n\n~~~\ny\n~~~",
    "# heading\n\n* item\n\n> quote\n\n    code\n\n***\n",
    "&lt;b&gt; &amp; &#60;i&#62; \\< \\` \\",
    "\x02wzxhzdk:0\x03 \x02amp\x03",
    "[a]: http://example.com\n\n*[HTML]: x\n",
    "über 漢字 🙂\n\n\n   indented  ",
]


@pytest.mark.parametrize("text", NASTY)
def test_a_text_is_shown_as_it_is_and_adds_no_element(text):
    page = seen(of_samples([dataclasses.replace(SAMPLE, prompt=text, response=text, continuation=text)]))
    plain = seen(of_samples([SAMPLE]))
    assert page.elements == plain.elements and set(page.elements) <= OURS
    shown = text.replace("\x02", "\u2402").replace("\x03", "\u2403")
    assert page.passages == [shown] * 3


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=80))
def test_any_text_at_all(text):
    page = seen(of_continuation(Continuation("any", "p", text)))
    assert page.elements == ["p", "strong", "pre", "p", "strong", "pre"]
    assert page.passages[1].removeprefix("\u200b") == "".join(_pictured(character) for character in text)


def _pictured(character: str) -> str:
    number = ord(character)
    if character in "\n\t" or 0x20 <= number < 0x7F or number >= 0xA0:
        return character
    return chr(0x2400 + min(number, 0x21))


def test_a_name_of_a_reward_term_is_a_text_too():
    page = markdown_to_safe_html(of_samples([dataclasses.replace(SAMPLE, terms={"mine:a<b|*c*": 1.0})]))
    assert "a&#60;b&#124;&#42;c&#42;" in page


def test_a_line_break_that_a_text_begins_with_stays():
    """HTML drops the first one inside `pre`."""
    assert "<pre>&#8203;\nx</pre>" in of_continuation(Continuation("any", "\nx", "y"))
    assert safe("a\n\tb") == "a\n&#9;b"
