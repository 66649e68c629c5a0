"""The rooms behind `osr_utils`, one concern each; each imports only from those before it.

paths, records, images, drawings, sources, caches, own_sets, datasets, modes, synthetic, contract,
models, training, functions, sweep, scores, metrics, results, tables, checkpoints, weights, shipped,
figures, hand_in_files, hand_in, submissions, pictures.
"""
