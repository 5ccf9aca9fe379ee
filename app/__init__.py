"""The web application: FastAPI, one websocket, Gradio pages, access control. Knows engine.serving and storage."""
