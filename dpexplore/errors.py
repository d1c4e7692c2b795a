"""The one exception that is meant for the person using dpexplore."""


class InputError(ValueError):
    """Bad input, answered by one sentence: what was wrong and what to do.

    The message is shown as it is by the page and the command line, so it holds no traceback, no
    path of the server and no jargon of the code.
    """
