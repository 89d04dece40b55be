"""What was counted of each name, how it is kept, and the alerts that follow from it."""
