"""The models that ship with the repository: their names, their weights, what is known of them."""

from osr.checkpoints import checkpoint_metadata, load_weights, weights_of
from osr.models import SHIPPED
from osr.modes import plain_defaults
from osr.paths import checkpoint_dir, own_weights, profile, shipped_dir
from osr.results import read_results, results_files


@plain_defaults()
def load_model(name, device="cpu"):
    """Return a shipped 11-output model, ready to use.

    Parameters
    ----------
    name : str
        One of `list_models`.
    device : str or torch.device

    Returns
    -------
    nn.Module
        In eval mode; (N, 1, 28, 28) in [0, 1] -> (N, 11) finite float32 logits.

    Raises
    ------
    ValueError
        For an unknown name, or weights that are damaged.
    FileNotFoundError
        If the weights are not there.
    """
    if name not in SHIPPED:
        raise ValueError(f"no shipped model {name!r}; there are {', '.join(SHIPPED)}")
    path = find_weights(name)
    if own_weights():
        kind, name_of = ("demo", "PROFILE") if profile() == "demo" else ("retraining", "RETRAIN")
        print(
            f"{name}: weights of this {kind}, {path.stem}; without OSR_{name_of} the shipped ones"
        )
    return load_weights(SHIPPED[name](), path).to(device)


def list_models():
    """Return {name: {"file", "config", "trained", "metrics"}} of the shipped models.

    "trained" says for how long, on which device and with which torch; "metrics" are the seed-0 rows
    that the notebooks saved for the model, as {"method | id | ood | metric": value}.
    """
    models = {}
    rows = [row for notebook in results_files() for row in read_results(notebook)]
    for name in SHIPPED:
        path = find_weights(name)
        meta = checkpoint_metadata(path)
        metrics = {
            " | ".join(row[key] for key in ("method", "id", "ood", "metric")): row["value"]
            for row in rows
            if row["seed"] == 0 and row["weights"] == path.stem
        }
        models[name] = {"file": path.name, "config": meta["config"], "trained": meta["trained"]}
        models[name]["metrics"] = metrics
    return models


def find_weights(name, seed=0):
    """Return the path of a model's weights: shipped ones, or a demo's or a retraining's last.

    Raises
    ------
    FileNotFoundError
        If there are none, or several that ship.
    """
    own = own_weights()
    folder = checkpoint_dir() if own else shipped_dir()
    found = [path for path, _ in weights_of(name, seed, folder)]
    if own and found:
        return max(found, key=lambda path: path.stat().st_mtime_ns)
    if len(found) != 1:
        way_out = f"train it first (`make {'demo' if profile() == 'demo' else 'retrain'}`)"
        if found:
            way_out = f"keep one of {', '.join(path.name for path in found)}"
        elif not own:
            way_out = "`git checkout -- data/checkpoints` brings what belongs there"
        raise FileNotFoundError(
            f"{len(found) or 'no'} files {name}-*.safetensors of seed {seed} in {folder}, not one; "
            f"{way_out}"
        )
    return found[0]
