"""The frame around every command: options, signals, errors, exit codes.

Decides what a command gets (its `Context`) and that each failure becomes one message and one exit code. Commands register
themselves on `cli`.
"""

from __future__ import annotations

import errno
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from types import FrameType
from typing import Any, ClassVar, TextIO, TypeVar

import click

from s3hashsync import __version__
from s3hashsync.cli.output import Output
from s3hashsync.cli.progress import Shown
from s3hashsync.config import Config
from s3hashsync.errors import ExitCode, Interrupted, Refused, S3HashSyncError
from s3hashsync.run.backup import Job
from s3hashsync.run.identities import Unlocking
from s3hashsync.run.progress import Stop
from s3hashsync.wiring import load_config, opened_job

_F = TypeVar("_F", bound=Callable[..., object])


@dataclass(slots=True)
class Context:
    """What every command gets. The configuration is read when it is first asked for."""

    config_path: str | None = None
    as_json: bool = False
    quiet: bool = False
    verbose: bool = False
    stop: Stop = field(default_factory=Stop)
    exit_code: ExitCode = ExitCode.DONE
    identity_file: str | None = None
    _output: Output | None = None

    @property
    def output(self) -> Output:
        if self._output is None:
            self._output = Output(as_json=self.as_json, verbosity=-1 if self.quiet else int(self.verbose))
        return self._output

    def config(self) -> Config:
        return load_config(self.config_path, os.environ)

    @contextmanager
    def job(self, during: str) -> Iterator[tuple[Job, Shown]]:
        """The opened repository, with progress on the terminal."""
        config = self.config()
        with (
            Shown(self.output, during) as progress,
            opened_job(config, os.environ, progress, self.stop, self.unlocking(progress)) as job,
        ):
            yield job, progress

    def unlocking(self, progress: Shown, *, may_ask: bool = True) -> Unlocking:
        """How this command opens an encrypted repository, should it have to."""

        def ask(question: str, *, hidden: bool) -> str:
            progress.stop()
            return self.ask(question, hidden=hidden)

        # Prompts go to stderr: what is listed may well go into a pipe.
        somebody = may_ask and not self.as_json and all(s is not None and s.isatty() for s in (sys.stdin, sys.stderr))
        return Unlocking(self.identity_file, ask if somebody else None, self.output.warning)

    def ask(self, question: str, *, hidden: bool = False, twice: bool = False, default: str | None = None) -> str:
        """What the person types."""
        with _answering():
            answer: str = click.prompt(question, default, hide_input=hidden, confirmation_prompt=twice, err=True)
            return answer

    def confirm(self, question: str) -> None:
        """Asks; no raises `Refused`, Ctrl-C `click.Abort`."""
        with _answering():
            agreed = click.confirm(question)
        if not agreed:
            raise Refused("you said no: nothing was done")

    def agrees(self, question: str) -> bool:
        """Asks; yes unless the person says no."""
        with _answering():
            return click.confirm(question, default=True)

    @property
    def interactive(self) -> bool:
        # Python has None where a stream was closed by the caller (`<&-`).
        return all(s is not None and s.isatty() for s in (sys.stdin, sys.stdout)) and not self.as_json


@contextmanager
def _answering() -> Iterator[None]:
    """While a person is asked the first Ctrl-C is an answer. Only the main thread may say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


pass_context = click.make_pass_decorator(Context, ensure=True)


def _store(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(context: click.Context, _: click.Parameter, value: Any) -> None:
        if value:
            setattr(context.ensure_object(Context), name, value)

    return callback


def common(function: _F) -> _F:
    """The options that stand before the command as well as behind it."""
    for decorate in (
        click.option("-v", "--verbose", is_flag=True, expose_value=False, callback=_store("verbose"), help="List every step."),
        click.option("-q", "--quiet", is_flag=True, expose_value=False, callback=_store("quiet"), help="Results, errors only."),
        click.option("--json", is_flag=True, expose_value=False, callback=_store("as_json"), help="JSON lines on stdout."),
        click.option(
            "-c",
            "--config",
            metavar="FILE",
            expose_value=False,
            callback=_store("config_path"),
            help="The configuration (default: backup.yaml here, then in the XDG configuration folder).",
        ),
    ):
        function = decorate(function)
    return function


def identity_option(function: _F) -> _F:
    """For what reads the content of an encrypted repository."""
    return click.option(
        "--identity",
        metavar="FILE",
        expose_value=False,
        callback=_store("identity_file"),
        help="The age identity file that opens an encrypted repository.",
    )(function)


class _Commands(click.Group):
    """Loads a command's module when it is called, so that `plan` does not pay for `restore`."""

    _MODULES: ClassVar = {
        "init": "setup",
        "doctor": "setup",
        "validate": "setup",
        "schema": "setup",
        "completion": "setup",
        "plan": "backup",
        "apply": "backup",
        "show": "backup",
        "why": "browse",
        "status": "browse",
        "ls": "browse",
        "find": "browse",
        "history": "browse",
        "diff": "browse",
        "restore": "restore",
        "rebuild": "rebuild",
        "recovery-kit": "recovery",
        "key": "keys",
    }

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._MODULES:
            return None
        module = import_module(f"s3hashsync.cli.{self._MODULES[cmd_name]}")
        command: click.Command = getattr(module, f"{cmd_name.replace('-', '_')}_command")
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="s3hashsync")
@common
def cli() -> None:
    """Declarative backup to S3 cold storage: plan shows what would change, apply does exactly that."""


