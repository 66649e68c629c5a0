"""The rooms behind `osr_utils`, one concern each; each imports only from those before it.

paths, sources, images, synthetic, datasets, contract, models, training, scores, sweep, results,
weights, figures, submissions, pictures.
"""
