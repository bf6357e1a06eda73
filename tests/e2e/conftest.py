"""Marks of the end-to-end tests."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "images: builds container images; gigabytes and minutes the first time")
