"""The one error that the user can mend.

Whatever is wrong with what the user gave (a file, an option, a folder) is raised as UserError where it
enters. runs/terminal.py, which the scripts' `main` runs inside, turns it into one line on stderr and exit
code 2.
"""


class UserError(Exception):
    """Something the user can mend. The message is one line: what, where, what to do."""
