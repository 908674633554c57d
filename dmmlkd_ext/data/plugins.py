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
        ValueError: there is no such file or module.

    Example:
        >>> import_datasets("robots.py")
        Traceback (most recent call last):
        ...
        ValueError: module must be a Python file or an importable module, got 'robots.py': no such file
    """
    if module is None:
        return
    if not module.endswith(_SUFFIX):
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not (module + ".").startswith(error.name + "."):
                raise  # the module is there; what it imports is not
            raise ValueError(f"{_NEEDED}, got {module!r}: {error}") from error
        return
    path = Path(module).resolve()
    if not path.is_file():
        raise ValueError(f"{_NEEDED}, got {module!r}: no such file")
    _import_file(path)


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
