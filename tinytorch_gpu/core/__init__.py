"""The course's modules by the course's names, and the tensor below them."""
