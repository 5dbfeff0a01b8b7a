"""What commands share, and an error where `python -m` is given a module that is none."""

import functools
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec

COMMAND = re.compile(r"^if __name__ == .__main__.:", re.MULTILINE)
BROKEN_PIPE = 141  # the shell's exit code for a process that SIGPIPE ended


def is_command(name: str) -> bool:
    """Return whether a module does something when it is run; True if its source is not available."""
    spec = find_spec(name)
    source = spec and spec.loader and spec.loader.get_source(name)  # pyright: ignore[reportAttributeAccessIssue]
    return source is None or bool(COMMAND.search(source))


def commands(package: str) -> list[str]:
    """Return the names of a package's modules that are commands."""
    names = (f"{package}.{module.name}" for module in pkgutil.iter_modules(sys.modules[package].__path__))
    return [name for name in names if is_command(name)]


def refuse_others(package: str) -> None:
    """Exit with an error message if `python -m` was told to run a module of the package that is not a command.

    Called when the package is imported, before the module runs, which would do nothing and succeed.
    """
    # What sys.argv holds while Python looks for the module.
    if sys.argv[:1] != ["-m"]:
        return
    word = sys.orig_argv[len(sys.orig_argv) - len(sys.argv)]
    name = word.partition("m")[2] if word.startswith("-") else word
    if name != package and not (name.startswith(f"{package}.") and find_spec(name) and not is_command(name)):
        return
    accepted = ", ".join(commands(package))
    which = f"those of {package} are {accepted}" if accepted else f"{package} has none"
    print(f"python -m {name}: this is no command but to be imported; {which}", file=sys.stderr)
    sys.exit(2)


@contextmanager
def printing() -> Iterator[None]:
    """Let the standard streams take every character: one that the console lacks becomes a question mark."""
    opened, before = [], {}
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            # It was closed: output is discarded, and no file opened later gets its descriptor.
            opened.append(name)
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure") and stream.errors == "strict":
            before[stream] = stream.errors
            stream.reconfigure(errors="replace")
    try:
        yield
    finally:
        for stream, errors in before.items():
            stream.reconfigure(errors=errors)
        for name in opened:
            getattr(sys, name).close()
            setattr(sys, name, None)


def command(main: Callable[[list[str] | None], int]) -> Callable[..., int]:
    """Decorate a command's function, so that interrupts, closed pipes and unusable files end it with a message.

    Returns: a function with the same arguments that returns the exit code: 2 if a file cannot be read or written, 130
        after Ctrl-C, 141 if its output is no longer read, as behind `| head`.
    """

    @functools.wraps(main)
    def run(argv: list[str] | None = None) -> int:
        with printing():
            prog = f"python -m {getattr(main.__globals__.get('__spec__'), 'name', main.__module__)}"
            try:
                try:
                    return main(argv)
                finally:
                    sys.stdout.flush()
            except BrokenPipeError:
                # Otherwise Python would report the error again at exit.
                silent = os.open(os.devnull, os.O_WRONLY)
                for stream in (sys.stdout, sys.stderr):
                    with suppress(OSError):
                        os.dup2(silent, stream.fileno())
                os.close(silent)
                return BROKEN_PIPE
            except OSError as error:
                where = f"{error.filename} cannot be used: " if error.filename else ""
                reason = " ".join((error.strerror or str(error)).split())
                print(f"{prog}: {where}{reason}", file=sys.stderr)
                return 2
            except KeyboardInterrupt as interrupt:
                print(f"\ninterrupted{': ' * bool(str(interrupt))}{interrupt}", file=sys.stderr)
                return 130

    return run
