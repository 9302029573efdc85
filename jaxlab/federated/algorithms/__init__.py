"""Federated algorithms other than FedAvg, one a file; all fit `Algorithm`."""
