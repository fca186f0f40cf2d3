"""The parser of all commands. A command is a file in `commands/`, or a plug-in's; its name is the file's."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from sparsity_core.cli import commands
from sparsity_core.record import PROGRAM
from sparsity_core.work import with_plugins


class Parser(argparse.ArgumentParser):
    """A wrong argument is bad input like any other."""

    def error(self, message: str) -> NoReturn:
        usage = " ".join(self.format_usage().split())
        raise ValueError(f"{message}. {usage[0].upper()}{usage[1:]}")


def make_parser() -> Parser:
    described = "Run a decoder model through pruning methods and record what each one throws away."
    called = Path(sys.argv[0]).stem
    parser = Parser(prog=PROGRAM if called == PROGRAM else "python -m sparsity_core", description=described)
    below = parser.add_subparsers(required=True, metavar="command")
    for name, module in find_commands().items():
        text = (module.__doc__ or "").strip().splitlines()[0]
        command = below.add_parser(name, help=text, description=text)
        command.set_defaults(command=module.answer)
        module.options(command)
    return parser


def find_commands() -> dict[str, ModuleType]:
    """Every command by its name. Raises ValueError for a plug-in of a name that is taken."""
    own = [
        importlib.import_module(f"{commands.__name__}.{found.name}")
        for found in pkgutil.iter_modules(commands.__path__)
    ]
    return with_plugins("commands", own)
