"""Scripts that run in the Python of an engine and import nothing of ropewalk; `run_engine` starts `main.py`."""
