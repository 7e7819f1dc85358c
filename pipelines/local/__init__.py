"""Running the whole graph on one machine: embedded services, the runner, and what a person sees meanwhile."""
