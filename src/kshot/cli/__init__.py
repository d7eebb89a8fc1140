"""The command line: parse, call, turn errors into one line and an exit code."""
