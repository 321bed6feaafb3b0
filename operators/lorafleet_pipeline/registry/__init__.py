"""The registry side of the pipeline: registration, promotion, and the controller that keeps order."""
