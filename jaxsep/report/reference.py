"""The reference as pages, by pdoc of the extra `docs`: `python -m jaxsep.report.reference FOLDER`."""

import sys
import types
from pathlib import Path

from jaxsep.files import replacing

__all__ = ["PAGES", "build", "main"]

_SOURCES = Path(__file__).parent / "pages"

#: The pages beside the reference itself, in the order of the index; their text is `pages/NAME.md`.
PAGES = {
    "choosing": "How to choose",
    "questions": "Questions",
    "mathematics": "The mathematics",
    "composing": "Composing",
}


def build(folder: Path) -> list[Path]:
    """Writes all pages into a folder, and returns them, the index first.

    `jaxsep.html` has every public name, in the order of the data.

    Raises: `ModuleNotFoundError` without pdoc.
    """
    import pdoc.doc
    import pdoc.render

    pdoc.render.configure(docformat="google", show_source=False, template_directory=_SOURCES)
    modules = {name: pdoc.doc.Module(_page(name)) for name in PAGES}
    modules["jaxsep"] = package = pdoc.doc.Module.from_name("jaxsep")
    for name in package.obj.__all__:  # imported when first asked for
        getattr(package.obj, name)
    index = pdoc.doc.Module(types.ModuleType("index", _index()))
    pages = {"index": index, **modules}
    folder.mkdir(parents=True, exist_ok=True)
    texts = {f"{name}.html": pdoc.render.html_module(page, pages) for name, page in pages.items()}
    texts["search.js"] = pdoc.render.search_index(pages)
    for name, text in texts.items():
        with replacing(folder / name) as path:
            path.write_text(text, encoding="utf-8")
    return [folder / name for name in texts if name.endswith(".html")]


def _page(name):
    """A page as a module without names, whose docstring it is."""
    text = (_SOURCES / f"{name}.md").read_text(encoding="utf-8")
    return types.ModuleType(name, f"# {PAGES[name]}\n\n{text}")


def _index():
    lines = [f"- [{title}]({name}.html)" for name, title in PAGES.items()]
    about = "Blind separation of the instruments in a music recording, as differentiable JAX modules."
    return "\n".join(["# jaxsep", "", about, "", *lines, "- [All public names](jaxsep.html)"])


def main() -> None:
    """Builds the pages in the folder that is named."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m jaxsep.report.reference FOLDER")
    try:
        print(f"Written: {build(Path(sys.argv[1]))[0]}")
    except ModuleNotFoundError as error:
        raise SystemExit(f'pdoc is not installed: pip install "jaxsep[docs]" ({error})') from None


if __name__ == "__main__":
    main()
