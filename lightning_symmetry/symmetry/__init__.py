"""The symmetries of an existing model: groups read off its labelled axes, and verified on the model."""
