"""What the product costs, as ratios taken side by side in one process; nothing here is asserted by a test."""
