"""Measuring models: likelihoods, exact or bounded, with their standard errors."""
