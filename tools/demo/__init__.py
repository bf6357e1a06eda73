"""The whole path once, on one machine: a cluster, a plan, a worker, tokens and dollars.  `python -m demo`."""
