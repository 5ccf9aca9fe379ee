"""The GLM architecture: configuration, tokenizer, the layout of a sequence, the network, its files."""
