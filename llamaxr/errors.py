"""The one error that the user can fix.

Whatever is wrong with the user's input (a file, an option, a folder) is raised as UserError where it enters.
The scripts run `main` inside runs/terminal.py's one_line_errors, which prints it as one line on stderr and
exits with code 2.
"""


class UserError(Exception):
    """Something the user can fix. The message is one line: what, where, what to do."""
