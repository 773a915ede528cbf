"""Scripts that a user runs beside the package: Keras export, training of the shipped network, measurements."""
