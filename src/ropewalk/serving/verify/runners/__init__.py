"""Scripts that run in the python of an engine and import nothing of ours; running.py starts them."""
