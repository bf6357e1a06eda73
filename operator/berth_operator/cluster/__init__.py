"""All I/O with Kubernetes: reading by reflectors, writing by server-side apply, the Lease."""
