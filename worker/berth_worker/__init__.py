"""Berth's inference worker: an int8 Llama engine behind gRPC and HTTP."""
