"""Python code of the user, imported by the names in a configuration.

Such code registers what a configuration names, such as a dataset. The hash of a run's inputs covers the source of every
module that it imports, except those of this package, whose version is hashed separately, of Python and of installed
packages.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

_SUFFIX = ".py"
_NEEDED = "module must be a Python file or an importable module"
_INSTALLED = ("stdlib", "platstdlib", "purelib", "platlib")

_imported: dict[str, str] = {}
"""Name of a module -> hash of its sources when this process imported it."""


def import_modules(*modules: str) -> None:
    """Import the user's code; a second call does nothing.

    Args:
        modules: Python files, such as `robots.py`, or dotted names of modules that can be imported.

    Raises:
        ValueError: there is no such file or module, its code fails, or it was changed since this process imported it.

    Example:
        >>> import_modules("robots.py")
        Traceback (most recent call last):
        ...
        ValueError: module must be a Python file or an importable module, got 'robots.py': no such file
    """
    for module in modules:
        _import(module)


def _import(module: str) -> None:
    path = Path(module).resolve()
    if module.endswith(_SUFFIX) and not path.is_file():
        raise ValueError(f"{_NEEDED}, got {module!r}: no such file")
    try:
        _import_file(path) if module.endswith(_SUFFIX) else importlib.import_module(module)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise ValueError(f"{_NEEDED}, got {module!r}: {type(error).__name__}: {error}") from error
    version = hash_sources(module)
    if _imported.setdefault(module, version) != version:
        raise ValueError(f"module {module!r}, or one that it imports, was changed since this process imported it")


def hash_sources(*modules: str) -> str:
    """Return a SHA-256 of the sources of modules and of their imports; empty if there is no source.

    Example:
        >>> hash_sources()
        ''
    """
    found: dict[str, Path] = {}
    for module in modules:
        found.update(find_sources(module))
    if not found:
        return ""
    total = hashlib.sha256()
    for name, path in sorted(found.items()):
        total.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def find_sources(module: str) -> dict[str, Path]:
    """Return the Python files of a user's module and of its imports, also those within functions, by name."""
    found: dict[str, Path] = {}
    top = module.partition(".")[0]
    named = {module: Path(module)} if module.endswith(_SUFFIX) else {name: _locate(name) for name in _parents(module)}
    waiting = list(named.items())
    while waiting:
        name, path = waiting.pop()
        if name in found or path is None or not path.is_file():
            continue
        found[name] = path
        for wanted in _imports(name, path):
            first = wanted.partition(".")[0]
            # The modules of an installed package are installed too; locating one would import the package.
            if first == top or not _is_installed(_locate(first)):
                waiting += [(parent, _locate(parent)) for parent in _parents(wanted)]
    return found


def _parents(name: str) -> list[str]:
    """Return a module's packages and the module: `a`, `a.b`, `a.b.c`."""
    words = name.split(".")
    return [".".join(words[: count + 1]) for count in range(len(words))]


def _imports(name: str, path: Path) -> Iterator[str]:
    """Yield the absolute names that a source imports, which may be modules."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return  # importing it will report the error
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) + 1 - node.level]
                origin = ".".join([*above, origin] if origin else above)
            if origin:
                yield origin
                yield from (f"{origin}.{alias.name}" for alias in node.names if alias.name != "*")


def _locate(name: str) -> Path | None:
    """Return the file of a module, or the folder of a package without one; None if there is neither."""
    try:
        spec = importlib.util.find_spec(name)
    except (Exception, SystemExit):  # finding a submodule imports its package, whose code may raise anything
        return None
    if spec is None:
        return None
    places = [spec.origin or "", *(spec.submodule_search_locations or ())]
    return next((Path(place) for place in places if place and Path(place).exists()), None)


@functools.cache
def _installed_folders() -> tuple[Path, ...]:
    here = Path(__file__).resolve().parent
    return (here, *(Path(sysconfig.get_path(kind)).resolve() for kind in _INSTALLED))


def _is_installed(path: Path | None) -> bool:
    """Return whether a file belongs to Python, to this package or to an installed one; True for None."""
    return path is None or any(path.resolve().is_relative_to(folder) for folder in _installed_folders())


def _import_file(path: Path) -> None:
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
