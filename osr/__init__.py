"""The rooms behind `osr_utils`, one concern each; each imports only from those before it.

paths, records, images, sources, caches, datasets, synthetic, contract, models, training,
functions, sweep, scores, metrics, results, weights, figures, submissions, pictures.
"""
