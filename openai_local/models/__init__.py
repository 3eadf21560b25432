"""Which models there are: their files, and what is loaded of them. Knows no HTTP."""
