"""The Gradio pages: the playground and its texts. Nothing is built at import; see playground.build()."""
