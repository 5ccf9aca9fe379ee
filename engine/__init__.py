"""The model and everything that runs it: architecture, serving, training, evaluation. Knows no web and no database."""
