"""The house: rooms in the order of the data, no circles, and files that say truly what they offer."""

import ast
import graphlib
import importlib
from pathlib import Path

import pytest

import jaxsep

PACKAGE = Path(__file__).resolve().parents[1] / "jaxsep"

#: Files and folders of the package, each of which imports from itself and from those before it alone.
ROOMS = """
    files checks progress decoding audio metrics numerics signal tones pursuit blasso learning notes search
    neural separation results report cli __main__
""".split()  # noqa: SIM905

#: Which imports from later rooms all the same, in its functions: a result shows, writes and reads itself.
RESULT = "jaxsep.separation.result"
LATER = {(RESULT, "results"), (RESULT, "report")}


def parsed(package):
    """Syntax trees of a package's modules by their full names, but not of its own `__init__`."""
    files = sorted(package.rglob("*.py"))
    names = [".".join(path.relative_to(package.parent).with_suffix("").parts) for path in files]
    trees = {
        name.removesuffix(".__init__"): path.read_text() for name, path in zip(names, files, strict=True)
    }
    return {name: ast.parse(text) for name, text in trees.items() if name != package.name}


def everywhere(tree, *, functions=True):
    """All nodes of a tree, or those outside its functions."""
    for node in ast.iter_child_nodes(tree):
        yield node
        if functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from everywhere(node, functions=functions)


def imports(trees, *, functions=True):
    """For each module, the modules of the package that it imports anywhere, with the names it takes."""
    found = {module: {} for module in trees}
    for module, tree in trees.items():
        for node in everywhere(tree, functions=functions):
            if isinstance(node, ast.Import):
                taken = [(alias.name, None) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    base = ".".join([*module.split(".")[: -node.level], *([base] if base else [])])
                taken = [(base, alias.name) for alias in node.names]
            else:
                continue
            for source, name in taken:
                if f"{source}.{name}" in trees:
                    source, name = f"{source}.{name}", None
                if source in trees:
                    found[module].setdefault(source, set()).update({name} - {None})
    return found


def room(module):
    return module.split(".")[1]


def arrows_up(graph, rooms):
    """Pairs of module and room, such that the module imports from a later room."""
    return {
        (module, room(source))
        for module, sources in graph.items()
        for source in sources
        if rooms.index(room(source)) > rooms.index(room(module))
    }


def circle(graph):
    """Modules that import each other in a circle, or None."""
    try:
        graphlib.TopologicalSorter({module: set(sources) for module, sources in graph.items()}).prepare()
    except graphlib.CycleError as error:
        return error.args[1]


def offered(tree):
    """The names in `__all__`, or None without one."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(
            getattr(target, "id", "") == "__all__" for target in node.targets
        ):
            return ast.literal_eval(node.value)


def defined(tree):
    """Names of a module's functions, classes and values."""
    nodes = [node for statement in tree.body for node in ast.walk(statement)]
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)} | {
        node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }


def untruths(trees):
    """What is wrong with each `__all__`: names that do not exist, and those that others take and it lacks."""
    graph, wrong = imports(trees), {}
    for module, tree in trees.items():
        names = set(offered(tree) or ())
        taken = set().union(*(sources.get(module, ()) for sources in graph.values()))
        missing, lacking = names - defined(tree), taken - names
        if missing or lacking or (offered(tree) is None and defined(tree)):
            wrong[module] = (missing, lacking)
    return wrong


def test_every_file_has_a_room():
    assert {room(module) for module in parsed(PACKAGE)} == set(ROOMS)


def test_the_readme_names_the_rooms_in_their_order():
    words = " ".join((PACKAGE.parent / "README.md").read_text().split())
    assert ", ".join(f"`{room}`" for room in ROOMS[:-1]) in words


def test_imports_never_point_back_up_the_stream():
    """But those of a result, which wait until it is asked to show, write or read itself."""
    trees = parsed(PACKAGE)
    assert arrows_up(imports(trees), ROOMS) == LATER
    assert arrows_up(imports(trees, functions=False), ROOMS) == set()


