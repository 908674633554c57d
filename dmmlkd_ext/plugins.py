"""Python code of the user that registers datasets, imported by the name that a configuration gives it."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path

_SUFFIX = ".py"
_NEEDED = "module must be a Python file or an importable module"


def import_datasets(module: str | None) -> None:
    """Import what registers a user's datasets; a second time does nothing.

    Args:
        module: a Python file, such as `robots.py`, or the dotted name of a module that can be imported; None is none.

    Raises:
        ValueError: there is no such file or module, or its own code fails; the message names its error.

    Example:
        >>> import_datasets("robots.py")
        Traceback (most recent call last):
        ...
        ValueError: module must be a Python file or an importable module, got 'robots.py': no such file
    """
    if module is None:
        return
    path = Path(module).resolve()
    if module.endswith(_SUFFIX) and not path.is_file():
        raise ValueError(f"{_NEEDED}, got {module!r}: no such file")
    try:
        _import_file(path) if module.endswith(_SUFFIX) else importlib.import_module(module)
    except Exception as error:  # the user's code may raise anything
        raise ValueError(f"{_NEEDED}, got {module!r}: {type(error).__name__}: {error}") from error


def module_version(module: str | None) -> str:
    """Return a hash of the file's content, so that a changed loader is another run; empty where there is no file.

    Example:
        >>> module_version(None)
        ''
    """
    if module is None or not module.endswith(_SUFFIX) or not Path(module).is_file():
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
