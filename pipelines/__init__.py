"""The graph: configuration, Kubeflow shells, local services, and the command line."""
