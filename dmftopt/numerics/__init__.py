"""Functions of small matrices, quadrature: numbers that know nothing of learning."""
