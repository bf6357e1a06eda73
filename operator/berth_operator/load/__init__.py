"""How much traffic is there, and how fast is it served?  From workers' metrics to the demand that is planned for.

`page`, `demand`, `drift` and `facts` decide (pure); `exposition`, `scrape`, `watch` and `activator` do the I/O, and
`traffic` is what the loop sees.
"""
