"""Imports packages that only some features need."""

import importlib
from types import ModuleType

from util.errors import UserError


def require(module: str, package: str, purpose: str = "") -> ModuleType:
    """Import ``module``, or say how to install it.

    Args:
        module: the name to import, e.g. ``"cv2"``.
        package: the name to install, e.g. ``"opencv-contrib-python-headless"``.
        purpose: what needs it, e.g. ``"--backbone timm:NAME"``.

    Raises:
        UserError: the package is not installed; the message has the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise  # the package is installed, but one of its requirements is not
        needed = f"{purpose} needs" if purpose else "this needs"
        raise UserError(f"{needed} the package {package}: pip install {package}") from None
