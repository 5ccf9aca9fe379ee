"""The subcommands of `python -m engine`, one file each with a `main(arguments) -> exit status`."""
