"""Federated courses from the command line: simulate them, evaluate what they have learned."""