def test_files_do_not_import_each_other_in_a_circle():
    trees = parsed(PACKAGE)
    at_first = imports(trees, functions=False)
    assert circle(imports(trees) | {RESULT: at_first[RESULT]}) is None


def test_no_import_is_by_name():
    """It would escape the test of the arrows."""
    for module, tree in parsed(PACKAGE).items():
        for node in ast.walk(tree):
            names = {getattr(node, field, None) for field in ("attr", "id", "name")}
            assert not names & {"import_module", "__import__"}, module


def test_the_package_is_asked_for_its_version_alone():
    """What is imported through the package would escape the test of the arrows."""
    for module, tree in parsed(PACKAGE).items():
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "jaxsep"
            ):
                assert node.attr == "__version__", module
            if isinstance(node, ast.ImportFrom) and node.module == "jaxsep":
                assert {alias.name for alias in node.names} == {"__version__"}, module


def test_files_say_what_they_offer():
    assert untruths(parsed(PACKAGE)) == {}


def test_the_stub_tells_editors_what_the_package_offers():
    """Each name as its home defines it and offers it, in the order of the rooms."""
    text = (PACKAGE / "__init__.pyi").read_text()
    lines = [node for node in ast.parse(text).body if isinstance(node, ast.ImportFrom)]
    names = [(node.module, alias) for node in lines for alias in node.names]
    assert all(alias.asname == alias.name for _, alias in names)  # as type checkers want re-exports
    assert [alias.name for _, alias in names] + ["__version__"] == jaxsep.__all__
    for module, alias in names:
        value = getattr(importlib.import_module(module), alias.name)
        assert value is getattr(jaxsep, alias.name)
        assert value.__module__ == module, alias.name
    order = [ROOMS.index(room(module)) for module, _ in names]
    assert order == sorted(order)
    assert (PACKAGE / "py.typed").exists()


def tree_of(folder, **files):
    for name, text in files.items():
        path = folder / "house" / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return parsed(folder / "house")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import os", set()),
        ("from house.attic.box import thing", {("house.cellar.jar", "attic")}),
        ("import house.attic.box", {("house.cellar.jar", "attic")}),
        ("from house.attic import box", {("house.cellar.jar", "attic")}),
        ("from ..attic.box import thing", {("house.cellar.jar", "attic")}),
        ("def late():\n    from house.attic.box import thing", {("house.cellar.jar", "attic")}),
        ("if TYPE_CHECKING:\n    from house.attic.box import thing", {("house.cellar.jar", "attic")}),
        ("from house.cellar.shelf import thing", set()),
    ],
)
def test_an_arrow_up_is_found_wherever_it_stands(tmp_path, text, found):
    down = "from house.cellar.shelf import thing"
    trees = tree_of(tmp_path, cellar__jar=text, cellar__shelf="thing = 1", attic__box=down)
    assert arrows_up(imports(trees), ["cellar", "attic"]) == found
    at_first = arrows_up(imports(trees, functions=False), ["cellar", "attic"])
    assert at_first == (set() if "def late" in text else found)


def test_a_circle_is_found(tmp_path):
    trees = tree_of(tmp_path, cellar__a="import house.cellar.b", cellar__b="from house.cellar import c")
    assert circle(imports(trees)) is None
    trees = tree_of(tmp_path, cellar__c="def late():\n    from .a import thing")
    assert set(circle(imports(trees))) == {"house.cellar.a", "house.cellar.b", "house.cellar.c"}


@pytest.mark.parametrize(
    ("text", "missing", "lacking"),
    [
        ("__all__ = ['thing', 'gone']\nthing = 1", {"gone"}, set()),
        ("__all__ = []\ndef thing(): ...", set(), {"thing"}),
        ("class thing: ...", set(), {"thing"}),
    ],
)
def test_an_untrue_list_of_names_is_found(tmp_path, text, missing, lacking):
    trees = tree_of(tmp_path, a=text, b="from house.a import thing")
    assert untruths(trees) == {"house.a": (missing, lacking)}
