"""An OpenAI-compatible server over an engine of `serve.engine`."""
