"""The command line: one module per command. Each has EXAMPLE, add_arguments(parser) and run(arguments)."""
