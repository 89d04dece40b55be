"""What goes on beside the work: signs of life, what the dead have left, what retention lets go, loops that must run."""
