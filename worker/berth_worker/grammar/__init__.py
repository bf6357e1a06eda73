"""What must an output be?  A grammar in words that llguidance reads, and what it says of each token.  No torch."""
