"""The command line: parses, calls, shows. What a command does is done in the rooms below."""
