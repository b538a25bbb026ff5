"""Why a contender, or one of its trainings, stays below linear models on frozen features, once that is known."""

PROBE = "scikit-learn on frozen features"
BEST = "fastai, best settings"
HEAD = "eurosat in 0.5 min, 2 epochs of the head alone"
REASONS = {
    "fastai, fine_tune at its defaults": "Its batch-norm layers learn from batches of 32; in evaluation mode (best "
    "settings) they do not cost that.",
    PROBE: "It reads the features of the last stage; Assay's probe reads those of all stages.",
    f"{BEST} ({HEAD})": "More epochs do not fit, and two leave a new head far from what a regression to its end "
    "reaches; with two minutes for all layers it is above both.",
    f"timm + torchvision loop ({HEAD})": "As fastai, which draws its head alike.",
    f"{BEST} (seedlings in 2 min, 1 epoch of everything)": "A second epoch does not fit; with five minutes it is above "
    "both.",
    f"{BEST} (flickr in 2 min, 3 epochs of the head alone)": "Not one epoch of all layers fits, and three leave a new "
    "head far from what a regression to its end reaches.",
    f"{BEST} (flickr in 5 min, 2 epochs of everything)": "A third epoch does not fit; it is within chance of the "
    "regression (micro F1 0.791 and 0.791), which takes two minutes.",
    **{
        f"Assay ({case} in 0.5 min)": "Half a minute suffices for images of 96 pixels, on flickr for about half of "
        "them; the regression reads all of 128 and takes two minutes."
        for case in ("flickr", "fashion, accuracy")
    },
    f"{BEST} (fashion, balanced accuracy in 2 min, 1 epoch of everything)": "A second epoch does not fit; with five "
    "minutes it is above Assay's half minute.",
}
"""By the name of a contender, or that with the set and minutes of a training."""
