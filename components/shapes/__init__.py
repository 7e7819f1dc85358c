"""A small made world of moving shapes: films whose truth is known, and a checker that reads pixels."""
