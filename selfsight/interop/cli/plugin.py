"""The plug-in that the entry point `selfsight.plugins` names; see `selfsight.cli.files`."""

from selfsight.interop.cli.commands import add_to as register
from selfsight.interop.cli.converted_file import open_file

__all__ = ["open_file", "register"]
