"""The command line: thin verb groups that parse, call one function of a lower floor, and print."""
