"""How are requests turned into steps of the model?  Scheduling, KV blocks, sampling: no kernels here."""
