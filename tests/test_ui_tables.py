"""Texts in tables are shown as they are."""

from html.parser import HTMLParser

from mlx_paligemma.ui.tables import html_table

EVIL = ["<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "&amp; \"quoted\" 'too'", "</td></tr></table><b>", "\u202eodd"]


class Reader(HTMLParser):
    """The tags of a page, and the texts in its cells."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.texts.append(data)


def test_a_text_is_shown_as_it_is_whatever_it_holds():
    read = Reader(html_table(EVIL[0], EVIL, [EVIL, EVIL[::-1]]))
    assert {*read.tags} == {"table", "caption", "thead", "tbody", "tr", "th", "td"}
    assert read.texts == [EVIL[0], *EVIL, *EVIL, *EVIL[::-1]]


def test_a_table_without_rows_has_its_head():
    read = Reader(html_table("Objects", ["a", "b"], []))
    assert (read.texts, read.tags.count("th"), read.tags.count("td")) == (["Objects", "a", "b"], 2, 0)


def test_numbers_become_texts():
    assert Reader(html_table("", [], [[1, 0.5, ""]])).texts == ["1", "0.5"]
