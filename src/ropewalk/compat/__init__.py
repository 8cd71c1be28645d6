"""Private hooks into other libraries, one module per library."""
