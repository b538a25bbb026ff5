"""The command line: every command, in the order in which `assay --help` lists them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer
from typer.core import TyperCommand

from assay import __version__
from assay.commands.ablate import ablate
from assay.commands.audit import audit
from assay.commands.backbones import backbones
from assay.commands.compare import compare
from assay.commands.demo import demo
from assay.commands.ensemble import ensemble
from assay.commands.evaluate import evaluate
from assay.commands.explain import explain
from assay.commands.export import export
from assay.commands.ledger import ledger
from assay.commands.lr_find import lr_find
from assay.commands.output import require_home
from assay.commands.plan import plan
from assay.commands.predict import predict
from assay.commands.recipes import recipes, schema
from assay.commands.report import report
from assay.commands.review import review
from assay.commands.serve import serve
from assay.commands.shard import shard
from assay.commands.submissions import submissions
from assay.commands.sweep import sweep
from assay.commands.train import train
from assay.postponed import postpone
from assay.progress import is_main_process

COMMANDS = (
    train,
    audit,
    plan,
    lr_find,
    predict,
    serve,
    submissions,
    evaluate,
    report,
    explain,
    ensemble,
    review,
    ledger,
    ablate,
    compare,
    sweep,
    export,
    shard,
    recipes,
    backbones,
    schema,
    demo,
)

USAGE_ERROR: type[Exception] = typer.BadParameter.mro()[1]  # for an unknown option too; typer has no name for it


class PathCommand(TyperCommand):
    """A command that refuses an empty path, which as a `Path` would be the working folder."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given, _, _ = self.make_parser(ctx).parse_args(list(args))
        for parameter in list[Any](self.params):
            value = given.get(parameter.name)
            if "" in (value if isinstance(value, list | tuple) else [value]) and self._is_path(parameter.name):
                raise typer.BadParameter("the path is empty. Name one, or . for the working folder.", ctx, parameter)
        return super().parse_args(ctx, args)

    def _is_path(self, name: str) -> bool:
        hint = get_type_hints(self.callback)[name]
        return Path in (hint, *get_args(hint))


app = typer.Typer(
    name="assay",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # drawing the frames of rich's help takes longer than all the rest of it
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in COMMANDS:
    app.command(cls=PathCommand)(_command)


def main() -> None:
    """The command `assay`."""
    postpone()
    _open_streams()
    require_home()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a file name need not be text that can be printed
    if is_main_process():
        app()
    # Of several processes the first has the same command line, and says what is wrong with it.
    try:
        sys.exit(app(standalone_mode=False))
    except USAGE_ERROR:
        sys.exit(2)


def _open_streams() -> None:
    """Open the standard streams that were closed (`>&-`): else the next file would take their number."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(descriptor, "r" if name == "stdin" else "w", encoding="utf-8"))


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"assay {__version__}")
        raise typer.Exit


@app.callback()
def _assay(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Image classifiers from images whose labels cannot be fully trusted."""
