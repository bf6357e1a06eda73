"""What would days of demand, prices and mishaps cost, with our planner and with what a user would run instead?"""
