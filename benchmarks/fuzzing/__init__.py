"""Mutations of containers, and the readers that fuzz_containers.py tests with them."""
