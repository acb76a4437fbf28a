"""The command line: one module per command. Importing it is cheap; a command imports torch when it runs."""
