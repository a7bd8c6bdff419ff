"""What all commands share: a parser with one-line errors, and what becomes of an exception. Imports no torch."""

import argparse
import contextlib
import errno
import logging
import os
import signal
import sys
import threading

import safetensors

from machinery.inputs import InputError, one_line

# What may end a run for which it cannot be blamed, so that it goes on when that is mended.
STOPS = KeyboardInterrupt, OSError, safetensors.SafetensorError


class OneLineParser(argparse.ArgumentParser):
    """An ArgumentParser whose help keeps its lines, and whose errors are one line on stderr."""

    def __init__(self, formatter_class=argparse.RawDescriptionHelpFormatter, **options):
        super().__init__(formatter_class=formatter_class, **options)

    def parse_args(self, args=None, namespace=None):
        """InputError for a name that no file can have; before anything is made of the flags."""
        values = super().parse_args(args, namespace)
        check_names(values)
        return values

    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")

    def exit(self, status=0, message=None):
        super().exit(status, message and one_line(message.strip()) + "\n")


def number(kind, low, high=1e12):
    """An argparse type: an int or float with low <= number <= high, which no NaN or infinity is."""

    def parse(text):
        value = kind(text)
        if not low <= value <= high:
            bound = f"at most {high}" if value > high else f"at least {low}"
            raise argparse.ArgumentTypeError(f"{text[:20]} must be {bound}")
        return value

    parse.__name__ = "whole number" if kind is int else "number"
    return parse


def refuse(args, flags, why):
    """InputError if the user gave one of `flags`, which have no use because of `why`."""
    for flag in flags:
        if getattr(args, flag) is not None:
            raise InputError(f"--{flag.replace('_', '-')} has no use {why}; leave it out")


def check_names(args):
    """InputError for a flag that is given and empty, or the name of a link that leads nowhere but to itself."""
    for flag, value in vars(args).items():
        for name in (value or [""]) if isinstance(value, list) else [value]:  # --flag=-- makes an empty list
            if name == "":
                raise InputError(f"--{flag.replace('_', '-')} is empty; give it a value or leave it out")
            try:
                os.stat(name if isinstance(name, str) else ".")
            except OSError as error:
                if error.errno == errno.ELOOP:
                    raise InputError(f"'{name}' is a symbolic link that leads to itself; name another") from None


def run_command(parser, run, parse=None, argv=None, job=contextlib.nullcontext):
    """Parse, run, and turn an error into one line on stderr: exit status 2, or 128 + signal after Ctrl-C or SIGTERM.

    parse: argv → what `run` takes (default: the parser's). job: a context manager in which it runs, such as
    `processes.job`. Of STOPS, an attribute `mend` tells the user how to go on.
    """

    def stop(number, _):
        raise KeyboardInterrupt(number)

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without ↑ shows ? instead
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)  # retries, when there is no network
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)

    try:
        args = (parse or parser.parse_args)(argv)
        with job():
            return run(args)
    except InputError as error:  # the same in all processes of a job, of which torchrun numbers each
        parser.exit(2, f"{parser.prog}: {error}\n" if os.environ.get("RANK", "0") == "0" else None)
    except BrokenPipeError:  # … | head
        sys.stdout = None
    except (OSError, safetensors.SafetensorError) as error:
        problem = f"cannot read or write a file ({error}); check path, permissions and free space"
        parser.exit(2, f"{parser.prog}: {'; then '.join([problem, *mend_of(error)])}\n")
    except KeyboardInterrupt as error:
        number = error.args[0] if error.args else signal.SIGINT
        print(file=sys.stderr)
        parser.exit(128 + number, f"{parser.prog}: {'; '.join(['interrupted', *mend_of(error)])}\n")
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which compare.py need not import
            raise
        parser.exit(2, f"{parser.prog}: the GPU is out of memory; lower the micro-batch or batch size\n")


def mend_of(error):
    """[how to go on after it], if that is known."""
    return [error.mend] if hasattr(error, "mend") else []
