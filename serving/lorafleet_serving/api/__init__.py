"""The HTTP surface of the pod."""
