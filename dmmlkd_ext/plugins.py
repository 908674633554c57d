"""Python code of the user that registers datasets, imported by the name that a configuration gives it."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path

_SUFFIX = ".py"
_NEEDED = "module must be a Python file or an importable module"


def import_modules(*modules: str) -> None:
    """Import code of the user; a second time does nothing.

    Args:
        modules: Python files, such as `robots.py`, or dotted names of modules that can be imported.

    Raises:
        ValueError: there is no such file or module, or its own code fails; the message names its error.

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


def module_version(module: str) -> str:
    """Return a hash of the file's content, so that a changed loader is another run; empty where there is no file.

    Example:
        >>> module_version("dmmlkd_ext.data")
        ''
    """
    if not module.endswith(_SUFFIX) or not Path(module).is_file():
        return ""
    return hashlib.sha256(Path(module).read_bytes()).hexdigest()


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
