"""The studio: a page on this machine where people draw videos from checkpoints, look at them and compare them."""
