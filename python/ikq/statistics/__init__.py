"""Statistics of activations, which tell encoders which weights matter most.

activations.py   statistics of matrices' inputs: `ActivationStatistics`, `ActivationCollector`
imatrix.py       imatrix files as the encoders read them: `Imatrix`
covariance.py    covariances, for error feedback: `Covariances`
calibrate/       computing them from a text
"""
