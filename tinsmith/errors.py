"""The one exception whose message is meant for the user."""


class TinsmithError(Exception):
    """Something that a user, a file or a network broke.

    The message is one paragraph that names the file, key or field, the rule and the value.
    Entry points print it without a traceback and exit with code 2.
    """
