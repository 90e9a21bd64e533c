"""The command line, one file a group of commands. A command turns options into one call of the library and prints it.

main.py     the entry point: sets the process up, runs the app, turns an error into one line and an exit code
app.py      the app, made of every command
options.py  the options that several commands share, each declared once
output.py   what commands print, as text or JSON
screen.py   how text is fitted to a terminal and coloured
exits.py    how a command ends with the exit code that fits
lazy.py     how a command file imports what takes long to load

Every other file holds commands. No command asks a question; every command that reports has `--json`.
"""
