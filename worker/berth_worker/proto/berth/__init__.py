"""The package berth of the protocol."""
