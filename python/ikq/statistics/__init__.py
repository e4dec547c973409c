"""Statistics of activations, which tell encoders what matters.

activations.py   what a model's matrices are multiplied with: `ActivationStatistics`, `ActivationCollector`
imatrix.py       files of them as the encoders read them: `Imatrix`
covariance.py    covariances, for error feedback: `Covariances`
calibrate/       computing them from a text
"""
