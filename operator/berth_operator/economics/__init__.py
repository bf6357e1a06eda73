"""What does a token cost, on which hardware, at which load?  Pure: classes and profiles in, curves out."""
