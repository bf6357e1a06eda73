"""Which messages do clients and workers exchange?  The .proto files, and the code that `generate.py` makes of them."""
