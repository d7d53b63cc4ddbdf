"""`transformers serve` with this package's models: the command, and what it checks of a request.

    python -m hf_glm_ernie serve FOLDER --port 8000

The engine is the host's (`transformers.cli.serve`): HTTP, streaming, chat templates and a queue of one request at a
time. Ours are its missing pieces: the classes it looks up by name in its own module, and errors that a client can
read.
"""
