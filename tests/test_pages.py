"""The reference as pages: every public name is there, and every link within leads somewhere."""

import re
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest

import jaxsep
from jaxsep.report import reference


class Page(HTMLParser):
    """Anchors, links and visible text of a page."""

    def __init__(self, text):
        super().__init__()
        self.anchors, self.links, self.words = set(), set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.anchors |= {values[name] for name in ("id", "name") if values.get(name)}
        self.links |= {values[name] for name in ("href", "src") if values.get(name)}

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    pytest.importorskip("pdoc")
    folder = tmp_path_factory.mktemp("pages")
    return {path.name: Page(path.read_text("utf-8")) for path in reference.build(folder)}


def broken(pages):
    """Links within the pages that lead nowhere."""
    wrong = set()
    for name, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = re.sub(r"^\./", "", parts.path) or name
            if target == "search.js":
                continue
            if target not in pages or (
                parts.fragment and unquote(parts.fragment) not in pages[target].anchors
            ):
                wrong.add((name, link))
    return wrong


def test_every_link_leads_somewhere(pages):
    assert broken(pages) == set()
    linked = {urlsplit(link).path for link in pages["index.html"].links}
    assert {f"{name}.html" for name in [*reference.PAGES, "jaxsep"]} <= linked


def test_a_link_that_leads_nowhere_is_found():
    text = '<a id="there" href="#there"></a><a href="a.html#gone"></a><a href="b.html"></a>'
    assert broken({"a.html": Page(text)}) == {("a.html", "a.html#gone"), ("a.html", "b.html")}


def test_every_public_name_has_its_place(pages):
    assert set(jaxsep.__all__) - {"__version__"} <= pages["jaxsep.html"].anchors


@pytest.mark.parametrize("name", reference.PAGES)
def test_names_on_the_pages_exist_and_are_linked(pages, name):
    text = (reference.Path(reference.__file__).parent / "pages" / f"{name}.md").read_text("utf-8")
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    names = set(re.findall(r"`jaxsep\.(\w+)`", prose))
    assert names <= set(jaxsep.__all__)
    links = {urlsplit(link).fragment for link in pages[f"{name}.html"].links}
    assert names <= links
    assert reference.PAGES[name] in "".join(pages[f"{name}.html"].words)


def test_nothing_is_fetched_from_elsewhere(pages):
    """What a page loads by itself is in it or beside it; links that a reader follows may go elsewhere."""
    for page in pages.values():
        loaded = {link for link in page.links if link.endswith((".js", ".css", ".png", ".svg", ".woff2"))}
        assert not {link for link in loaded if urlsplit(link).netloc}


def test_the_command_says_what_it_needs(monkeypatch):
    monkeypatch.setattr("sys.argv", ["reference"])
    with pytest.raises(SystemExit, match="usage: python -m"):
        reference.main()
