"""How is the engine reached?  gRPC and HTTP faces, metrics, start and drain: no tensors here."""
