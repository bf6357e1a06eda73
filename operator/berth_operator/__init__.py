"""Berth's operator: plans all InferencePools together and keeps their workers where the plan says."""
