"""Pages: nothing that a text or a name holds gets out of its place, and a page stands alone."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import unquote

import pytest
from html_pages import ParsedPage

from hafm_lightning.page.document import Cell, Column, Page, Player, Section, Table, address, render
from hafm_lightning.page.figures import Curve, Interval, Plot, curves, histogram, intervals

HOSTILE = [
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "</style></title></svg><b>",
    "{{ 7 * 7 }}{% raw %}",
    "a & b &lt; c &#60;",
    "<!-- ]]> -->",
    "Ünïcödé 𝄞 \u202e",
]


def full_page(text: str, file: str = "sounds/a.wav") -> Page:
    """A page with ``text`` wherever a page takes one, and ``file`` wherever it takes a path."""
    plot = Plot(text, text, text, [Curve(text, [0.0, 1.0], [1.0, 2.0], [0.5, 1.5], [1.5, 2.5])] * 2, {text: 1.0})
    interval = intervals(text, [Interval(text, text, 1.0, 0.5, 1.5), Interval(text, text, 2.0)])
    assert interval
    inner = Section(
        text,
        (text,),
        notes=(text,),
        warnings=(text,),
        facts={text: text},
        table=Table(
            text, (Column(text, text), Column(text, text, words=True)), ((text, (Cell(text, text, text),) * 2),)
        ),
        players=(Player(text, text, {text: file}),),
        figures=(curves(plot), interval, histogram(text, [0.0, 1.0], [3])),
        pictures={file: text},
    )
    folded = (replace(inner, title=f"open {text}", fold="open"), replace(inner, title=f"closed {text}", fold="closed"))
    return Page(text, (text,), sections=(replace(inner, sections=folded), replace(inner, title=f"second {text}")))


@pytest.fixture(scope="module")
def shape_of_the_page() -> list[tuple[str, list[str]]]:
    """Tags and names of attributes of the page with a harmless text."""
    return [(tag, sorted(attributes)) for tag, attributes in ParsedPage(render(full_page("harmless"))).tags]


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_stay_texts_wherever_they_stand(text: str, shape_of_the_page: list[tuple[str, list[str]]]) -> None:
    page = ParsedPage(render(full_page(text)))
    page.check_whole()
    assert [(tag, sorted(attributes)) for tag, attributes in page.tags] == shape_of_the_page
    assert page.text.count(text) >= 60, "shown as it was written"
    assert text not in page.source or not set(text) & set("<>&\"'")


@pytest.mark.parametrize(
    "name", ["a b.wav", "50% #1?.wav", "quote\"'.wav", "<b>&amp;.wav", "dir/ü.wav", "javascript:alert(1)", "http://x/y"]
)
def test_any_file_name_leads_to_the_file(name: str) -> None:
    page = ParsedPage(render(full_page("text", file=name)))
    page.check_whole()
    addresses = {attributes["src"] for tag in ("audio", "img") for attributes in page.all(tag)}
    assert {unquote(one) for one in addresses} == {name}
    assert not set("#? <>&\"':") & set(addresses.pop())


def test_names_that_are_not_utf8_are_shown_and_found() -> None:
    text = render(full_page("broken \udcff \ud800", file="broken\udcff.wav"))
    page = ParsedPage(text.encode("utf-8").decode("utf-8"))
    page.check_whole()
    assert "broken \\udcff \\ud800" in page.text
    assert {attributes["src"] for attributes in page.all("audio")} == {"broken%FF.wav"}


@pytest.mark.parametrize("path", ["/etc/passwd", "//example.org/a.wav", "\\\\host\\a.wav", "C:\\a.wav", "c:/a.wav"])
def test_absolute_paths_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match="relative"):
        address(path)
    for page in (
        Page("t", sections=(Section("s", players=(Player("p", "", {"vocal": path}),)),)),
        Page("t", sections=(Section("s", pictures={path: "a picture"}),)),
    ):
        with pytest.raises(ValueError, match="relative"):
            render(page)


def test_a_page_fits_a_phone() -> None:
    ParsedPage(render(full_page("text"))).check_narrow()


def test_an_empty_page_is_a_page() -> None:
    for page in (Page(""), Page("t", sections=(Section("s"), Section("t", table=Table("", (), ()))))):
        ParsedPage(render(page)).check_whole()


def test_parts_stand_in_order_and_under_their_headings() -> None:
    inner = Section("inner", ("last",), fold="closed")
    section = Section(
        "outer",
        ("first",),
        ("a note",),
        ("a warning",),
        {"torch": "2.6"},
        Table.of(("split", "clips"), [("train", 7), ("test", 3)]),
        (Player("clip 1", "tokens", {"vocal": "v.wav", "band": "b.wav"}),),
        pictures={"p.png": "a picture"},
        sections=(inner,),
    )
    page = ParsedPage(render(Page("Title", ("about",), sections=(section, Section("other")))))
    order = [
        page.text.index(word) for word in ("about", "first", "a note", "a warning", "2.6", "train", "clip 1", "last")
    ]
    assert order == sorted(order)
    assert [(tag, a.get("id")) for tag, a in page.tags if tag in ("h1", "h2", "h3")] == [
        ("h1", None),
        ("h2", "outer"),
        ("h2", "other"),
    ]
    assert [attributes["href"] for attributes in page.all("a")] == ["#outer", "#other"]
    assert [attributes["aria-label"] for attributes in page.all("audio")] == ["clip 1: vocal", "clip 1: band"]
    assert [attributes["scope"] for attributes in page.all("th")] == ["col", "col", "row", "row"]
    assert page.all("img") == [{"src": "p.png", "alt": "a picture"}]
    assert len(page.all("ul", "warning")) == 1
    assert page.all("details") == [{}]


def test_columns_explain_themselves_once_and_cells_stand_out() -> None:
    cells = (Cell("1.5", "[1, 2]", "few rows", "best"), Cell("long words"))
    table = Table("system", (Column("FAD", "A distance."), Column("reason", words=True)), (("model", cells),))
    page = ParsedPage(render(Page("t", sections=(Section("s", table=table),))))
    assert page.text.count("A distance.") == 1
    assert [a.get("title") for a in page.all("th")] == [None, "A distance.", None, None]
    assert page.all("td") == [{"class": "best", "title": "few rows"}, {"class": "words"}]
    assert "1.5[1, 2]" in page.text
    plain = ParsedPage(render(Page("t", sections=(Section("s", table=Table.of(("a", "b"), [(1, 2)])),))))
    assert not plain.all("details"), "no meanings, no list of them"


def test_a_row_that_does_not_fit_the_columns_is_refused() -> None:
    with pytest.raises(ValueError, match="'b' has 2 cells for 1 columns"):
        Table.of(("name", "value"), [("a", 1), ("b", 1, 2)])
    with pytest.raises(ValueError, match="'a' has 0 cells"):
        Table.of(("name", "value"), [("a",)])


def test_equal_pages_are_equal_bytes() -> None:
    assert render(full_page("text")) == render(full_page("text"))
