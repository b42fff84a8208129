"""The command line: one file a command. A command parses its options, calls another package, and prints the result."""
