"""kopf, without the client library that it would import only to recognise its objects; see `cluster.connection`."""

from berth_operator.cluster.connection import without_generated_client

with without_generated_client():
    import kopf

    kopf.get_default_registry()  # looks for client libraries to log in with; ours logs in itself

__all__ = ["kopf"]
