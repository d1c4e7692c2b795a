"""The one exception that is meant for the person using dpexplore."""

import textwrap


class InputError(ValueError):
    """Bad input, answered by one sentence: what was wrong and what to do.

    The message is shown as it is by the page and the command line, so it holds no traceback, no
    path of the server and no jargon of the code.
    """


def in_short(error: BaseException) -> str:
    """What a library raised, on one line and short enough to be quoted in brackets within a sentence."""
    return textwrap.shorten(str(error), 120, placeholder=" …").rstrip(".") or type(error).__name__
