"""Training a GLM: vocabulary, data, blank-infilling objective, trainer."""
