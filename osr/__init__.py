"""The rooms behind `osr_utils`, one concern each; each imports only from those before it.

paths, records, images, drawings, sources, caches, own_sets, datasets, modes, synthetic, contract,
models, training, functions, sweep, scores, inversion, metrics, results, tables, comparisons,
checkpoints, weights, autoencoders, costs, shipped, figures, hand_in_files, hand_in, submissions,
pictures.
"""
