"""GLM-130B's evaluation tasks: task files, rows, prompts, metrics and the client that asks a pool of replicas."""
