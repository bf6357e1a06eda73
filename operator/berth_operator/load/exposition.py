"""How does the Prometheus text format become a page?  By prometheus_client's parser, on bounded lines of interest."""

from __future__ import annotations

from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from berth_operator.load.page import NAMES, LieError, Page, page_of

_SERIES: Final = 512
"""Lines of interest that a page may have; a real one has about 20."""
_LINE_BYTES: Final = 4096
_PREFIXES: Final = tuple(name.encode() for name in NAMES)


def read_page(body: bytes) -> Page:
    """A page from its text.  Raises LieError.  Lines of no interest are not even parsed."""
    lines = [line for line in body.split(b"\n") if line.startswith(_PREFIXES)]
    if len(lines) > _SERIES:
        raise LieError(f"{len(lines)} series of the metrics of interest: at most {_SERIES} were expected")
    if any(len(line) > _LINE_BYTES for line in lines):
        raise LieError(f"a line of more than {_LINE_BYTES} bytes")
    try:
        text = b"\n".join(lines).decode() + "\n"
        samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    except (ValueError, IndexError, KeyError) as error:  # what the parser raises for what is no such text
        raise LieError(f"no Prometheus text: {str(error)[:200] or type(error).__name__}") from None
    return page_of((sample.name, float(sample.value)) for sample in samples)
