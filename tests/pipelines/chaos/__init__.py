"""Training under faults: real processes, a real store and a real tracking server that are killed on schedule."""
