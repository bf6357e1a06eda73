"""What of `charts/berth/` is generated, and from what?

CRDs from `crds/`, the values' JSON Schema and their table in the README from the comments of `values.yaml`, and the
Grafana dashboards from Python.  It lives beside the chart, not in it, because a chart's folder is what users unpack.
"""

from chartgen.files import CHART, drift, generate, write

__all__ = ["CHART", "drift", "generate", "write"]
