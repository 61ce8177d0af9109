"""Finding the symmetries of an existing model: traced, labelled, read off as groups, verified on the model."""
