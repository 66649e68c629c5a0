"""The rooms behind `osr_utils`, one concern each; each imports only from those before it.

paths, records, images, sources, caches, own_sets, datasets, synthetic, contract, models, training,
functions, sweep, scores, metrics, results, tables, weights, shipped, figures, submissions,
pictures.
"""
