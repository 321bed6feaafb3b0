"""The `lorafleet` command: a table of commands, each module loaded only when its command is called.

A command's module offers a function with typer annotations, or a `typer.Typer`, under the table's attribute. Errors
of the platform end the process with one line on stderr; anything else is a bug and shows its traceback.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, NoReturn

import typer
from typer.core import TyperGroup

from lorafleet_contract.exceptions import ContractError
from lorafleet_pipeline.exceptions import PipelineError
from lorafleet_pipeline.stack.environment import loopback_without_proxy
from lorafleet_serving.exceptions import ServingError

_USER_ERRORS = (ContractError, PipelineError, ServingError)


class _Entry(NamedTuple):
    module: str
    help: str
    attribute: str = "command"


COMMANDS = {
    "demo": _Entry("demo", "From a dataset to a promoted adapter that answers over REST."),
    "up": _Entry("up", "Start the embedded stack and wait until it is ready."),
    "down": _Entry("up", "Stop the embedded stack.", "down"),
    "status": _Entry("up", "Show the embedded stack's components.", "status"),
    "validate": _Entry("validate", "Check an adapter's dataset against its expectations."),
    "train": _Entry("train", "Train an adapter from its spec."),
    "evaluate": _Entry("evaluate", "Evaluate a trained adapter against its base, and apply the gate."),
    "register": _Entry("register", "Register an evaluated adapter as a new version."),
    "promote": _Entry("promote", "Move an alias of an adapter to a version."),
    "canary": _Entry("canary", "Have a challenger answer a share of an adapter's requests."),
    "rollback": _Entry("rollback", "Put the previous version of an adapter back."),
    "history": _Entry("history", "Show what was promoted when, and by whom."),
    "adapters": _Entry("adapters", "Show what the registry wants and what the pods serve."),
    "serve": _Entry("serve", "Run one serving pod in the foreground."),
    "controller": _Entry("controller", "Run the registry controller beside a managed MLflow."),
    "webhooks": _Entry("webhooks", "Have a managed MLflow tell the pods of changes by its own webhooks."),
    "bench": _Entry("bench", "Measure, peers and limits in the same run."),
}


class _LazyGroup(TyperGroup):
    """Shows every command from the table, and loads the one that is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, placeholder, rest = super().resolve_command(ctx, args)
        return name, placeholder if name is None else _load(COMMANDS[name]), rest


app = typer.Typer(
    cls=_LazyGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("lorafleet"))
        raise typer.Exit


@app.callback(help="Turns datasets into served LoRA adapters.")
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and end.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options of the command itself; they act through their callbacks."""


def main() -> None:
    """Run the command line."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        # A command that is ended stops what it has started; under nohup, one goes on.
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)
    # Registry, S3 and pods of the stack are on this machine, for this process and those that it starts.
    os.environ.update(loopback_without_proxy(os.environ))
    try:
        app()
    except _USER_ERRORS as error:
        _fail(str(error))
    except OSError as error:
        if error.filename is None:
            raise
        # A full disk, a file of another user: nothing that a traceback would help with.
        _fail(f"{error.filename}: {error.strerror}: mend it, or choose another place")


def _fail(message: str) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    sys.exit(1)


def _end(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


def _load(entry: _Entry) -> Any:
    module = importlib.import_module(f"lorafleet_cli.{entry.module}")
    target = getattr(module, entry.attribute)
    if not isinstance(target, typer.Typer):
        function, target = target, typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        target.command(help=function.__doc__ or entry.help)(function)
    return typer.main.get_command(target)


def _placeholder() -> Callable[[], None]:
    def placeholder() -> None:
        raise AssertionError("a placeholder is replaced by the loaded command")

    return placeholder


for _name, _entry in COMMANDS.items():
    app.command(_name, help=_entry.help)(_placeholder())


if __name__ == "__main__":
    main()