def entry_point() -> None:
    """Runs the program and exits with the code that the documentation promises."""
    context = Context()
    _listen(context.stop)
    # A run makes millions of objects without cycles: looking for cycles at the usual pace takes a tenth of its time.
    gc.set_threshold(100_000, 50, 50)
    sys.exit(run(sys.argv[1:], context))


def run(arguments: list[str], context: Context) -> int:
    """The exit code of one command line; everything that can go wrong has been said."""
    try:
        return _run(arguments, context)
    except BrokenPipeError:
        # The reader (`| head`) has seen enough.
        _drop_output(sys.stdout)
    except OSError as error:
        # The disk behind `> file` is full, or the system refuses something that no layer below expected.
        _failed(context, _unexpected(error))
    return int(ExitCode.ERROR)


def _failed(context: Context, error: S3HashSyncError) -> int:
    """Says it, wherever it still can be said; the exit code stays what it is."""
    for as_json in (True, False) if context.as_json else (False,):
        try:
            (context.output if as_json else Output(as_json=False, verbosity=0)).failure(error)
            break
        except OSError:
            _drop_output(sys.stdout if as_json else sys.stderr)
    # What could not be written before would make the exit fail.
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        _drop_output(sys.stdout)
    return int(error.exit_code)


def _drop_output(stream: TextIO) -> None:
    """Flushing what is left at exit would fail once more."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _unexpected(error: OSError) -> S3HashSyncError:
    try:
        os.getcwd()
    except FileNotFoundError:
        return S3HashSyncError("the working folder is not there any more", "change to another folder")
    where = f"{error.filename}: " if error.filename is not None else ""
    hint = "is the disk full to which the output is written?" if error.errno == errno.ENOSPC else None
    return S3HashSyncError(f"{where}{error.strerror or error}", hint)


def _run(arguments: list[str], context: Context) -> int:
    try:
        cli.main(arguments, prog_name="s3hashsync", obj=context, standalone_mode=False)
    except S3HashSyncError as error:
        return _failed(context, error)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return int(ExitCode.USAGE)
    except click.Abort:
        # click makes one of a second Ctrl-C, too: then something may have been done.
        return _failed(context, _interrupted() if context.stop else Interrupted("aborted: nothing was done"))
    except click.ClickException as error:
        _usage(context, error)
        # There 2 means "changes": a mistyped option must not look like a plan.
        return int(ExitCode.ERROR if "--detailed-exitcode" in arguments else ExitCode.USAGE)
    except KeyboardInterrupt:
        return _failed(context, _interrupted())
    return int(context.exit_code)


def _interrupted() -> Interrupted:
    return Interrupted("interrupted", "run the same command again: it goes on where it stopped")


def _usage(context: Context, error: click.ClickException) -> None:
    hint = None
    if isinstance(error, click.UsageError) and error.ctx is not None:
        hint = f"{error.ctx.command_path} --help"
    failure = S3HashSyncError(error.format_message(), hint)
    failure.exit_code = ExitCode.USAGE
    _failed(context, failure)


def _listen(stop: Stop) -> None:
    """The first Ctrl-C (or SIGTERM) brings what is under way to an acknowledged end, the second waits for no more than what is on
    its way to the store, the third ends the process."""

    def handle(number: int, _: FrameType | None) -> None:
        if stop:
            signal.signal(number, signal.SIG_DFL)
            sys.stderr.write("\nending when the store has answered (again: at once)\n")
            raise KeyboardInterrupt
        stop.set()
        sys.stderr.write("\nstopping after what is under way (again: sooner)\n")

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
