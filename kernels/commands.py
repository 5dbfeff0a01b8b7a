"""What `python -m` does with our modules: commands meet the shell alike, all others say that they are none."""

import functools
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec

COMMAND = re.compile(r"^if __name__ == .__main__.:", re.MULTILINE)
BROKEN_PIPE = 141  # as a shell has it for a process that SIGPIPE has ended


def is_command(name: str) -> bool:
    """Whether a module does something when it is run; True if there is no source to say so."""
    spec = find_spec(name)
    source = spec and spec.loader and spec.loader.get_source(name)  # pyright: ignore[reportAttributeAccessIssue]
    return source is None or bool(COMMAND.search(source))


def commands(package: str) -> list[str]:
    """The names of a package's modules that are commands."""
    names = (f"{package}.{module.name}" for module in pkgutil.iter_modules(sys.modules[package].__path__))
    return [name for name in names if is_command(name)]


def refuse_others(package: str) -> None:
    """End the process, with a sentence, if it was started by `python -m` to run what is no command of the package.

    To be called when the package is imported, which is before its module runs: that would say nothing, and succeed.
    """
    # Python's own argv while it looks for the module.
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
    """Have standard streams that take every character: a console that lacks one shows a question mark for it."""
    opened, before = [], {}
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            # It was closed: what is printed is lost, and no file that is opened later gets its number.
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
    """A decorator of the function that a command runs: what the shell and the disk can do to it ends it in a sentence.

    Returns: a function of the same arguments, and the exit code: 2 where a file cannot be read or written, 130 after
        Ctrl-C, 141 where nobody reads on, as behind `| head`.
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
                # Python would complain once more as it ends.
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
