"""Serving a model: the messages, the scheduler, the processes that run it, and `generate`, where every request enters."""
