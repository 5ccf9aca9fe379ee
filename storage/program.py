"""The version of this program, as files that outlive it name it; pyproject.toml has the same."""

PROGRAM_VERSION = "0.1.0"
